"""`--dry-run`: what work will take, told by a short time test on this machine. Nothing is made and nothing is fetched."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dap.backbones.hub import to_download
from dap.backbones.opening import device_of
from dap.base.devices.waiting import wait_for
from dap.base.files import check_folder
from dap.base.watch import Watcher
from dap.cost import peak_memory_gb
from dap.data.sets.beginning import cuts
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there
from dap.engines.making import check_begun
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.labels import Soft, Stored
from dap.evaluation.training.protocol import Protocol
from dap.methods.base import Method, Task, plan
from dap.methods.matching.base import Matching
from dap.recipe import Recipe
from dap.verbs.picking.picked import check_given
from dap.verbs.planning.rates import of_iterations
from dap.verbs.planning.trials import Trials
from dap.verbs.settling import settled
from dap.verbs.understood import check_out
from dap.workshop import Workshop

TESTED = 500
"""Test images of the trial of a training."""
LONGEST = 4
"""Batches of an epoch in the trial of a training. A longer epoch takes as much longer."""
PNG_SHARE = 0.7
"""The part of an image's bytes that its PNG takes, where no image was made that tells."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What work will take.

    Attributes:
        name: the name of the work.
        kind: what the pieces are.
        pieces: how many of them the whole work has.
        left: how many of them are still to be made.
        units: units of work that are left.
        seconds: the seconds that what is left will take on this machine, in this process; None if they are not known.
        why: why they are not known.
        trial: the seconds that the trial took.
        memory_gb: peak memory of the trial, in 10⁹ bytes: that of the GPU, or that of the process on a CPU.
        disk: bytes of the files that will be made.
        downloads: what will be fetched first, with its bytes where they are known.
    """

    name: str
    kind: Literal["images", "trainings", "captions", "labels", "epochs", "steps", "files", "tensors"] = "images"
    pieces: int
    left: int
    units: int = 0
    seconds: float | None = None
    why: str = ""
    trial: float = 0.0
    memory_gb: float | None = None
    disk: int = 0
    downloads: tuple[tuple[str, int | None], ...] = ()


def of_set(recipe: Recipe, out: Path, workshop: Workshop, watcher: Watcher = Watcher(), name: str = "") -> Estimate:
    """What a distilled set will take. A set that is begun counts only with what is left.

    Args:
        recipe: the recipe, as for `dap distill`.
        out: the folder that the set would have.
        workshop: loads the data and the backbone.
        watcher: is told that a trial is run.
        name: the name of the set; the name of its folder by default.

    Raises:
        DapError: the set could not be made; the message is that of `dap distill`.
    """
    method, _ = workshop.asked(recipe)
    check_place(recipe, out, workshop)
    name, path = name or out.name, recipe.backbone.path if recipe.backbone else "starter"
    if "backbone" in method.needs and workshop.objects.backbone is None:
        revision = recipe.backbone.revision if recipe.backbone else None
        if (missing := to_download(path, revision, workshop.offline)) is not None:
            images = recipe.ipc * len(workshop.whole(recipe.data, "train").class_names)
            why = f"{missing[0]} is not on this machine yet, so no trial can be made"
            return Estimate(name=name, pieces=images, left=images, why=why, downloads=(missing,))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        method, task, sizes = checked(recipe, out, workshop, watcher)
        classes = len(task.source.class_names)
        made = DistilledSet.open(out) if there(out, "classes.json") else None
        units = [
            unit
            for unit in plan(classes, task.recipe.ipc, task.recipe.block, sizes)
            if made is None or not all(made.has(unit.label, slot) for slot in unit.slots)
        ]
        left = sum(len(unit.slots) for unit in units)
        facts: dict[str, Any] = {"name": name, "pieces": classes * task.recipe.ipc, "left": left, "units": len(units)}
        if not units:
            return Estimate(**facts, seconds=0.0)
        raw = 3 * task.source.size**2 * PNG_SHARE
        if isinstance(method, Matching) and method.bounded:
            watcher.note(f"{name}: a short time test tells how long it takes")
            rate = of_iterations(method, task)
            seconds, trial = rate.seconds(task.options.iterations), time.monotonic() - began
            return Estimate(**facts, seconds=seconds, trial=trial, disk=round(left * raw))
        if "training" in method.needs:
            why = f"{recipe.method} trains something before its first image, whose time no time test tells"
            return Estimate(**facts, why=why, disk=round(left * raw))
        watcher.note(f"{name}: a short time test tells how long it takes")
        trials = Trials(method, task, Path(folder))
        seconds = trials.paces(units).seconds()
        return Estimate(
            **facts,
            seconds=seconds,
            trial=time.monotonic() - began,
            memory_gb=peak_memory_gb(trials.device),
            disk=round(left * trials.bytes_each),
        )


def check_place(recipe: Recipe, out: Path, workshop: Workshop) -> None:
    """Check that a set can lie in a folder, as far as the path and the set that is there say.

    Raises:
        DapError: it cannot; the message is that of `dap distill`.
    """
    check_folder(out)
    check_given(out, recipe, workshop)
    check_out(workshop, recipe.data, out)


def checked(
    recipe: Recipe, out: Path, workshop: Workshop, watcher: Watcher = Watcher()
) -> tuple[Method, Task, tuple[int, ...]]:
    """The method of a set, its task, and what `beginning.cuts` gives, where the set can be made in its folder.

    Raises:
        DapError: it cannot; the message is that of `dap distill`.
    """
    check_place(recipe, out, workshop)
    chosen = settled(recipe, workshop, out, watcher, keep=False).recipe
    method, task = workshop.task(chosen)
    method.prepare(task)
    sizes = cuts(out, task.recipe.values(), can_grow=method.grows(task))
    check_begun(out, task, task.store.inputs)
    return method, task, sizes


def training_seconds(protocol: Protocol, network: str, images: int, tested: int, classes: int, device: str) -> float:
    """The seconds that one training takes, with its looks at the test images, told by two short trainings on noise.

    Args:
        protocol: the protocol, for labels that are no classifier's.
        network: the network.
        images, tested: how many images are trained on, and tested on.
        classes: the number of classes.
        device: where to train.
    """
    usual = protocol.settled(ipc=max(images // classes, 1), classes=classes, network=network)
    fewer = min(images, max(LONGEST * usual.batch, classes))
    # weights of images take no time, and noise has none
    short = usual.model_copy(update={"epochs": 3, "looks": 1, "look_from": "0", "weights": "none"})

    def timed(n: int) -> tuple[float, float]:
        marks = [time.perf_counter()]
        data = [_noise(count, usual.size, classes) for count in (fewer, n)]
        progress = functools.partial(_mark, marks, device)
        for _ in evaluate(
            data[0], data[1], short, [0], classes=classes, network=network, device=device, progress=progress
        ):
            marks.append(time.perf_counter())
        return marks[2] - marks[1], marks[-1] - marks[2]

    epoch, with_few = timed(classes)
    _, with_many = timed(min(tested, TESTED) + classes)
    look = max(with_many - with_few, 0.0) / min(tested, TESTED) * tested
    return epoch * images / fewer * usual.passes + look * len(usual.look_epochs)


def _mark(marks: list[float], device: str, *_: Any) -> None:
    wait_for(device_of(device))
    marks.append(time.perf_counter())


def _noise(n: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, size, size, generator=generator), torch.arange(n) % classes


def of_trainings(
    name: str,
    protocol: Protocol,
    left: Mapping[str, int],
    sizes: tuple[int, int, int],
    device: str,
    known: dict[tuple[str, tuple[int, int, int]], float] | None = None,
) -> Estimate:
    """What trainings will take.

    Args:
        name: the name of the work.
        protocol: the protocol.
        left: for each network, how many trainings are left.
        sizes: the numbers of images to train on, of test images, and of classes.
        device: where to train.
        known: seconds of a training by network and sizes, from earlier calls with this protocol; new ones are added.
    """
    known = {} if known is None else known
    total = sum(left.values())
    if isinstance(protocol.labels, (Soft, Stored)):
        why = "the time of a classifier's labels is not told by a time test"
        return Estimate(name=name, kind="trainings", pieces=total, left=total, units=total, why=why)
    began = time.monotonic()
    for net in left:
        if left[net] and (net, sizes) not in known:
            known[net, sizes] = training_seconds(protocol, net, *sizes, device)
    seconds = sum(known[net, sizes] * left[net] for net in left if left[net])
    memory = peak_memory_gb(torch.device(device)) if total else None
    return Estimate(
        name=name,
        kind="trainings",
        pieces=total,
        left=total,
        units=total,
        seconds=seconds,
        trial=time.monotonic() - began,
        memory_gb=memory,
    )


def free_disk(out: Path) -> int:
    """The free bytes of the disk that a folder would be made on."""
    place = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    return shutil.disk_usage(place).free
