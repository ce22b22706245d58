"""`--dry-run` of the verbs that run one network over many images: `train-teacher`, `classify` and `caption`.

Nothing is made. A short time test on some of the images tells the time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dap.backbones import device_of
from dap.backbones.base import Backbone
from dap.backbones.hub import to_download
from dap.base.devices.waiting import wait_for
from dap.base.errors import DapError
from dap.base.files import drop_torn_line
from dap.base.watch import Watcher
from dap.cost import forget_peak_memory, peak_memory_gb
from dap.data.real.counts import total_of
from dap.data.real.sources import Source
from dap.data.sets.distilled import DistilledSet
from dap.imagenet import spoken
from dap.posterior import BATCH, Levels, errors
from dap.verbs.caption import Captioner, Say, left
from dap.verbs.caption import opened as opened_for_captions
from dap.verbs.classify import judges_of
from dap.verbs.distill import open_workshop
from dap.verbs.options import Machine, permitted
from dap.verbs.planning.estimate import Estimate, of_trainings
from dap.verbs.report import opened_sets
from dap.verbs.training.teacher import check_new
from dap.verbs.training.teacher import opened as opened_for_teacher

CAPTION = 300
"""Bytes of a line of captions, of which the path is about a third."""


@permitted
def planned_teacher(
    data: str | Path, out: Path, *, machine: Machine = Machine(), watcher: Watcher = Watcher(), **asked: Any
) -> list[Estimate]:
    """What `dap.train_teacher` would take with these arguments, as if no checkpoint were there.

    Raises:
        DapError: the training could not begin; the message is that of `train_teacher`.
    """
    check_new(out)
    ready = opened_for_teacher(data, out, machine=machine, watcher=watcher, **asked)
    classes = len(ready.train.class_names)
    network = ready.protocol.network
    watcher.note("a short time test on noise tells how long a training takes")
    trained = total_of(ready.train)
    sizes, device = (trained, total_of(ready.test), classes), str(device_of(machine.device))
    return [of_trainings(f"{network} on {trained} images", ready.protocol, {network: 1}, sizes, device)]


@permitted
def planned_classify(
    sets: Sequence[str | Path | DistilledSet],
    *,
    backbone: str | None = None,
    data: str | None = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    reals: int = 50,
    levels: Levels = Levels(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> list[Estimate]:
    """What `dap.classify` would take with these arguments: a line for each set, and one for the real images of each backbone.

    What earlier calls have computed counts again here.

    Raises:
        DapError: the sets could not be classified; the message is that of `classify`.
    """
    workshop = open_workshop(machine, watcher=watcher)
    opened = opened_sets(sets, classes)
    found = list[Estimate]()
    for made in opened:
        recorded = (made.recipe or {}).get("backbone") or {}
        missing = to_download(str(backbone or recorded.get("path", "")), recorded.get("revision"), workshop.offline)
        if missing is not None:
            why = f"{missing[0]} is not on this machine yet, so no trial can be made"
            each = {"kind": "images", "pieces": len(made), "left": len(made), "why": why}
            found.append(Estimate(name=str(made.path), downloads=(missing,), **each))
    if found:
        return found
    ready = judges_of(opened, workshop, backbone, data, max_bad_fraction, split)
    rates, tested = dict[int, float](), set[tuple[int, str, tuple[str, ...]]]()
    for made, (judge, real) in zip(opened, ready, strict=True):
        names = made.class_names
        began = time.monotonic()
        if id(judge) not in rates:
            forget_peak_memory(judge.device)
            rates[id(judge)] = seconds_a_pass(judge, real, names)
        trial, memory = time.monotonic() - began, peak_memory_gb(judge.device)
        each = rates[id(judge)] * levels.passes(len(names))
        found.append(_images(str(made.path), len(made), each, trial, memory))
        key = (id(judge), real.fingerprint(), tuple(names))
        if key not in tested:
            tested.add(key)
            count = sum(min(reals, real.count(label)) for label in range(len(names)))
            found.append(_images(f"real images, by {judge.card.name}", count, each, 0.0, memory))
    return found


def _images(name: str, count: int, each: float, trial: float, memory: float | None) -> Estimate:
    return Estimate(name=name, pieces=count, left=count, seconds=count * each, trial=trial, memory_gb=memory)


def seconds_a_pass(backbone: Backbone, real: Source, names: Sequence[str]) -> float:
    """The seconds of one pass of the backbone for one image and one class, in batches as `classify` has them."""
    count = max(1, min(BATCH // len(names), real.count(0)))
    latents = backbone.encode(real.images(0, real.good(0, count, 0, least=1)).to(backbone.device))
    taken = list[float]()
    for times in (1, 2, 4):  # the first one warms up
        began = time.perf_counter()
        errors(backbone, latents, names, Levels(times))
        taken.append(time.perf_counter() - began)
    return max(taken[2] - taken[1], 0.0) / (2 * len(latents) * len(names)) or taken[2] / (4 * len(latents) * len(names))


@permitted
def planned_caption(
    data: str | Path | Source,
    out: Path,
    *,
    model: str,
    say: Say | None = None,
    ask: str | None = None,
    per_class: int | None = None,
    batch: int = 16,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **chosen: Any,
) -> list[Estimate]:
    """What `dap.caption` would take with these arguments. Captions that are in the file already do not count.

    Raises:
        DapError: no caption could be written; the message is that of `caption`.
    """
    source = opened_for_captions(data, out, watcher, **chosen)
    unknown: Mapping[str, Any] = {}
    if say is None:
        try:
            say = Captioner(model, device=machine.device, offline=True)
        except DapError:
            if machine.offline or Path(model).exists():
                raise
            why = f"{model} is not on this machine yet, so no trial can be made"
            unknown = {"why": why, "downloads": ((model, None),)}
        else:
            ask = ask or say.ask
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        written = Path(folder) / "captions.jsonl"
        if out.is_file():
            shutil.copyfile(out, written)
            drop_torn_line(written)
        todo = left(source, written, model, ask, per_class)
    images = sum(len(indices) for _, indices in todo)
    whole = sum(min(source.count(label), per_class or source.count(label)) for label, _ in todo)
    facts: dict[str, Any] = {"name": str(out), "kind": "captions", "pieces": whole, "left": images}
    facts["disk"] = images * CAPTION
    if say is None or not images:
        return [Estimate(**facts, **unknown, seconds=None if say is None else 0.0)]
    began = time.monotonic()
    device = device_of(machine.device)
    each = _seconds_a_caption(say, source, todo, ask, batch, device)
    facts["memory_gb"] = peak_memory_gb(device)
    return [Estimate(**facts, seconds=each * images, trial=time.monotonic() - began)]


def _seconds_a_caption(
    say: Callable[..., list[str]],
    source: Source,
    todo: Sequence[tuple[int, Sequence[int]]],
    ask: str | None,
    batch: int,
    device: torch.device,
) -> float:
    """The seconds of a caption, reading the image included, by one batch after one caption that warms up."""
    label, indices = next((label, indices) for label, indices in todo if indices)
    question = ask and ask.replace("{}", spoken(source.class_names[label]))
    _, images = source.readable(label, indices[:1])
    say(images, question)
    began = time.perf_counter()
    kept, images = source.readable(label, indices[:batch])
    say(images, question)
    wait_for(device)
    return (time.perf_counter() - began) / max(len(kept), 1)
