"""What training a backbone and tuning one have in common: the images, what is asked of a folder, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from dap.base.devices.vram import free
from dap.base.errors import DapError
from dap.base.files import check_folder, in_use
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.choices import Data
from dap.data.real.counts import counts_of, total_of
from dap.data.real.sources import Source
from dap.data.real.stored.gathering import stored
from dap.pretraining.encoding import usual_versions
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked, Notes, read_notes
from dap.pretraining.pictures import Pictures
from dap.pretraining.planning import SMALLEST
from dap.recipe import Recipe
from dap.verbs.options import Machine, images_budget
from dap.verbs.understood import check_out
from dap.workshop import Workshop

LONGEST = 60 * 24 * 30.0
"""The largest number of minutes."""

LEAST_OF_CLASS, LEAST = 5, 30
"""So many images must each class have, and all classes together. Such a backbone knows its images by heart; see `ADVISED`."""

ADVISED = 500
"""With fewer images than this a backbone mostly learns them by heart, and the user is told."""

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


@dataclass(frozen=True)
class Real:
    """The real images of a training.

    Attributes:
        workshop: what opened them.
        data: the choice of the images, without a size.
        whole: all training images.
    """

    workshop: Workshop
    data: Data
    whole: Source

    def parts(self, side: int) -> tuple[Source, Source]:
        """The images that are trained on, and those that are held out, at this side."""
        held_out = 0.1 if total_of(self.whole) < MANY else 0.05
        data = self.data.model_copy(update={"size": side, "held_out": held_out})
        return self.workshop.source(data, "train"), self.workshop.source(data, "validation")

    def asked(self, parts: tuple[Source, Source], **more: Any) -> Asked:
        """What the training is asked for."""
        images, held_out = map(total_of, parts)
        data = self.whole.fingerprint(sized=False)
        return Asked(classes=list(self.whole.class_names), data=data, images=images, held_out=held_out, **more)


@dataclass(frozen=True)
class Ready:
    """A training of a backbone that can begin, go on, or is done.

    Attributes:
        real: the real images.
        parts: those that are trained on, and those that are held out, at the side of the backbone.
        side: that side in px.
        asked: what is asked for.
        before: the notes of a training that was begun in the folder; None: there is none.
        made: the backbone, if an earlier call has made it.
    """

    real: Real
    parts: tuple[Source, Source]
    side: int
    asked: Asked
    before: Notes | None
    made: Trained | None


def real_images(
    workshop: Workshop,
    data: str | Path,
    out: Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    frames: int | None = None,
) -> Real:
    """Open the real images, and check that there is enough to learn from.

    Raises:
        DapError: there is not, there are no such data, or `out` lies among them.
    """
    values = {"path": str(data), "classes": classes, "size": size, "split": split, "frames": frames}
    values |= {} if max_bad_fraction is None else {"max_bad_fraction": max_bad_fraction}
    wanted = Recipe.parse({"data": values}).data
    whole = workshop.whole(wanted)
    check_out(workshop, wanted, out)
    check_images(whole)
    return Real(workshop, wanted, whole)


def pictures_of(parts: tuple[Source, Source], flip: bool, machine: Machine) -> tuple[Pictures, Pictures]:
    """The images of both parts, read once and kept as the budget allows."""
    budget = images_budget(machine)
    train, held_out = (Pictures(*stored(part, budget)[:2], flip=flip, frames=part.frames) for part in parts)
    return train, held_out


def check_minutes(minutes: float) -> None:
    """Check a number of minutes.

    Raises:
        DapError: it is not above 0, or larger than `LONGEST`.
    """
    if not 0 < minutes <= LONGEST:
        raise DapError(f"--minutes takes a number above 0 and up to {LONGEST:,.0f}, such as 30, not {minutes:g}.")


def warn_of_few(images: int, watcher: Watcher) -> None:
    """Tell that so few images are learned by heart, if they are few."""
    if images < ADVISED:
        watcher.note(
            f"There are only {images} images to train on, so the backbone will mostly know them by heart: its samples will be "
            f"near-copies. With {ADVISED} images or more this is better."
        )


def latents_budget(machine: Machine, device: torch.device) -> tuple[int, str]:
    """How many bytes all latents may take together, half of what the flag says or of what is free, and the flag."""
    if device.type != "cuda":
        return images_budget(machine).memory // 2, "--memory"  # the other half is for the images
    torch.cuda.empty_cache()  # what trials have left
    return free(device) // 2, "--vram"


def fewer_versions(versions: int, asked: Asked, sizes: Sizes, watcher: Watcher) -> int | None:
    """The number of versions in which images are encoded, where it is smaller than usual, which the user is told; else None."""
    if versions == usual_versions(asked, sizes):
        return None
    said = "one version" if versions == 1 else f"{versions} versions"
    watcher.note(f"Each image is encoded in {said}, as more would take too large a part of --minutes or of the memory.")
    return versions


def begun(out: Path) -> Notes | None:
    """The notes of a training that was begun in the folder, or is done.

    Raises:
        DapError: the folder holds something else, or is a file.
    """
    check_folder(out)
    notes = read_notes(out) if out.is_dir() else None
    if notes is None and in_use(out):
        raise DapError(f"{shown(out)} holds files already, which are no training of a backbone; choose another --out.")
    return notes


def check_images(source: Source) -> None:
    """Check that there is enough to learn from.

    Raises:
        DapError: there is not.
    """
    names = list(source.class_names)
    counts = dict(zip(names, counts_of(source), strict=True))
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


def made_before(out: Path, before: Notes | None, asked: Asked) -> Trained | None:
    """What an earlier call has made of the same; None if there is still something to train.

    Args:
        out: the folder.
        before: what `begun` gave for it.
        asked: what is asked for now.

    Raises:
        DapError: the training in the folder was asked for something else; the message names the first difference.
    """
    if before is None:
        return None
    _check_same(out, before.asked, asked)
    return Trained(out, before, again=True) if before.done and (out / "model_index.json").is_file() else None


def _check_same(out: Path, before: Asked, asked: Asked) -> None:
    for name, value in asked:
        was = getattr(before, name)
        if was != value:
            flag = "--" + name.replace("_", "-")
            if name == "template":
                was, value = (repr(one) if one is not None else "of the backbone's card" for one in (was, value))
            if name == "spoken":
                _refuse_other_names(out, was or before.classes, value or asked.classes)
            others = {"data": "other images", "classes": "other classes", "backbone": "another backbone"}
            now = f"now there is no {flag}" if value is None else f"now it is {value}"
            began = f"no {flag}" if was is None else f"{flag} {was}"
            said = others.get(name, f"{began}, and {now}")
            raise DapError(
                f"The training in {shown(out)} was begun with {said}. Give the same again to go on with it, or choose another "
                "--out."
            )


def _refuse_other_names(out: Path, was: Sequence[str], now: Sequence[str]) -> NoReturn:
    """Refuse a training whose prompts say other names: an earlier version took the names of the folders as they are."""
    old, new = next(pair for pair in zip(was, now, strict=True) if pair[0] != pair[1])
    raise DapError(
        f"The training in {shown(out)} is of another version of dap: its prompts say {old!r}, and whatever uses the backbone "
        f"asks it for {new!r}. Choose another --out to train on these names."
    )
