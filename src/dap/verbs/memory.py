"""Makes what judging needs of sets and test images that a Python user has in memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dap import imagenet
from dap.base.errors import DapError
from dap.base.parsing import brief, counted
from dap.data.real.base import Source
from dap.data.real.memory import UNPLACED, MemorySource, by_class, names_of
from dap.data.real.names import composed, select, some
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.plan import JudgingPlan, Loaded


def is_in_memory(thing: Any) -> bool:
    """Whether the thing is images in memory, and not a folder, a name, or an opened source or set."""
    return thing is not None and not isinstance(thing, (str, Path, Source, DistilledSet))


def names_given(classes: Any) -> tuple[str, ...] | None:
    """The names that a user gives to classes: a list of names, or the name of a subset of ImageNet, which is expanded.

    Raises:
        DapError: it is neither, a name is no text, or a class is named twice.
    """
    if classes is None:
        return None
    listed = classes if isinstance(classes, str) else tuple(classes) if isinstance(classes, Iterable) else ()
    if not listed or (odd := [name for name in listed if not isinstance(name, str)]):
        told = brief(odd[0]) if listed else brief(classes)
        raise DapError(f"classes takes a list of class names, or the name of a subset of ImageNet, not {told}.")
    names = tuple(map(composed, imagenet.expand(listed) or ()))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DapError(
            f"{some(map(repr, twice))} stands several times in classes, so images would be mixed; name each class once."
        )
    return names


By = Literal["name", "value", "place"]
"""How number labels find their classes among class names: see `named`."""


def named(images: Any, class_names: Sequence[str] | None, by: By = "name") -> dict[str, Any]:
    """Images by class name.

    Args:
        images: images in memory as `data.real.memory.by_class` takes them.
        class_names: the names of the classes in label order. None: the names that `by_class` gives.
        by: how labels that are only numbers find their classes. "place": a label is a position in `class_names`, which the user
            gave for these labels; of images that have names, these classes are taken. "value": the class names are numbers that
            nobody named, so a label is itself the name of its class. "name": the classes were named elsewhere. A label is then a
            position too, or the name of its class where all labels are names; one of them alone must be possible.

    Raises:
        DapError: `by_class` does not take the images, or a label finds no class or could mean two.
    """
    found = by_class(images, class_names)
    if class_names is None:
        return found
    if isinstance(images, Mapping) or names_of(images) is not None:
        if by != "place":
            return found
        chosen, places = select(list(found), class_names, "the images in memory")
        return dict(zip(chosen, (list(found.values())[place] for place in places), strict=True))
    places = {label: class_names[int(label)] for label in found if int(label) < len(class_names)}
    values = {label: label for label in found if label in class_names}
    ways = [places] if by != "value" and len(places) == len(found) else []
    if by != "place" and len(values) == len(found) and values not in ways:
        ways.append(values)
    if not ways:
        unknown = next(label for label in found if label not in (values if by == "value" else places))
        told = "called" if by == "value" else f"numbered from 0 to {len(class_names) - 1}:"
        raise DapError(
            f"The images in memory have the label {unknown}, and the {len(class_names)} classes are {told} "
            f"{', '.join(class_names)}. Give sets and test images the same labels, or the names of the labels 0, 1, … as classes."
        )
    if len(ways) > 1:
        label = next(label for label in found if places[label] != label)
        raise DapError(
            f"The label {label} of the images in memory may mean the class {label}, or {places[label]}, the class in place "
            f"{label} counted from 0. Give the names of the labels 0, 1, … as classes, or a mapping from class name to images."
        )
    return {ways[0][label]: mine for label, mine in found.items()}


class HeldSets:
    """Writes sets that are in memory to a folder. The folder is deleted when this object is deleted.

    Judging keeps its results beside the images of a set, so a set needs a folder. The images become PNG files, so their
    values are rounded to multiples of 1/255.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dap-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count, self._numbered = 0, set[Path]()

    def numbered(self, made: DistilledSet) -> bool:
        """Whether the names of the classes of a set are numbers that nobody named: the labels of images in memory."""
        unplaced = ((made.recipe or {}).get("data") or {}).get("path") == UNPLACED
        return made.path in self._numbered or (unplaced and all(map(is_number, made.class_names)))

    def set_of(self, images: Any, class_names: Sequence[str] | None, by: By = "name") -> DistilledSet:
        """Write a distilled set of these images, and open it.

        Args:
            images: images in memory as `data.real.memory.by_class` takes them, all of one size.
            class_names: the names of the classes, if the labels are only numbers. None: the numbers are the names.
            by: as for `named`.

        Raises:
            DapError: `named` does not take the images, the user named more classes than there are labels, the classes have
                different numbers of images, or `MemorySource` does not take an image.
        """
        found = named(images, class_names, by)
        if by == "place" and class_names is not None and len(found) < len(class_names):
            raise DapError(
                f"classes names {counted(len(class_names), 'class')}, and the images in memory have only {len(found)}: "
                f"{', '.join(found)}. Name as many classes as there are, in label order."
            )
        counts = Counter({name: len(mine) for name, mine in found.items()})
        if len(set(counts.values())) != 1:
            told = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            raise DapError(f"A set in memory needs the same number of images for every class, not {told or 'none'}.")
        ipc = next(iter(counts.values()))
        opened = MemorySource(found, size=_side(next(iter(found.values()))[0]))
        made = DistilledSet.blank(self._folder / f"set{self._count}", opened.class_names, ipc)
        self._count += 1
        if class_names is None and not isinstance(images, Mapping) and names_of(images) is None:
            self._numbered.add(made.path)
        for label in range(len(opened.class_names)):
            for slot, image in enumerate(opened.images(label, range(ipc))):
                made.add(label, slot, image)
        return made


def is_number(name: str) -> bool:
    """Whether the name of a class is a label without a name."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def loaded_from(data: Any, class_names: Sequence[str], plan: JudgingPlan, by: By = "name") -> Loaded:
    """What judging by these test images needs.

    The data have no training part. So the images of the sets are not measured against real training images.

    Args:
        data: opened test images, or images in memory as `data.real.memory.by_class` takes them. Opened ones are taken at the
            size of the protocol, and made square as they were opened.
        class_names: the names of the classes, if the labels in memory are only numbers.
        plan: how to judge.
        by: as for `named`.

    Raises:
        DapError: the plan asks for a validation part or for a measure of the user's own, or `named` or `MemorySource` does not
            take the images.
    """
    if plan.on == "validation":
        raise DapError("Only data that are given by name or folder have a validation part; give the folder as data.")
    if plan.measures:
        raise DapError("Measures of your own need real training images; give the data by name or folder.")
    found = None if isinstance(data, Source) else named(data, class_names, by)

    def opened(split: Literal["train", "validation", "test"], size: int) -> Source:
        del split  # the data have only test images, and judging asks for no others
        return data.fitted(size, data.fit) if found is None else MemorySource(found, size=size, fit="crop-bilinear")

    return Loaded(plan, opened, None)


def _side(image: Any) -> int:
    """The width of an image in pixels."""
    return int(image.shape[-1]) if isinstance(image, (Tensor, np.ndarray)) else image.size[0]
