"""`dap train-backbone`: an autoencoder and a class-conditional denoiser, trained on the user's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.alone import locked
from dap.base.errors import DapError, suggest
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.imagenet import spoken
from dap.pretraining.encoding import SMALLEST, encoding_of, versions_in
from dap.pretraining.networks import autoencoder
from dap.pretraining.notes import Notes, Stage, write_notes
from dap.pretraining.planning import (
    SHARE,
    Wish,
    chosen,
    chosen_side,
    denoiser_seconds_left,
    denoiser_steps,
    steps_in,
)
from dap.pretraining.training import Training
from dap.pretraining.words import check_names
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

KINDS = ("dit", "unet")


@permitted
def train_backbone(
    data: str | Path,
    out: str | Path,
    *,
    kind: str = "dit",
    minutes: float = 30,
    size: int | None = None,
    steps: int | None = None,
    autoencoder_steps: int | None = None,
    flip: bool = True,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    frames: int | None = None,
    seed: int = 0,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Trained:
    """Train a backbone from nothing on a folder of images or clips, for `dap distill --backbone`.

    An `AutoencoderKL` is trained first, then a class-conditional denoiser of its latents. A part of the training images is
    held out: 10 % of fewer than 5,000 images, else 5 %. They are the images that `--held-out` of a recipe holds out. A stage
    ends early when its loss on them turns, and keeps its best averaged weights. Test images are never read.

    An interrupted call goes on from its checkpoint when it is made again, and gives the same bytes.

    Args:
        data: the real images: a folder of class folders, or "fashion-mnist".
        out: the folder to write. It gets an ordinary diffusers pipeline, card.yaml, classes.json, training.json, and preview.png,
            which shows every few minutes what the backbone makes.
        kind: "dit" (a `DiTTransformer2DModel` that is told labels) or "unet" (a small Stable Diffusion that is told prompts,
            which say the names of classes as every later run says them: "tench" for n01440764, "sea lion" for sea_lion).
        minutes: the time. Sizes and numbers of steps are chosen for it by a measured rate.
        size: the side of the images in px, a multiple of 16. Default: that of the images, at most 64 on a CPU, 128 on a GPU,
            and 256 on a GPU in 120 minutes or more.
        steps: steps of the denoiser. Default: as many as fit the time.
        autoencoder_steps: steps of the autoencoder. Default: as many as fit the time.
        flip: show mirror images too. Give False where left and right matter, as in text.
        classes: the classes to use, in label order, or the name of a subset of ImageNet. Default: all classes.
        max_bad_fraction: the largest fraction of the real images that may be broken; by default 0.01.
        split: where the splits lie, as `data.split` of a recipe: "train=FOLDER,test=FOLDER".
        frames: read the data as clips of so many frames, as `data.frames` of a recipe. The denoiser is then a Latte, and the
            autoencoder sees frames as images. None: the data are images.
        seed: decides the first weights and all draws.
        machine: the device, the cache, the budgets and the CPU threads.
        watcher: is told how the training goes on.

    Raises:
        DapError: there is no such data or kind, there are too few or too small images, the folder holds something else, the
            time is too short, or a "unet" could not tell the classes by their prompts.
        OSError: the disk takes no more. Run the same again.
    """
    out, device = Path(out), device_of(machine.device)
    wishes = {"kind": kind, "size": size, "minutes": minutes, "seed": seed, "flip": flip}
    wishes |= {"steps": steps, "autoencoder_steps": autoencoder_steps, "frames": frames}
    how = {"classes": classes, "max_bad_fraction": max_bad_fraction, "split": split}
    ready = opened(data, out, wishes, **how, machine=machine, watcher=watcher)
    if ready.made is not None:
        return ready.made
    with locked(out):
        notes = ready.before or planned(ready, machine, watcher)
        write_notes(out, notes)
        if ready.before is not None:
            watcher.note(f"Goes on with the training in {shown(out)}.")
        training = Training(out, *pictures_of(ready.parts, flip, machine), notes, device, watcher)
        training.licence = ready.real.whole.licence or training.licence
        return Trained(out, training.run())


def opened(
    data: str | Path,
    out: Path,
    wishes: Mapping[str, Any],
    *,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    **how: Any,
) -> Ready:
    """Open the images of a training, and what was made of it before. Nothing is written.

    Args:
        data, out, machine, watcher: as for `train_backbone`.
        wishes: its `kind`, `size`, `frames`, `minutes`, `seed`, `flip`, `steps` and `autoencoder_steps`.
        how: its other arguments.

    Raises:
        DapError: as `train_backbone`.
    """
    size, minutes, frames = wishes["size"], wishes["minutes"], wishes["frames"]
    _check_choices(wishes["kind"], minutes, size, frames)
    before = begun(out)
    real = real_images(open_workshop(machine, watcher=watcher), data, out, size=size, frames=frames, **how)
    side = size or chosen_side(real.whole.side() or 32, minutes, device_of(machine.device))
    parts = real.parts(side)
    asked = real.asked(parts, **wishes, spoken=_spoken(wishes["kind"], real.whole.class_names))
    return Ready(real, parts, side, asked, before, made_before(out, before, asked))


def _spoken(kind: str, class_names: Sequence[str]) -> list[str] | None:
    """What prompts call the classes, where this is not their names; None also where there are no prompts.

    Raises:
        DapError: the finished backbone could not be asked for one of them.
    """
    if kind != "unet":
        return None
    check_names(class_names)
    said = [spoken(name) for name in class_names]
    return None if said == list(class_names) else said


def _check_choices(kind: str, minutes: float, size: int | None, frames: int | None) -> None:
    if kind not in KINDS:
        raise DapError(f"There is no kind {kind!r} of backbone to train. {suggest(kind, KINDS)}")
    if frames is not None and kind != "dit":
        raise DapError(f"A backbone of clips (--frames) is told labels, and {kind} makes images; leave out --kind.")
    check_minutes(minutes)
    if size is not None and (size < SMALLEST or size % 16 or size > 1024):
        raise DapError(f"--size takes a multiple of 16 from 16 to 1024, such as 64, not {size}.")


def planned(ready: Ready, machine: Machine, watcher: Watcher) -> Notes:
    """The notes of a new training: the sizes, the steps of its first stage, and in how many versions images are encoded.

    Raises:
        DapError: the time is too short for any size, or the memory for the latents.
    """
    asked, side, device = ready.asked, ready.side, device_of(machine.device)
    warn_of_few(asked.images, watcher)
    wish = Wish(asked.kind, asked.images, len(asked.classes), side, asked.minutes, device, asked.frames)
    sizes, reason, seconds, step = chosen(wish)
    advice = "give more --minutes" + (" or a smaller --size" if sizes.size > SMALLEST else "")
    steps = asked.autoencoder_steps or steps_in(wish.seconds * SHARE, seconds, "autoencoder", advice)
    versions = versions_in(*latents_budget(machine, device), asked, sizes)
    notes = Notes(asked=asked, sizes=sizes, reason=reason, device=str(device), autoencoder=Stage(planned=steps))
    if asked.steps is not None:
        notes = notes.but(denoiser=Stage(planned=asked.steps))
    else:  # too few steps are found out now, and not when the autoencoder is trained
        encoding = encoding_of(autoencoder(sizes, 0).to(device).requires_grad_(False), asked, sizes, device, versions)
        denoiser_steps(notes, step, encoding, spent=steps * seconds, begun=False)
        left = denoiser_seconds_left(asked, steps * seconds, encoding)
        notes, versions = notes.but(reserved=left), encoding.versions
    watcher.note(f"Chosen: {reason}.")
    return notes.but(versions=fewer_versions(versions, asked, sizes, watcher))
