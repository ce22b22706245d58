"""`dap tune-backbone`: a backbone that somebody trained on much data learns the user's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dap.backbones import device_of
from dap.backbones.hub import open_pipeline
from dap.backbones.opening import from_pipeline, source_of
from dap.base.alone import locked
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.pretraining import planning
from dap.pretraining.denoisers import Learner
from dap.pretraining.encoding import encoding_of, versions_in
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked, Notes, Stage, write_notes
from dap.pretraining.training import Training
from dap.pretraining.tuning import check_tunable, tuner_of
from dap.verbs.distill import open_workshop
from dap.verbs.options import Machine, permitted
from dap.verbs.training.asked import (
    Ready,
    Trained,
    begun,
    check_minutes,
    fewer_versions,
    latents_budget,
    made_before,
    pictures_of,
    real_images,
    warn_of_few,
)

POOR = 18.0
"""Below so many dB a reconstruction is a poor picture of the image."""

RANK = 8
"""The rank of LoRA's matrices where none is given."""

SMALL = 16
"""The side of a latent up to which a step takes many of them."""


@permitted
def tune_backbone(
    backbone: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    minutes: float = 30,
    steps: int | None = None,
    rank: int | None = None,
    template: str | None = None,
    revision: str | None = None,
    flip: bool = True,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    seed: int = 0,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Trained:
    """Tune a backbone on a folder of images, so that it knows their classes.

    A Stable Diffusion 1 or 2 gets LoRA's matrices in the attention of its U-Net (Hu et al. 2022; by peft, the extra `tune`), and
    class names become prompts. A DiT gets new labels, and learns what DiffFit trains: biases, norms, class embeddings and factors
    (Xie et al., ICCV 2023). Both are then merged into the weights, so `out` is an ordinary diffusers pipeline. The autoencoder
    and the text encoder stay as they are. The backbone itself is not changed.

    A part of the images is held out, and the training ends early, as in `train_backbone`. An interrupted call goes on when it is
    made again.

    Args:
        backbone: "starter", "starter-unet", a folder of a diffusers pipeline, or a hub id.
        data: the real images: a folder of class folders, or "fashion-mnist".
        out: the folder to write.
        minutes: the time, for which the number of steps is chosen by a measured rate.
        steps: the number of steps. Default: as many as fit the time.
        rank: the rank of LoRA's matrices, for a Stable Diffusion. Default: 8. A DiT has none.
        template: the prompt of a Stable Diffusion, with {} for the class name. Default: the card's.
        revision: branch, tag or commit of a hub id.
        flip, classes, max_bad_fraction, split, seed, machine, watcher: as in `train_backbone`.

    Raises:
        DapError: the backbone cannot be opened or is of a kind that cannot be tuned, peft is missing, or a reason of
            `train_backbone`.
        OSError: the disk takes no more. Run the same again.
    """
    out, device = Path(out), device_of(machine.device)
    wishes = {"minutes": minutes, "seed": seed, "flip": flip, "steps": steps, "rank": rank}
    how = {"classes": classes, "max_bad_fraction": max_bad_fraction, "split": split}
    ready, teacher = opened(
        backbone, data, out, wishes, template=template, revision=revision, machine=machine, watcher=watcher, **how
    )
    if ready.made is not None:
        return ready.made
    found, before, asked = teacher.backbone, ready.before, ready.asked
    with locked(out):
        learner = teacher.learner(ready.real.whole.class_names, rank, seed)
        if before is None:
            warn_of_few(asked.images, watcher)
        # Classes that cannot be learned, and too little time, are refused before the folder has notes, which would bind it.
        notes = before or planned(asked, found, learner, machine, watcher)
        write_notes(out, notes)
        card = replace(found.card, name=out.resolve().name)
        training = Training(
            out,
            *pictures_of(ready.parts, flip, machine),
            notes,
            device,
            watcher,
            vae=found.vae,
            learner=learner,
            card=card,
        )
        trained = sum(parameter.numel() for parameter in learner.module.parameters() if parameter.requires_grad)
        watcher.note(
            f"Tunes {trained:,} parameters of {shown(str(backbone))} on {asked.images:,} images of {found.card.size} px. The "
            f"licence of the result is that of the backbone: {found.card.licence}."
        )
        notes = training.run()
        if (notes.psnr_held_out_db or POOR) < POOR:
            watcher.note(
                f"The autoencoder of {shown(str(backbone))} reconstructs your images with only {notes.psnr_held_out_db:.1f} dB "
                "and is not tuned, so no image of the result is better. dap train-backbone trains one on your images."
            )
        return Trained(out, notes)


@dataclass(frozen=True)
class Tunable:
    """A backbone that can be tuned: its pipeline, the folder of the pipeline, and the backbone made of it."""

    pipe: Any
    folder: Path
    backbone: Any

    def learner(self, class_names: Sequence[str], rank: int | None, seed: int) -> Learner:
        """What learns these classes. The pipeline is changed."""
        return tuner_of(self.pipe, self.folder, self.backbone, class_names, RANK if rank is None else rank, seed)


def opened(
    backbone: str | Path,
    data: str | Path,
    out: Path,
    wishes: Mapping[str, Any],
    *,
    template: str | None = None,
    revision: str | None = None,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **how: Any,
) -> tuple[Ready, Tunable]:
    """Open the backbone, the images of a training, and what was made of it before. Nothing is written.

    Args:
        backbone, data, out, template, revision, machine, watcher: as for `tune_backbone`.
        wishes: its `minutes`, `seed`, `flip`, `steps` and `rank`.
        how: its other arguments.

    Raises:
        DapError: as `tune_backbone`.
    """
    check_minutes(wishes["minutes"])
    rank = RANK if wishes["rank"] is None else wishes["rank"]
    if not 1 <= rank <= 1024:
        raise DapError(f"--rank takes a whole number from 1 to 1024, such as 8, not {rank}.")
    before = begun(out)
    real = real_images(open_workshop(machine, watcher=watcher), data, out, **how)
    pipe, folder = open_pipeline(source_of(str(backbone)), revision=revision, dtype="float32", offline=machine.offline)
    device, whose = device_of(machine.device), {"path": str(folder), "name": str(backbone)}
    found: Any = from_pipeline(pipe.to(device), **whose)
    if template == found.card.template:
        template = None  # what the card says is the same, said or not
    if template is not None:
        found = from_pipeline(pipe, **whose, template=template)
    check_tunable(found)
    lora = found.card.template is not None
    if wishes["rank"] is not None and not lora:
        raise DapError(f"--rank is of LoRA, for a Stable Diffusion, and {found.card.name} is a DiT; leave --rank out.")
    parts = real.parts(found.card.size)
    of_kind = {
        "kind": "unet" if lora else "dit",
        "rank": rank if lora else None,
        "size": found.card.size,
        "template": template,
    }
    asked = real.asked(parts, **{**wishes, **of_kind}, autoencoder_steps=None, backbone=found.weights_hash())
    ready = Ready(real, parts, found.card.size, asked, before, made_before(out, before, asked))
    return ready, Tunable(pipe, folder, found)


def planned(asked: Asked, backbone: Any, learner: Learner, machine: Machine, watcher: Watcher) -> Notes:
    """The notes of a new tuning: the sizes, the steps, and in how many versions images are encoded.

    Raises:
        DapError: the time is too short, or the memory for the latents.
    """
    device = device_of(machine.device)
    sizes, steps = sizes_of(backbone, device), asked.steps
    versions = versions_in(*latents_budget(machine, device), asked, sizes)
    notes = Notes(asked=asked, sizes=sizes, device=str(device))
    if steps is None:
        encoding = encoding_of(backbone.vae, asked, sizes, device, versions)
        step = planning.learner_seconds(learner, sizes.batch_latents, device)
        steps, versions = planning.denoiser_steps(notes, step, encoding, begun=False), encoding.versions
    return notes.but(denoiser=Stage(planned=steps), versions=fewer_versions(versions, asked, sizes, watcher))


def sizes_of(backbone: Any, device: torch.device) -> Sizes:
    """The sizes of a backbone that exists, and of the batches."""
    channels, side, _ = backbone.latent_shape
    batch = (64 if device.type == "cuda" else 32) if side <= SMALL else (16 if device.type == "cuda" else 4)
    levels = [int(width) for width in backbone.vae.config.block_out_channels]
    kind = "dit" if backbone.class_names else "unet"
    return Sizes(
        kind=kind,
        size=backbone.card.size,
        levels=levels,
        latent_channels=channels,
        width=32,
        depth=1,
        batch_latents=batch,
    )
