"""`--dry-run` of `train-backbone`, `tune-backbone` and `convert`: sizes, steps and time by trials. Nothing is made or fetched."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dap.backbones import device_of
from dap.backbones.converting import convert as converting
from dap.backbones.hub import NotCached, to_download
from dap.backbones.opening import source_of
from dap.base.disk import writing
from dap.base.files import expanded, write_atomically
from dap.base.watch import Watcher
from dap.cost import forget_peak_memory, peak_memory_gb
from dap.pretraining import planning, words
from dap.pretraining.encoding import Encoding, encoding_of
from dap.pretraining.networks import Sizes, autoencoder, labelled, unet
from dap.pretraining.notes import Notes, Stage
from dap.pretraining.pictures import MOST_VERSIONS
from dap.verbs.options import Machine, permitted
from dap.verbs.planning.estimate import Estimate
from dap.verbs.training import backbone as training
from dap.verbs.training import tuning
from dap.verbs.training.asked import Trained

TRIED = 2**24
"""Bytes of the trial that writes."""

KEPT, WHILE = 2, 20
"""Bytes of a parameter in the backbone, and in a checkpoint: the weights, their average, the best ones, and two moments."""


@permitted
def planned_backbone(
    data: str | Path,
    out: Path,
    *,
    minutes: float,
    steps: int | None = None,
    frames: int | None = None,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **chosen: Any,
) -> list[Estimate]:
    """What `dap.train_backbone` will take: a line for each stage and one for the encoding between them. A stage that has begun
    counts as a whole.

    Args:
        data, out, minutes, steps, frames, machine, watcher: as for `train_backbone`.
        chosen: its other arguments.

    Raises:
        DapError: the training could not begin; the message is that of `train_backbone`.
    """
    wishes = {name: chosen.pop(name) for name in ("kind", "size", "seed", "flip", "autoencoder_steps")}
    wishes |= {"minutes": minutes, "steps": steps, "frames": frames}
    ready = training.opened(data, out, wishes, **chosen, machine=machine, watcher=watcher)
    if ready.made is not None:
        return list(_made(ready.made))
    began, device = time.monotonic(), device_of(machine.device)
    forget_peak_memory(device)
    notes = ready.before or training.planned(ready, machine, watcher)
    sizes, classes = notes.sizes, len(notes.asked.classes)
    first = notes.autoencoder or Stage(planned=0)
    each = planning.autoencoder_seconds(sizes, device)
    spent = first.seconds if first.seconds is not None else first.planned * each
    step = planning.denoiser_seconds(sizes, classes, device)
    vae = autoencoder(sizes, 0)
    encoding = encoding_of(
        vae.to(device).requires_grad_(False), notes.asked, sizes, device, notes.versions or MOST_VERSIONS
    )
    second, begun = notes.denoiser, ready.before is not None
    if second is None:  # as `pretraining.training.Training` chooses it, once the autoencoder is trained
        second = Stage(planned=planning.denoiser_steps(notes, step, encoding, spent=spent, begun=begun))
    facts = {"memory_gb": peak_memory_gb(device)}
    trial, disk = time.monotonic() - began, KEPT + WHILE
    return [
        _stage("autoencoder", first, each, _count(vae) * disk, trial=trial, **facts),
        _encoding(encoding, second, **facts),
        _stage("denoiser", second, step, _count(_denoiser(sizes, classes)) * disk, **facts),
    ]


@permitted
def planned_tuning(
    backbone: str | Path,
    data: str | Path,
    out: Path,
    *,
    minutes: float,
    steps: int | None = None,
    rank: int | None = None,
    revision: str | None = None,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **chosen: Any,
) -> list[Estimate]:
    """What `dap.tune_backbone` will take: a line for the encoding of the images, and one for the tuning.

    Args:
        backbone, data, out, minutes, steps, rank, revision, machine, watcher: as for `tune_backbone`.
        chosen: its other arguments.

    Raises:
        DapError: the training could not begin; the message is that of `tune_backbone`.
    """
    if (missing := to_download(source_of(str(backbone)), revision, machine.offline)) is not None:
        why = f"{missing[0]} is not on this machine yet, so no trial can be made"
        return [
            Estimate(name=str(out), kind="steps", pieces=steps or 0, left=steps or 0, why=why, downloads=(missing,))
        ]
    wishes = {name: chosen.pop(name) for name in ("seed", "flip")} | {"minutes": minutes, "steps": steps, "rank": rank}
    ready, found = tuning.opened(
        backbone, data, out, wishes, **chosen, revision=revision, machine=machine, watcher=watcher
    )
    if ready.made is not None:
        return list(_made(ready.made))
    began, device = time.monotonic(), device_of(machine.device)
    forget_peak_memory(device)
    whole = sum(file.stat().st_size for file in found.folder.rglob("*") if file.is_file())
    learner = found.learner(ready.real.whole.class_names, rank, wishes["seed"])
    notes = ready.before or tuning.planned(ready.asked, found.backbone, learner, machine, watcher)
    step = planning.learner_seconds(learner, notes.sizes.batch_latents, device)
    encoding = encoding_of(
        found.backbone.vae, notes.asked, notes.sizes, device, notes.versions or MOST_VERSIONS, settled=True
    )
    stage = notes.denoiser or Stage(planned=planning.denoiser_steps(notes, step, encoding))
    trained = sum(one.numel() for one in learner.module.parameters() if one.requires_grad)
    facts = {"trial": time.monotonic() - began, "memory_gb": peak_memory_gb(device)}
    return [_encoding(encoding, stage), _stage("tuning", stage, step, whole + trained * WHILE, **facts)]


def planned_convert(source: str | Path, out: str | Path, **how: Any) -> list[Estimate]:
    """What `dap convert` will take: a line for what is read, and one for each network that is written.

    The source is read as a whole, so that whatever is wrong with it is said. It needs as much memory as the conversion.

    Args:
        source, out, how: as for `dap.backbones.converting.convert.convert`.

    Raises:
        DapError: the conversion could not begin; the message is that of `convert`.
    """
    offline, place = bool(how.get("offline")), expanded(source)
    read, began = f"reading {source}", time.monotonic()
    missing = None if place.exists() else to_download(source_of(str(source)), how.get("revision"), offline)
    try:
        ready = None if missing else converting.read(source, out, **{**how, "offline": True})
    except NotCached as error:
        if offline:
            raise
        ready, missing = None, to_download(error.hub, None, offline) or (error.hub, None)
    if ready is None and missing is not None:
        why = f"{missing[0]} is not on this machine yet, so nothing is read"
        return [Estimate(name=read, kind="files", pieces=1, left=1, why=why, downloads=(missing,))]
    assert ready is not None
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place][: place.is_file()]
    seconds, nbytes = time.monotonic() - began, sum(file.stat().st_size for file in files)
    networks = {name: part for name, part in ready.pipe.components.items() if isinstance(part, nn.Module)}
    tensors = {name: _tensors(part) for name, part in networks.items()}
    pace = _writing()
    more = sum(map(len, ready.files.values())) + _beside(ready.pipe, networks)
    told = f"{read}, {nbytes / 1e6:.1f} MB" if files else read
    facts: dict[str, Any] = {"seconds": seconds, "trial": seconds, "memory_gb": peak_memory_gb(torch.device("cpu"))}
    first = Estimate(name=told, kind="files", pieces=len(files) or 1, left=len(files) or 1, disk=more, **facts)
    return [
        first,
        *(_written(f"{ready.out.name}/{n}, {type(networks[n]).__name__}", tensors[n], pace) for n in networks),
    ]


def _written(name: str, tensors: Sequence[torch.Tensor], pace: float) -> Estimate:
    """What writing a network will take, at so many seconds a byte."""
    n, nbytes = len(tensors), sum(one.numel() * one.element_size() for one in tensors)
    return Estimate(name=name, kind="tensors", pieces=n, left=n, seconds=nbytes * pace, disk=nbytes)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    """The tensors that a file of this network holds. Two names of one tensor, as a T5's tables have, are written once."""
    return list({value.data_ptr(): value for value in network.state_dict().values()}.values())


