"""What a set of a backbone will take, roughly, by the time of one pass: a check of seconds, where a trial would take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from dap.backbones.base import Backbone
from dap.backbones.cards import shape_of
from dap.backbones.schedules import steps_of
from dap.base.devices.waiting import wait_for
from dap.methods.base import Task

SLOW = 0.5
"""A pass that takes more seconds than this is timed alone, and not among several."""

ONCE = 10.0
"""A pass that takes more seconds than this is not repeated. The first pass of a process may take far longer than others."""

GUIDED = 1.5
"""How many times an unguided step a guided one takes, about; see docs/performance.md."""

BACK = 2.0
"""How many passes a pass up to the middle of the network and back takes, about, as a step of refinement does."""


def seconds_of_set(task: Task, known: tuple[float, float, float] | None = None) -> float:
    """The seconds that the images of a set take, by its numbers of passes. Right within a factor of two or three.

    Args:
        task: the task of a method that needs a backbone. What it trains before the first image is not counted.
        known: what `paces` gave for the backbone. None: it is asked.
    """
    backbone, run, source = task.backbone, task.recipe.run, task.source
    assert run is not None
    classes = len(source.class_names)
    images = classes * task.recipe.ipc
    predicts, encodes, decodes = known or paces(backbone)
    # `auto` samples only a part of the run, which is none of it for small sets.
    steps = run.sampling.steps * getattr(task.options, "part", 1.0)
    guided = run.guidance is not None and run.guidance.scale > 0
    passes = 2 * steps * images * (GUIDED if guided else 1.0)
    reals = getattr(task.options, "reals", 0) or 0
    if guided and run.guidance is not None:
        reals = max(reals, run.guidance.reals)
        passes += steps * classes * run.guidance.reals
    if run.refine is not None and run.refine.steps:
        passes += BACK * run.refine.steps * images + classes * run.refine.reals * len(run.refine.times)
        reals = max(reals, run.refine.reals)
    encoded = sum(min(source.count(label), reals) for label in range(classes))
    return passes * predicts + encoded * encodes + images * decodes


@torch.no_grad()
def paces(backbone: Backbone, quickly: bool = False) -> tuple[float, float, float]:
    """The seconds that a backbone takes for one image or clip: to predict, to encode and to decode, on its device.

    Args:
        backbone: the backbone.
        quickly: time passes of a single image alone, which take longer than an image among several does.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(n: int) -> torch.Tensor:
        return torch.randn(n, *backbone.latent_shape, generator=generator).to(backbone.device)

    def predict(n: int) -> object:
        return backbone.predict(noise(n), steps_of(backbone.schedule) // 2, backbone.null(n))

    def encode(n: int) -> object:
        return backbone.encode(torch.rand(n, *shape_of(backbone.card), generator=generator).to(backbone.device))

    def decode(n: int) -> object:
        return backbone.decode(noise(n))

    few = 1 if quickly else 8
    found = [_pace(work, backbone.device, few) for work in (predict, encode, decode)]
    return found[0], found[1], found[2]


def _pace(work: Callable[[int], object], device: torch.device, few: int) -> float:
    """The seconds of a piece: of a single one where it is slow, else of several together, after a first one.

    The faster of two passes counts, for other work on the machine only ever slows a pass down.
    """
    single = _timed(partial(work, 1), device)
    if (single > SLOW or few == 1) and single <= ONCE:
        single = min(single, _timed(partial(work, 1), device))
    if single > SLOW or few == 1:
        return single
    return min(_timed(partial(work, few), device) for _ in range(2)) / few


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began
