"""`--dry-run` of `export`, `import` and `push`: short time tests on a few images. Nothing is made, and nothing is fetched."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dap.backbones import device_of
from dap.backbones.hub import to_download
from dap.base.errors import DapError
from dap.base.files import sha256_of, write_atomically
from dap.base.watch import Watcher
from dap.cost import forget_peak_memory, peak_memory_gb
from dap.data.real.counts import total_of
from dap.data.real.decode import as_png, decode, pixels
from dap.data.sets import export as exports
from dap.data.sets.contents import file_of
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import opened as opened_import
from dap.evaluation import labelling
from dap.evaluation.image_labels import check_image_labels, holds_image_labels, image_labels
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.labels import ImageLabels
from dap.evaluation.training.loading import load_classifier
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.stored_labels import write_labels
from dap.posterior import usual_levels
from dap.verbs.distill import open_workshop
from dap.verbs.exchange.push import check_layout, check_near_copies, owner_and_name
from dap.verbs.exchange.soft import logits_of
from dap.verbs.labelling.by_backbone import Asked, is_backbone
from dap.verbs.labelling.labels import label_protocol, labeller_of, named
from dap.verbs.options import Machine, permitted
from dap.verbs.placing import check_results, real_of
from dap.verbs.planning.estimate import Estimate
from dap.verbs.planning.networks import seconds_a_pass
from dap.workshop import Workshop

TRIED = 40
"""Images of a trial that reads and writes files."""

LABELLED = 64
"""Images of a trial that labels them."""

LINE = 400
"""Bytes of a line of a manifest."""

SHARD = 3 * 768
"""Bytes that a tar takes for the heads and the rests of blocks of the three files of an image."""


def planned_export(
    made: DistilledSet,
    out: Path,
    layout: str,
    *,
    shard_size: int | None = None,
    labels: Path | None = None,
) -> list[Estimate]:
    """What `export` in a layout of images will take.

    Raises:
        DapError: the export could not begin; the message is that of `export`.
    """
    logits = None if labels is None else logits_of(made, labels)
    exports.asked(made, out, layout, shard_size, logits)
    made.check_whole(decode=False)
    return [_written(f"{out}, as {layout}", made, layout, logits)]


def planned_push(
    made: DistilledSet, to: str, *, layout: str, allow_near_copies: bool = False, labels: Path | None = None
) -> list[Estimate]:
    """What `push` will take. The hub is not asked, so a name that is taken or a token that may not write is not found.

    Raises:
        DapError: the set could not be pushed, as far as this machine can tell; the message is that of `push`.
    """
    check_layout(layout)
    owner_and_name(to)
    made.check_whole(decode=False)
    if not allow_near_copies:
        check_near_copies(made)
    logits = None if labels is None else logits_of(made, labels)
    written = _written(f"the export, as {layout}, in a temporary folder", made, layout, logits)
    n = len(made.records)
    why = f"{written.disk / 1e6:.1f} MB go to the hub, and no time test tells how fast"
    return [written, Estimate(name=f"the upload to {to}", pieces=n, left=n, why=why)]


def planned_import(source: Path, out: Path, **how: Any) -> list[Estimate]:
    """What `import_set` will take with these arguments.

    Raises:
        DapError: the source could not be imported; the message is that of `import_set`.
    """
    found = opened_import(source, out, **how)
    reads = [read for entries in found.chosen for _, read in entries]
    began, nbytes = time.monotonic(), list[int]()
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        for k in _spread(len(reads)):
            data = reads[k]()
            png, _ = as_png(data)
            hashlib.sha256(data)
            write_atomically(Path(folder) / f"{k}.png", png)
            nbytes.append(len(png) + LINE)
    each, n = (time.monotonic() - began) / len(nbytes), len(reads)
    left = 0 if found.again else n
    disk = round(left * sum(nbytes) / len(nbytes))
    return [Estimate(name=str(out), pieces=n, left=left, seconds=each * left, trial=each * len(nbytes), disk=disk)]


def _written(name: str, made: DistilledSet, layout: str, logits: np.ndarray | None) -> Estimate:
    """What writing the images of a set will take, by some of them, which are written to a folder that goes."""
    records = made.records
    began, nbytes = time.monotonic(), list[int]()
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        for k in _spread(len(records)):
            place = Path(folder) / f"{k}.png"
            data = file_of(made.path, records[k]["path"]).read_bytes()
            for _ in range(2):  # the set is checked as a whole first, and then it is written
                png, _ = as_png(data)
                hashlib.sha256(data)
            write_atomically(place, png)
            sha256_of(place)
            nbytes.append(
                (pixels(png).nbytes if layout == "pt" else len(png)) + LINE + (layout == "webdataset") * SHARD
            )
    each, n = (time.monotonic() - began) / len(nbytes), len(records)
    disk = round(n * sum(nbytes) / len(nbytes)) + (0 if logits is None else logits.nbytes)
    return Estimate(name=name, pieces=n, left=n, seconds=each * n, trial=each * len(nbytes), disk=disk)


@permitted
def planned_labels(
    made: DistilledSet,
    out: Path,
    layout: Literal["fkd", "labels"],
    *,
    teacher: str | None,
    protocol: str | Path = "fkd-soft",
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    split: Any = None,
    asked: Asked = Asked(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> list[Estimate]:
    """What `store_labels` ("fkd") or `store_image_labels` ("labels") will take.

    Epochs that are in the folder already do not count. Whether they are of the same labels is found by the export itself.

    Raises:
        DapError: the labels could not be made; the message is that of the function.
    """
    by, chosen = named(teacher), None
    check_results([made], out, real_of(data, split))
    workshop = open_workshop(machine, watcher=watcher)
    if layout == "fkd":
        chosen = label_protocol(made, protocol, epochs, changes, data, split, workshop)
    made.check_whole(decode=False)
    device = device_of(machine.device)
    forget_peak_memory(device)
    found = list[Estimate]()
    known: Classifier | ImageLabels
    if is_backbone(by):
        place = out if layout == "labels" else None
        found.append(_by_backbone(made, by, data, split, asked, workshop, watcher, place))
        known = _blank(made, LABELLED)
    elif chosen is not None and Path(by).is_dir():
        labelling.opened(by, made, str(device), True)
        known = _blank(made, LABELLED)
    else:
        try:
            known = load_classifier(by, made.class_names, str(device), offline=True)
        except DapError:
            if machine.offline or not by.startswith("torchvision:"):
                raise
            if layout == "labels":  # as far as names tell
                check_image_labels(out, by, made.class_names, labelling.image_hashes(made), {})
            n, why = len(made.records), f"{by} is not on this machine yet, so no trial can be made"
            return [Estimate(name=str(out), kind="labels", pieces=n, left=n, why=why, downloads=((by, None),))]
    if chosen is None:
        if isinstance(known, ImageLabels):
            return found
        how = {"classifier": known.fingerprint}
        check_image_labels(out, known.name, made.class_names, labelling.image_hashes(made), how)
        return [_by_classifier(made, out, known)]
    return [*found, _epochs(made, out, known, chosen)]


def _by_classifier(made: DistilledSet, out: Path, teacher: Classifier) -> Estimate:
    """What the labels of the images as they are stored will take."""
    n, began = len(made.records), time.monotonic()
    images = _some(made, teacher.size or None)
    teacher.logits(images)
    each = (time.monotonic() - began) / len(images)
    facts: dict[str, Any] = {"trial": each * len(images), "memory_gb": peak_memory_gb(teacher.device)}
    disk = n * len(made.class_names) * 4
    return Estimate(name=str(out), kind="labels", pieces=n, left=n, seconds=each * n, disk=disk, **facts)


def _by_backbone(
    made: DistilledSet,
    by: str,
    data: str | Path | None,
    split: Any,
    asked: Asked,
    workshop: Workshop,
    watcher: Watcher,
    out: Path | None,
) -> Estimate:
    """What the labels of a backbone will take: a pass for each noise level and class, of the set and of real images. `out` is
    the folder that they are written to; None where only labels of batches are written."""
    labeller, real_of = labeller_of(by, made, data, split, asked, workshop)
    choice, names, n = labeller.choice(made), made.class_names, len(made.records)
    facts: dict[str, Any] = {"name": f"labels by {choice.path}", "kind": "labels", "pieces": n}
    if (missing := to_download(choice.path, choice.revision, workshop.offline)) is not None:
        why = f"{missing[0]} is not on this machine yet, so no trial can be made"
        return Estimate(**facts, left=n, why=why, downloads=(missing,))
    backbone = labeller.workshop.backbone(choice)
    backbone.condition(names)
    levels, real = asked.levels or usual_levels(len(names)), real_of("train", backbone.card.size)
    how, place = labeller.place(made, backbone, levels, real)
    if out is not None:
        check_image_labels(out, labeller.name(made), names, labelling.image_hashes(made), how)
    if holds_image_labels(place):
        return Estimate(**facts, left=0, seconds=0.0)
    watcher.note("a short time test tells how long a pass of the backbone takes")
    began = time.monotonic()
    each = seconds_a_pass(backbone, real, names)
    seconds = each * levels.passes(len(names)) * (n + min(asked.reals, total_of(real)))
    if seconds > asked.hours * 3600:
        raise DapError(
            f"Labels of these images take about {seconds / 3600:.1f} hours on {backbone.device}, and the limit is "
            f"{asked.hours:g} hours. Give fewer --times, --keep 100,10 or a larger --most-hours."
        )
    facts |= {"trial": time.monotonic() - began, "memory_gb": peak_memory_gb(backbone.device)}
    return Estimate(**facts, left=n, seconds=seconds, disk=n * len(names) * 4)


def _epochs(made: DistilledSet, out: Path, teacher: Classifier | ImageLabels, protocol: Protocol) -> Estimate:
    """What the labels of all augmented batches will take, by two epochs of a few images."""
    settled = protocol.settled(ipc=labelling.largest(made), classes=len(made.class_names))
    n, began = len(made.records), time.monotonic()
    side = labelling.first_side(settled.train_steps)
    images = _some(made, side)
    how, hashes, marks = labelling.labelling(settled), labelling.image_hashes(made)[: len(images)], list[float]()
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        place = Path(folder) / "labels"
        few = replace(how, epochs=2)
        progress: Callable[[int, int], object] = partial(_mark, marks)
        write_labels(place, images, hashes, few, teacher, protocol=settled.name, progress=progress)
        nbytes = (place / "epoch-00001.safetensors").stat().st_size
    there = {file.name for file in out.glob("epoch-*.safetensors")} if out.is_dir() else set[str]()
    left = sum(f"epoch-{number:05d}.safetensors" not in there for number in range(how.epochs))
    seconds = (marks[1] - marks[0]) * n / len(images) * left
    facts: dict[str, Any] = {"trial": time.monotonic() - began, "memory_gb": peak_memory_gb(teacher.device)}
    disk = round(nbytes * n / len(images) * left)
    return Estimate(
        name=f"{out}, epochs", kind="epochs", pieces=how.epochs, left=left, seconds=seconds, disk=disk, **facts
    )


def _mark(marks: list[float], *_: Any) -> None:
    marks.append(time.monotonic())


def _blank(made: DistilledSet, n: int) -> ImageLabels:
    """Labels of the first images of a set that say nothing, for a time test of what does not depend on them."""
    n = min(n, len(made.records))
    return image_labels("a trial", made.class_names, torch.zeros(n, len(made.class_names)), None)


def _some(made: DistilledSet, side: int | None) -> Tensor:
    """The first images (n, 3, side, side) of a set, bytes; without a side they have that of the first one."""
    files = [file_of(made.path, record["path"]) for record in made.records[:LABELLED]]
    known = side or int(min(pixels(files[0]).shape[:2]))
    return torch.stack([decode(file, known, "crop-bilinear").mul(255).round().byte() for file in files])


def _spread(n: int) -> Sequence[int]:
    """Positions spread over n images."""
    few = min(n, TRIED)
    return [k * n // few for k in range(few)]
