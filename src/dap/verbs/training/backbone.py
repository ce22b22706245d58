"""`dap train-backbone`: an autoencoder and a class-conditional denoiser, trained on the user's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.errors import DapError, suggest
from dap.base.files import check_folder, in_use, locked
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.data.real.sources import EMBEDDED, Source
from dap.data.real.stored.gathering import stored
from dap.pretraining.notes import Asked, Notes, Stage, read_notes, write_notes
from dap.pretraining.pictures import Pictures
from dap.pretraining.planning import SHARE, Wish, chosen, chosen_side, steps_in
from dap.pretraining.training import Training
from dap.recipe import Recipe
from dap.verbs.distill import open_workshop
from dap.verbs.options import Machine, images_budget, permitted
from dap.verbs.understood import check_out

KINDS = ("dit", "unet")

LEAST_OF_CLASS, LEAST = 5, 30
"""So many images must each class have, and all classes together. Such a backbone knows its images by heart; see `ADVISED`."""

ADVISED = 500
"""With fewer images than this a backbone mostly learns them by heart, and the user is told."""

SMALLEST = 16
"""The smallest side in px of an image."""

LONGEST = 60 * 24 * 30.0
"""The largest number of minutes."""

MANY = 5000
"""Of so many images or more 5 % are held out, of fewer 10 %."""


@dataclass(frozen=True)
class Trained:
    """A trained backbone.

    Attributes:
        folder: its folder, which `load_backbone` opens.
        notes: what was chosen, and how the training went; they are in training.json too.
        again: whether the backbone was there before.
    """

    folder: Path
    notes: Notes
    again: bool = False


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
    seed: int = 0,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Trained:
    """Train a backbone from nothing on a folder of images, for `dap distill --backbone`.

    An `AutoencoderKL` is trained first, then a class-conditional denoiser of its latents. A part of the training images is
    held out: 10 % of fewer than 5,000 images, else 5 %. They are the images that `--held-out` of a recipe holds out. A stage
    ends early when its loss on them turns, and keeps its best averaged weights. Test images are never read.

    An interrupted call goes on from its checkpoint when it is made again, and gives the same bytes.

    Args:
        data: the real images: a folder of class folders, or "fashion-mnist".
        out: the folder to write. It gets an ordinary diffusers pipeline, card.yaml, classes.json, training.json, and preview.png,
            which shows every few minutes what the backbone makes.
        kind: "dit" (a `DiTTransformer2DModel` that is told labels) or "unet" (a small Stable Diffusion that is told prompts).
        minutes: the time. Sizes and numbers of steps are chosen for it by a measured rate.
        size: the side of the images in px, a multiple of 16. Default: that of the images, at most 64 on a CPU, 128 on a GPU,
            and 256 on a GPU in 120 minutes or more.
        steps: steps of the denoiser. Default: as many as fit the time.
        autoencoder_steps: steps of the autoencoder. Default: as many as fit the time.
        flip: show mirror images too. Give False where left and right matter, as in text.
        classes: the classes to use, in label order, or the name of a subset of ImageNet. Default: all classes.
        max_bad_fraction: the largest fraction of the real images that may be broken; by default 0.01.
        split: where the splits lie, as `data.split` of a recipe: "train=FOLDER,test=FOLDER".
        seed: decides the first weights and all draws.
        machine: the device, the cache, the budgets and the CPU threads.
        watcher: is told how the training goes on.

    Raises:
        DapError: there is no such data or kind, there are too few or too small images, the folder holds something else, or the
            time is too short.
        OSError: the disk takes no more. Run the same again.
    """
    out = Path(out)
    _check_choices(kind, minutes, size)
    check_folder(out)
    before = _begun(out)
    workshop = open_workshop(machine, watcher=watcher)
    values = {"path": str(data), "classes": classes, "size": size, "split": split}
    values |= {} if max_bad_fraction is None else {"max_bad_fraction": max_bad_fraction}
    wanted = Recipe.parse({"data": values}).data
    whole = workshop.whole(wanted)
    _check_images(whole)
    if wanted.path != EMBEDDED:
        check_out(workshop, wanted, out)
    total = sum(whole.count(label) for label in range(len(whole.class_names)))
    fraction = 0.1 if total < MANY else 0.05
    device = device_of(machine.device)
    side = size or chosen_side(whole.side() or 32, minutes, device)
    wanted = wanted.model_copy(update={"size": side, "held_out": fraction})
    parts = [workshop.source(wanted, "train"), workshop.source(wanted, "validation")]
    many, held = (sum(part.count(label) for label in range(len(part.class_names))) for part in parts)
    asked = Asked(
        kind="unet" if kind == "unet" else "dit",
        size=size,
        minutes=minutes,
        autoencoder_steps=autoencoder_steps,
        steps=steps,
        seed=seed,
        flip=flip,
        classes=list(whole.class_names),
        data=whole.fingerprint(sized=False),
        images=many,
        held_out=held,
    )
    if before is not None:
        _check_same(out, before.asked, asked)
        if before.done and (out / "model_index.json").is_file():
            return Trained(out, before, again=True)
    with locked(out):
        notes = before or _planned(asked, side, machine, watcher)
        write_notes(out, notes)
        if before is not None:
            watcher.note(f"Goes on with the training in {shown(out)}.")
        budget = images_budget(machine)
        train, held_out = (Pictures(*stored(part, budget)[:2], flip=flip) for part in parts)
        training = Training(out, train, held_out, notes, device, watcher, **_licence(whole))
        return Trained(out, training.run())


def _check_choices(kind: str, minutes: float, size: int | None) -> None:
    if kind not in KINDS:
        raise DapError(f"There is no kind {kind!r} of backbone to train. {suggest(kind, KINDS)}")
    if not 0 < minutes <= LONGEST:
        raise DapError(f"--minutes takes a number above 0 and up to {LONGEST:,.0f}, such as 30, not {minutes:g}.")
    if size is not None and (size < SMALLEST or size % 16 or size > 1024):
        raise DapError(f"--size takes a multiple of 16 from 16 to 1024, such as 64, not {size}.")


def _begun(out: Path) -> Notes | None:
    """The notes of a training that was begun in the folder, or is done.

    Raises:
        DapError: the folder holds something else.
    """
    notes = read_notes(out) if out.is_dir() else None
    if notes is None and in_use(out):
        raise DapError(f"{shown(out)} holds files already, which are no training of a backbone; choose another --out.")
    return notes


def _check_images(source: Source) -> None:
    """Check that there is enough to learn from.

    Raises:
        DapError: there is not.
    """
    names = list(source.class_names)
    counts = {name: source.count(label) for label, name in enumerate(names)}
    if len(names) < 2:
        raise DapError(
            f"{source.name} has one class, {names[0]!r}, and a set to train on needs at least 2; put the images of each class "
            "into a folder of its own."
        )
    few = {name: count for name, count in counts.items() if count < LEAST_OF_CLASS}
    if few or sum(counts.values()) < LEAST:
        name, count = next(iter(few.items()), ("", 0))
        said = f"class {name!r} has {count}" if few else f"there are {sum(counts.values())} in all"
        raise DapError(
            f"{source.name} has too few images to train a backbone: {said}. At least {LEAST_OF_CLASS} in each class and {LEAST} "
            f"in all are needed, and {ADVISED} or more are better; add images, or name other --classes."
        )
    small = [size for size in source.sizes() if min(size) < SMALLEST]
    if small:
        width, height = small[0]
        raise DapError(
            f"{source.name} has images of {width} × {height} px; a backbone is trained on images of at least {SMALLEST} px. Take "
            "larger ones."
        )


def _check_same(out: Path, before: Asked, asked: Asked) -> None:
    """Check that the training in the folder was asked for the same.

    Raises:
        DapError: it was not; the message names the first difference.
    """
    for name, value in asked:
        was = getattr(before, name)
        if was != value:
            flag = "--" + name.replace("_", "-")
            said = {"data": "other images", "classes": "other classes"}.get(
                name, f"{flag} {was}, and now it is {value}"
            )
            raise DapError(
                f"The training in {shown(out)} was begun with {said}. Give the same again to go on with it, or choose another "
                "--out."
            )


def _planned(asked: Asked, side: int, machine: Machine, watcher: Watcher) -> Notes:
    """The notes of a new training: the sizes, and the steps of its first stage."""
    device = device_of(machine.device)
    if asked.images < ADVISED:
        watcher.note(
            f"There are only {asked.images} images to train on, so the backbone will mostly know them by heart: its samples will "
            f"be near-copies. With {ADVISED} images or more this is better."
        )
    wish = Wish(asked.kind, asked.images, len(asked.classes), side, asked.minutes, device)
    sizes, reason, seconds = chosen(wish)
    steps = asked.autoencoder_steps or steps_in(wish.seconds * SHARE, seconds, "autoencoder")
    watcher.note(f"Chosen: {reason}.")
    return Notes(
        asked=asked,
        sizes=sizes,
        reason=reason,
        device=str(device),
        autoencoder=Stage(planned=steps),
        denoiser=None if asked.steps is None else Stage(planned=asked.steps),
    )


def _licence(source: Source) -> dict[str, str]:
    return {"licence": source.licence} if source.licence else {}
