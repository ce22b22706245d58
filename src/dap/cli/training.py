"""The verbs that train backbones: train-backbone, tune-backbone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dap.base.parsing import counted
from dap.cli.flags import (
    Classes,
    DryRun,
    MachineFlags,
    MaybePositive,
    OutputFlags,
    Places,
    Positive,
    Seed,
    Told,
    machine_of,
    watcher_of,
)
from dap.cli.judging import BadFraction
from dap.cli.results import forecast, free
from dap.verbs.planning.hour import spoken

Flip = Annotated[bool, Parameter(negative="--no-flip")]

if TYPE_CHECKING:
    from dap.verbs.training.asked import Trained


def train_backbone(
    *,
    data: str,
    out: Path,
    kind: Literal["dit", "unet"] = "dit",
    minutes: Annotated[float, Parameter(metavar="MINUTES")] = 30,
    size: MaybePositive = None,
    steps: MaybePositive = None,
    autoencoder_steps: MaybePositive = None,
    flip: Flip = True,
    classes: Classes = None,
    max_bad_fraction: BadFraction = None,
    split: Places = None,
    frames: MaybePositive = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Train a backbone.

    Args:
        data: The real images: a folder of class folders, or fashion-mnist. Test images are never read.
        out: Folder of the backbone. preview.png in it shows every few minutes what it makes.
        kind: dit is told labels. unet is a small Stable Diffusion, which is told prompts.
        minutes: The time for which sizes and steps are chosen, by a measured rate.
        size: Side of the images in px, a multiple of 16. Default: that of the images, at most 64 on a CPU and 128 on a GPU.
        steps: Steps of the denoiser. Default: as many as fit the time.
        autoencoder_steps: Steps of the autoencoder. Default: as many as fit the time.
        flip: Show mirror images too. Say --no-flip where left and right matter, as in text.
        classes: The classes to use, in label order, or a subset of ImageNet. Default: all.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER.
        frames: Read the data as clips of so many frames. The denoiser is then a Latte, which is told labels.
        seed: Seed of the first weights and of all draws.
    """
    chosen: dict[str, Any] = {"kind": kind, "minutes": minutes, "size": size, "steps": steps, "flip": flip}
    chosen |= {"autoencoder_steps": autoencoder_steps, "classes": classes, "split": split, "seed": seed}
    chosen |= {"max_bad_fraction": max_bad_fraction, "machine": machine_of(machine), "watcher": watcher_of(output)}
    chosen |= {"frames": frames}
    if dry_run:
        from dap.verbs.planning.backbones import planned_backbone

        return forecast(planned_backbone(data, out, **chosen), out)
    from dap.verbs.training.backbone import train_backbone as run

    made = run(data, out, **chosen)
    return _told(made, data)


def tune_backbone(
    backbone: Annotated[str, Parameter(metavar="BACKBONE")],
    /,
    *,
    data: str,
    out: Path,
    minutes: Annotated[float, Parameter(metavar="MINUTES")] = 30,
    steps: MaybePositive = None,
    rank: Positive | None = None,
    template: Annotated[str | None, Parameter(metavar="TEXT")] = None,
    revision: Annotated[str | None, Parameter(metavar="NAME")] = None,
    flip: Flip = True,
    classes: Classes = None,
    max_bad_fraction: BadFraction = None,
    split: Places = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Tune a backbone.

    Args:
        backbone: A Stable Diffusion 1 or 2, or a DiT: starter, starter-unet, a folder of a diffusers pipeline, or a hub id.
        data: The real images: a folder of class folders, or fashion-mnist. Test images are never read.
        out: Folder of the tuned backbone. preview.png in it shows every few minutes what it makes.
        minutes: The time for which the number of steps is chosen, by a measured rate.
        steps: Steps of the training. Default: as many as fit the time.
        rank: Rank of LoRA's matrices, for a Stable Diffusion. Default: 8.
        template: The prompt of a Stable Diffusion, with {} for the class name. Default: the card's.
        revision: Branch, tag or commit of a hub id.
        flip: Show mirror images too. Say --no-flip where left and right matter, as in text.
        classes: The classes to use, in label order, or a subset of ImageNet. Default: all.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER.
        seed: Seed of the first weights and of all draws.
    """
    chosen: dict[str, Any] = {"minutes": minutes, "steps": steps, "rank": rank, "template": template, "flip": flip}
    chosen |= {"revision": revision, "classes": classes, "split": split, "seed": seed}
    chosen |= {"max_bad_fraction": max_bad_fraction, "machine": machine_of(machine), "watcher": watcher_of(output)}
    if dry_run:
        from dap.verbs.planning.backbones import planned_tuning

        return forecast(planned_tuning(backbone, data, out, **chosen), out)
    from dap.verbs.training.tuning import tune_backbone as run

    made = run(backbone, data, out, **chosen)
    return _told(made, data)


def _told(made: Trained, data: str) -> Told:
    notes = made.notes
    sizes, lines = notes.sizes, []
    if made.again:
        lines.append(f"{made.folder} is this backbone already, and it is whole: nothing was trained.")
    else:
        clips = "" if sizes.frames is None else f" and {counted(sizes.frames, 'frame')}"
        lines.append(
            f"{made.folder}: a backbone of {sizes.size} px{clips} for {counted(len(notes.asked.classes), 'class')}"
        )
    values: dict[str, Any] = {"backbone": made.folder, "size": sizes.size, "again": made.again}
    for name in ("autoencoder", "denoiser"):
        stage = getattr(notes, name)
        if stage is None:  # the autoencoder of a tuned backbone stays as it is
            continue
        held = [held for _, _, held in stage.history if held is not None]
        loss = f", smallest loss on held-out images {min(held):.4f} at step {stage.best:,}" if held else ""
        stopped = ", where it stopped because this loss had turned" if stage.turned else ""
        steps = (
            f"{counted(stage.steps, 'step')} of {stage.parameters / 1e6:.1f} M parameters in {spoken(stage.seconds)}"
        )
        lines.append(f"{name}: {steps}{loss}{stopped}")
        values[name] = {"steps": stage.steps, "best": stage.best, "turned": stage.turned, "seconds": stage.seconds}
    if notes.psnr_held_out_db is not None:
        lines.append(
            f"reconstructions: {notes.psnr_held_out_db:.1f} dB on held-out images, {notes.psnr_train_db:.1f} dB on others"
        )
        values["psnr_held_out_db"] = notes.psnr_held_out_db
    lines.append(f"Look at {made.folder / 'preview.png'}")
    again = [
        "dap",
        "distill",
        "--data",
        data,
        "--backbone",
        str(made.folder),
        "--ipc",
        "10",
        "--out",
        free("runs/mine"),
    ]
    again += [] if sizes.frames is None else ["--frames", str(sizes.frames), "--method", "dap"]
    lines.append(f"Next: {shlex.join(again)}")
    return Told("\n".join(lines), values)