def _writing() -> float:
    """The seconds that a byte takes to be written and to reach the disk."""
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        began = time.monotonic()
        write_atomically(Path(folder) / "trial", bytes(TRIED))
        return (time.monotonic() - began) / TRIED


def _beside(pipe: Any, networks: Mapping[str, Any]) -> int:
    """The bytes of the parts of a pipeline that are no networks, such as a tokenizer."""
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        for name, part in pipe.components.items():
            if name not in networks and hasattr(part, "save_pretrained"):
                with writing(Path(folder)):
                    part.save_pretrained(str(Path(folder) / name))
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _made(made: Trained) -> Iterator[Estimate]:
    """The stages of a backbone that is there already."""
    notes: Notes = made.notes
    for name, stage in (("autoencoder", notes.autoencoder), ("denoiser", notes.denoiser)):
        if stage is not None:
            yield Estimate(name=name, kind="steps", pieces=stage.planned, left=0, seconds=0.0)


def _stage(name: str, stage: Stage, rate: float, disk: int, **facts: Any) -> Estimate:
    """What is left of a stage, by the seconds of a step."""
    left = stage.planned if stage.steps is None else 0
    return Estimate(
        name=name, kind="steps", pieces=stage.planned, left=left, seconds=left * rate, disk=disk if left else 0, **facts
    )


def _encoding(encoding: Encoding, after: Stage, **facts: Any) -> Estimate:
    """What is left of the encoding, which a training that goes on does again."""
    left = encoding.images if after.steps is None else 0
    seconds = encoding.seconds * left / encoding.images
    return Estimate(name="encoding", kind="images", pieces=encoding.images, left=left, seconds=seconds, **facts)


def _denoiser(sizes: Sizes, classes: int) -> nn.Module:
    return labelled(sizes, classes, 0) if sizes.kind == "dit" else unet(sizes, words.WIDTH, 0)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
