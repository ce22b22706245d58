"""`--dry-run` of `train-backbone` and `tune-backbone`: sizes, steps and time by short trials. Nothing is made or fetched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dap.backbones import device_of
from dap.backbones.hub import to_download
from dap.backbones.opening import source_of
from dap.base.watch import Watcher
from dap.cost import forget_peak_memory, peak_memory_gb
from dap.pretraining import denoisers, planning, words
from dap.pretraining.networks import Sizes, autoencoder, labelled, unet
from dap.pretraining.notes import Notes, Stage
from dap.pretraining.pictures import Latents
from dap.verbs.options import Machine, permitted
from dap.verbs.planning.estimate import Estimate
from dap.verbs.training import backbone as training
from dap.verbs.training import tuning
from dap.verbs.training.asked import Trained

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
    """What `dap.train_backbone` will take: a line for each stage. A stage that has begun counts as a whole.

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
    second = notes.denoiser
    if second is None:  # as `pretraining.training.Training` chooses it, once the autoencoder is trained
        second = Stage(planned=planning.steps_in(max(60 * minutes - spent, 60 * minutes / 2), step, "denoiser"))
    networks = {"autoencoder": autoencoder(sizes, 0), "denoiser": _denoiser(sizes, classes)}
    facts = {"memory_gb": peak_memory_gb(device)}
    trials = (time.monotonic() - began, 0.0)
    found = [(first, each), (second, step)]
    return [
        _stage(name, stage, rate, _count(network) * (KEPT + WHILE), trial=trial, **facts)
        for (name, network), (stage, rate), trial in zip(networks.items(), found, trials, strict=True)
    ]


@permitted
def planned_tuning(
    backbone: str | Path,
    data: str | Path,
    out: Path,
    *,
    minutes: float,
    steps: int | None = None,
    rank: int = 8,
    revision: str | None = None,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **chosen: Any,
) -> list[Estimate]:
    """What `dap.tune_backbone` will take, without encoding the images, whose time depends on their number.

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
    sizes, shape = tuning.sizes_of(found.backbone, device), found.backbone.latent_shape
    learner = found.learner(ready.real.whole.class_names, rank, wishes["seed"])
    latents = Latents(torch.zeros(1, 4, *shape), torch.ones(1, 4, *shape), torch.zeros(4, dtype=torch.int64))
    latents = Latents(*(part.to(device) for part in (latents.mean, latents.std, latents.labels)))
    step = planning.seconds_of(learner.module, denoisers.loss_of(learner, latents, sizes.batch_latents), device)
    stage = ready.before.denoiser if ready.before else None
    stage = stage or Stage(planned=steps or planning.steps_in(60 * minutes, step, "denoiser"))
    trained = sum(one.numel() for one in learner.module.parameters() if one.requires_grad)
    facts = {"trial": time.monotonic() - began, "memory_gb": peak_memory_gb(device)}
    return [_stage("tuning, after the images are encoded", stage, step, whole + trained * WHILE, **facts)]


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


def _denoiser(sizes: Sizes, classes: int) -> nn.Module:
    return labelled(sizes, classes, 0) if sizes.kind == "dit" else unet(sizes, words.WIDTH, 0)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
