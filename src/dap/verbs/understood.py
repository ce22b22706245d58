"""What was understood of the real images is told, and checked, before any work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.parsing import counted, shown
from dap.choices import Data
from dap.data.real.clips.finding import locate_clips
from dap.data.real.decode import Fit
from dap.data.real.finding.listed import FileSource, shared
from dap.data.real.finding.outputs import check_outside_source
from dap.data.real.held import OfClasses, Part
from dap.data.real.layouts import locate
from dap.data.real.sources import Source, open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.plan import Open
from dap.workshop import Workshop

log = logging.getLogger("dap")

_TOLD = "these are the training images"


def tell_of(workshop: Workshop, data: Data) -> None:
    """Tell what was understood of the training and the test images.

    Test images that cannot be opened are told too, and are no error: a set can be made without them. Neither are test images
    that are the training images as a whole, which `check_apart` refuses.

    Raises:
        DapError: the training images cannot be opened, or some test images are training images.
    """
    workshop.whole(data)
    if workshop.objects.source is None:
        try:
            test = workshop.whole(data, "test")
        except DapError as error:
            workshop.tell(f"test: none ({error})")
            return
        if (said := _same(workshop, data)) is not None and _TOLD not in test.notes:
            test.notes += (_TOLD,)  # once, like the line about the images
            workshop.tell(f"test: {said}")
        _check_shared(workshop, data)


def check_out(workshop: Workshop, data: Data, out: Path) -> None:
    """Check that what is written does not go among the images of a data set, where it would be read as some of them.

    Raises:
        DapError: it would.
    """
    check_outside_source(out, workshop.whole(data))


def check_apart(workshop: Workshop, data: Data) -> None:
    """Check that a set would not be judged on the images it was drawn from.

    Raises:
        DapError: the training and the test images are the same files, and the recipe does not name both with `split`; or some
            test images are training images.
    """
    if workshop.objects.source is not None:
        return
    if (said := _same(workshop, data)) is not None:
        raise DapError(f"T{said[1:]}")
    _check_shared(workshop, data)


def _check_shared(workshop: Workshop, data: Data) -> None:
    """Raise `DapError` where some test images are training images, by their paths. The same images as a whole are `_same`'s."""
    train, test = workshop.whole(data), workshop.whole(data, "test")
    if train.place == test.place or not (isinstance(train, FileSource) and isinstance(test, FileSource)):
        return
    if both := shared(test, train):
        what = f"{counted(len(both), 'test image')} of {data.path}, such as {shown(both[0])},"
        raise DapError(
            f"{what} {'are training images' if len(both) > 1 else 'is a training image'} too, so a set would be judged by images "
            "that it is made of. Give each split its own images with --split train=FOLDER,test=FOLDER, or lists of files "
            f"in place of the folders, as paths relative to {data.path}"
        )


def tell_changed(made: DistilledSet, recorded: Mapping[str, Any], open: Open) -> str:
    """Warn where the place of the data that a set was made of holds other training images by now, or is another folder.

    Args:
        made: the set.
        recorded: what the recipe of the set says of its real images, with the path.
        open: opens the real images that the set is judged by.

    Returns:
        The sentence of the warning for the report; "" where the images are the same, or nothing is known.
    """
    inputs, size = made.noted("inputs.json") or {}, recorded.get("size")
    known = inputs.get("data")
    if not isinstance(known, str) or not isinstance(size, int):
        return ""

    def candidates() -> Iterator[Source]:
        train = open("train", size)
        yield train.fitted(size, "crop")
        if (inputs.get("objects") or {}).get(
            "source"
        ):  # an object has any fit, and its classes may have been chosen later
            split, held_out = recorded.get("split") or {}, recorded.get("held_out")
            chosen = {name: place for name, place in split.items() if place is not None}
            every = open_source(recorded["path"], size=size, chosen=chosen, frames=made.frames)
            later = OfClasses(every, made.class_names)
            for one in (train, Part(later, "train", held_out) if held_out else later):
                yield from (one.fitted(size, fit) for fit in get_args(Fit))

    if any(one.fingerprint() == known for one in candidates()):
        return ""
    now, place = next(candidates()).fingerprint()[:12], recorded["path"]
    said = (
        f"made of other real images than {place} holds: their fingerprint is {now}… now and was {known[:12]}… then, as "
        "inputs.json says. They have changed, another folder has this path, or an earlier version made the set"
    )
    log.warning("%s was %s; --data FOLDER names other ones", made.path, said)
    return f"The set was {said}. Its results are of the images that are there now."


def _same(workshop: Workshop, data: Data) -> str | None:
    """A sentence that says why the test images are the training images; None where they are others, and where the recipe says so
    with `split`."""
    if data.split is not None and len(data.split.given()) > 1:
        return None
    train, test = workshop.whole(data), workshop.whole(data, "test")
    if train.place is None or train.place != test.place:
        return None
    given = {} if data.split is None else data.split.given()
    said, value = next(iter(given.items()), ("test", "."))
    why, advice = "the folder is called as a test split and holds no splits", ""
    one, other = (_named(data, split, given) for split in ("train", "test"))
    if one != other:
        why = f"{shown(other)} and {shown(one)} are one and the same, because a link leads from one to the other"
        value = value if given else shown(one)
    elif given:
        why = f"--split {said}={value} names its {_CALLED['test' if said == 'train' else 'train']} images"
        advice = _without(data, said, one)
    return (
        f"the test images of {data.path} would be its training images: {why}. {advice}Give other {_CALLED[said]} images with "
        f"--split {said}=FOLDER, a path relative to {data.path}; to test on the training images all the same, give --split "
        f"train={value},test={value}."
    )


_CALLED = {"train": "training", "test": "test"}


def _without(data: Data, said: str, same: str) -> str:
    """The advice to leave `--split` out, where this split is then found in another place than the other one, which lies in
    `same`; empty where it is not."""
    try:
        found = {split: _named(data, split, {}) for split in _CALLED}
    except DapError:  # it is not plain to see where they lie
        return ""
    right = found[said] != same and found["train" if said == "test" else "test"] == same
    return f"Leave --split out, which finds the {_CALLED[said]} images in {shown(found[said])}. " if right else ""


def _named(data: Data, split: str, chosen: Mapping[str, str]) -> str:
    """The folder or the first file of a split by the name that it has in the data, links not resolved.

    Args:
        data: the real images.
        split: "train" or "test".
        chosen: where splits lie, by the user's own word.

    Raises:
        DapError: the split is not found.
    """
    path = expanded(data.path)
    layout = (locate if data.frames is None else locate_clips)(path, split, chosen or None)
    place = layout.files[0] if layout.files else layout.root
    return os.path.relpath(place, path)
