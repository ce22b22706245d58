"""Makes what judging needs of sets and test images that a Python user has in memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.memory import MemorySource, by_class
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.plan import JudgingPlan, Loaded


def is_in_memory(thing: Any) -> bool:
    """Whether the thing is images in memory, and not a folder, a name, or an opened source or set."""
    return thing is not None and not isinstance(thing, (str, Path, Source, DistilledSet))


def named(images: Any, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Images by class name. If the labels are only numbers, each number is a position in `class_names`.

    Args:
        images: images in memory as `data.real.memory.by_class` takes them.
        class_names: the names of the classes in label order. None: the names that `by_class` gives.

    Raises:
        DapError: `by_class` does not take the images, or a label is not the position of a name.
    """
    found = by_class(images)
    if class_names is None or isinstance(images, Mapping) or hasattr(images, "classes"):
        return found
    if unknown := [label for label in found if not 0 <= int(label) < len(class_names)]:
        raise DapError(
            f"The images in memory have the label {unknown[0]}, and the {len(class_names)} classes are numbered from 0 to "
            f"{len(class_names) - 1}: {', '.join(class_names)}."
        )
    return {class_names[int(label)]: mine for label, mine in found.items()}


class HeldSets:
    """Writes sets that are in memory to a folder. The folder is deleted when this object is deleted.

    Judging keeps its results beside the images of a set, so a set needs a folder. The images become PNG files, so their
    values are rounded to multiples of 1/255.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dap-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count = 0

    def set_of(self, images: Any, class_names: Sequence[str] | None) -> DistilledSet:
        """Write a distilled set of these images, and open it.

        Args:
            images: images in memory as `data.real.memory.by_class` takes them, all of one size.
            class_names: the names of the classes, if the labels are only numbers. None: the numbers are the names.

        Raises:
            DapError: the classes have different numbers of images, or `MemorySource` does not take an image.
        """
        found = named(images, class_names)
        counts = Counter({name: len(mine) for name, mine in found.items()})
        if len(set(counts.values())) != 1:
            told = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            raise DapError(f"A set in memory needs the same number of images for every class, not {told or 'none'}.")
        ipc = next(iter(counts.values()))
        opened = MemorySource(found, size=_side(next(iter(found.values()))[0]))
        made = DistilledSet.blank(self._folder / f"set{self._count}", opened.class_names, ipc)
        self._count += 1
        for label in range(len(opened.class_names)):
            for slot, image in enumerate(opened.images(label, range(ipc))):
                made.add(label, slot, image)
        return made


def loaded_from(data: Any, class_names: Sequence[str], plan: JudgingPlan) -> Loaded:
    """What judging by these test images needs.

    The data have no training part. So the images of the sets are not measured against real training images.

    Args:
        data: opened test images, or images in memory as `data.real.memory.by_class` takes them.
        class_names: the names of the classes, if the labels in memory are only numbers.
        plan: how to judge.

    Raises:
        DapError: the plan asks for a validation part or for a measure of the user's own, or `MemorySource` does not
            take the images.
    """
    if plan.on == "validation":
        raise DapError("Only data that are given by name or folder have a validation part; give the folder as data.")
    if plan.measures:
        raise DapError("Measures of your own need real training images; give the data by name or folder.")
    found = None if isinstance(data, Source) else named(data, class_names)

    def opened(split: Literal["train", "validation", "test"], size: int) -> Source:
        del split  # the data have only test images, and judging asks for no others
        return data if found is None else MemorySource(found, size=size, fit="crop-bilinear")

    return Loaded(plan, opened, None)


def _side(image: Any) -> int:
    """The width of an image in pixels."""
    return int(image.shape[-1]) if isinstance(image, (Tensor, np.ndarray)) else image.size[0]
