"""All stages of a training, from images to a folder that `load_backbone` opens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from dap.backbones.base import Card
from dap.base.alone import alone
from dap.base.disk import writing
from dap.base.files import building, dump
from dap.base.store import Checkpoint, checkpoint_seconds
from dap.base.watch import Watcher
from dap.pretraining import autoencoders, denoisers, planning, words
from dap.pretraining.denoisers import Learner, learner_of
from dap.pretraining.encoding import encoding_of
from dap.pretraining.fitting import Averaged, Fitting, Outcome, fit
from dap.pretraining.networks import autoencoder
from dap.pretraining.notes import FILE, Notes, Stage, write_notes
from dap.pretraining.pictures import MOST_VERSIONS, Latents, Pictures, encoded, versions_of
from dap.pretraining.previews import reconstructions, samples, write_preview

WORK = ".training"
"""The folder of the checkpoints in a backbone's folder. It goes when the backbone is done."""

PREVIEW = 180.0
"""Seconds between two previews."""

WORTH = 1000
"""Steps from which compiling a network for a GPU pays."""


@dataclass
class Training:
    """A training of a backbone into a folder.

    Args:
        folder: the folder of the backbone.
        train: the images that are trained on.
        held: images that are held out; None: there are none, and no training ends early.
        notes: what was asked for and what is planned. It changes while the training goes on.
        device: where the training runs.
        watcher: is told how it goes on.
        licence: the licence of the weights, for their card.
        vae: a trained autoencoder to use. None: one is trained.
        learner: a denoiser that has learned before. None: one is trained from nothing.
        card: the card of the weights. None: one that is made of their sizes.
    """

    folder: Path
    train: Pictures
    held: Pictures | None
    notes: Notes
    device: torch.device
    watcher: Watcher = field(default_factory=Watcher)
    licence: str = "that of the images it was trained on"
    vae: Any = None
    learner: Learner | None = None
    card: Card | None = None

    def __post_init__(self) -> None:
        self._shown = time.monotonic()
        self._rows: list[Any] = []

    @property
    def class_names(self) -> list[str]:
        return self.notes.asked.classes

    def run(self) -> Notes:
        """Train what is not trained yet, and write the folder. A training that was killed goes on.

        Raises:
            DapError: a loss is not finite, or too little time is left for the denoiser.
            OSError: the disk takes no more. Checkpoints that are there stay.
        """
        vae = self._autoencoder() if self.vae is None else self.vae
        vae.requires_grad_(False)
        learner = self.learner or self._learner(vae)
        if self.notes.denoiser is None:  # before the images are encoded: too few steps are found out first
            self._plan(vae, learner)
        latents, held = self._latents(vae)
        self._denoiser(learner, latents, held)
        self._preview(lambda: samples(learner.twin(), self.class_names))
        psnr = {
            "psnr_train_db": self._psnr(vae, self.train, limit=2000),
            "psnr_held_out_db": self._psnr(vae, self.held),
        }
        self._note(**psnr, done=True)
        self._write(learner, vae)
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        return self.notes

    def _note(self, **values: Any) -> None:
        self.notes = self.notes.but(**values)
        if not self.notes.done:  # notes of a whole backbone are written with it
            write_notes(self.folder, self.notes)

    def _autoencoder(self) -> Any:
        sizes, seed = self.notes.sizes, self.notes.asked.seed
        vae = autoencoder(sizes, seed).to(self.device, memory_format=torch.channels_last)
        for name in ("autoencoder", "decoder"):
            stage: Stage | None = getattr(self.notes, name)
            if stage is None or not stage.planned:
                continue
            make = autoencoders.loss_of if name == "autoencoder" else autoencoders.decoder_loss_of
            peak = autoencoders.peak_of(sizes.batch_images)
            loss = make(vae, self.train, sizes.batch_images, self.device)
            self._quickly(vae.decoder, stage.planned)
            held = None if self.held is None else self._held_out_error(vae)
            how = Fitting(name, stage.planned, peak, seed, autoencoders.DECAY)
            self._stage(how, vae, loss, stage, held, lambda: self._reconstructions(vae))
        return vae

    def _held_out_error(self, vae: Any) -> Callable[[], float]:
        held = self.held
        assert held is not None
        return lambda: autoencoders.error_of(vae, held, self.device, limit=256)

    def _latents(self, vae: Any) -> tuple[Latents, Latents | None]:
        seed, factor = self.notes.asked.seed, vae.config.scaling_factor
        versions = min(versions_of(self.train), self.notes.versions or MOST_VERSIONS)
        train = encoded(vae, self.train, self.device, seed=seed, versions=versions, tell=self._told("encoding"))
        if self.vae is None:
            autoencoders.standardise(vae, train)
            factor = 1.0
            vae.register_to_config(scaling_factor=factor)
        held = None if self.held is None else encoded(vae, self.held, self.device, seed=seed, versions=1)
        for latents in (train, held):
            if latents is not None and factor != 1:
                latents.mean.mul_(factor)
                latents.std.mul_(factor)
        self._rows = self._reconstructions(vae)
        return train, held

    def _learner(self, vae: Any) -> Learner:
        return learner_of(self.notes.sizes, vae, self.class_names, self._card(), self.notes.asked.seed + 1)

    def _plan(self, vae: Any, learner: Learner) -> None:
        """Choose the steps of the denoiser by the time that is left."""
        asked, sizes, most = self.notes.asked, self.notes.sizes, self.notes.versions or MOST_VERSIONS
        step = planning.learner_seconds(learner, sizes.batch_latents, self.device)
        encoding = encoding_of(vae, asked, sizes, self.device, most, settled=True)
        steps = planning.denoiser_steps(self.notes, step, encoding)
        if steps * step > planning.denoiser_seconds_left(asked, self.notes.seconds, encoding):
            taken = (self.notes.seconds + encoding.seconds) / 60
            self.watcher.note(
                f"The autoencoder and the encoding take {taken:.1f} minutes, which is more than was planned, so the whole "
                f"training takes longer than {asked.minutes:g} minutes."
            )
        self._note(denoiser=Stage(planned=steps))

    def _denoiser(self, learner: Learner, latents: Latents, held: Latents | None) -> None:
        asked, sizes, stage = self.notes.asked, self.notes.sizes, self.notes.denoiser
        assert stage is not None
        loss = denoisers.loss_of(learner, latents, sizes.batch_latents)
        self._quickly(learner.backbone.denoiser, stage.planned)
        measured = None if held is None else denoisers.held_out_of(learner, held, sizes.batch_latents)
        draw = lambda: samples(learner.twin(), self.class_names)  # noqa: E731
        how = Fitting("denoiser", stage.planned, learner.peak, asked.seed, denoisers.DECAY)
        self._stage(how, learner.module, loss, stage, measured, draw)

    def _stage(self, how: Fitting, module: nn.Module, loss: Any, stage: Stage, held: Any, draw: Any) -> None:
        name = how.name
        # Trainings that an earlier version began go on: their checkpoints do not know these fields.
        without = {"frames"} if self.notes.sizes.frames is None else set[str]()
        without |= {name for name in ("template", "spoken") if getattr(self.notes.asked, name) is None}
        told = [part.model_dump(exclude=without) for part in (self.notes.asked, self.notes.sizes)]
        said = json.dumps([*told, name, stage.planned])
        key = hashlib.sha256(said.encode()).hexdigest()[:16]
        kept = Checkpoint(self.folder / WORK / f"{name}.pt", key, checkpoint_seconds())
        parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

        def look(average: Averaged) -> None:
            if time.monotonic() - self._shown >= PREVIEW:
                with average.used():
                    self._preview(draw)

        found = fit(module, loss, how, checkpoint=kept, held_out=held, look=look, tell=self._told(name))
        self._note(**{name: stage.done(found, parameters)})
        if found.turned:
            self._tell_turned(name, found, stage)

    def _tell_turned(self, name: str, found: Outcome, stage: Stage) -> None:
        least = min(held for _, _, held in found.history if held is not None)
        self.watcher.note(
            f"The {name} stopped after {found.steps:,} of {stage.planned:,} steps: its loss on held-out images was smallest, "
            f"{least:.4f}, at step {found.best:,}, and more training would only learn the images by heart. The averaged weights "
            "of that step are kept."
        )

    def _told(self, name: str) -> Callable[[int, int], object]:
        return lambda done, total: self.watcher.work(name, done, total)

    def _quickly(self, module: nn.Module, steps: int) -> None:
        # torch's compiler for GPUs calls one for C, and fails without it at the first step.
        compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
        if self.device.type == "cuda" and steps >= WORTH and any(map(shutil.which, compilers)):
            module.compile()

    def _reconstructions(self, vae: Any) -> list[Any]:
        return reconstructions(vae, self.held or self.train, self.device)

    def _preview(self, draw: Callable[[], list[Any]]) -> None:
        rows = draw()
        write_preview(self.folder, [*self._rows, *rows] if self._rows else rows)
        self._shown = time.monotonic()

    def _psnr(self, vae: Any, pictures: Pictures | None, limit: int | None = None) -> float | None:
        if pictures is None:
            return None
        return round(autoencoders.decibels(autoencoders.error_of(vae, pictures, self.device, limit)), 2)

    def _card(self) -> Card:
        if self.card is not None:
            return self.card
        sizes = self.notes.sizes
        template = words.TEMPLATES[0] if sizes.kind == "unet" else None
        layer = "mid" if sizes.kind == "unet" else str(sizes.depth // 2)
        name = self.folder.resolve().name
        more = {"template": template, "frames": sizes.frames, "guessed": True}
        return Card(name, self.licence, sizes.size, 1.5, "all", layer, 0.02, "step", **more)

    def _write(self, learner: Learner, vae: Any) -> None:
        """Write the pipeline of diffusers in float16, with card, class names and notes. model_index.json comes last."""
        card = {name: value for name, value in self._card().written().items() if name != "size"}
        with alone(), building(self.folder, "model_index.json") as aside, writing(self.folder, aside):
            learner.pipeline(vae).save_pretrained(aside, safe_serialization=True)
            for config in aside.glob("*/config.json"):
                values = json.loads(config.read_bytes())
                values.pop("_name_or_path", None)  # the path of a part on this machine
                config.write_bytes(dump(values))
            if learner.class_names:  # a saved pipeline of diffusers forgets the names of its labels
                index = json.loads((aside / "model_index.json").read_bytes())
                index["id2label"] = {str(label): name for label, name in enumerate(learner.class_names)}
                (aside / "model_index.json").write_bytes(dump(index))
            (aside / "classes.json").write_bytes(dump(self.class_names))
            (aside / "card.yaml").write_text(
                yaml.safe_dump(card, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )
            (aside / FILE).write_bytes(dump(self.notes.model_dump(mode="json")))
