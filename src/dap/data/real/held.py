"""Some images of a source: those that are held out for validation, all other training images, those of some classes, or another
choice."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Self, final

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import check_one_of, counted
from dap.base.seeding import seed_of
from dap.data.real.base import Source
from dap.data.real.decode import Fit
from dap.data.real.names import select


class Chosen(Source):
    """Some images of another source. A subclass says which.

    Args:
        whole: the other source.
        what: which images these are, in words that tell two choices apart.
        counts: how many images of each class they are.
        names: the names of their classes, in label order. Default: those of the other source.
    """

    def __init__(self, whole: Source, what: str, counts: Sequence[int], names: Sequence[str] | None = None) -> None:
        self._whole, self._what = whole, what
        super().__init__(
            whole.name,
            whole.class_names if names is None else names,
            counts,
            size=whole.size,
            fit=whole.fit,
            max_bad_fraction=whole.max_bad_fraction,
            licence=whole.licence,
        )
        self.notes, self.place = whole.notes, (whole.place, what) if whole.place is not None else None
        self.root, self.frames, self.steady = whole.root, whole.frames, whole.steady

    @abstractmethod
    def _rows(self, label: int) -> Sequence[int]:
        """The indices in the other source of the images of a class, as many as were promised."""

    def _label(self, label: int) -> int:
        """The label in the other source of a class."""
        return label

    def fitted(self, size: int, fit: Fit) -> Self:
        twin = super().fitted(size, fit)
        twin._whole = self._whole.fitted(size, fit)
        return twin

    def _key(self, label: int, index: int) -> str:
        return self._whole._key(self._label(label), self._rows(label)[index])

    def _decode(self, label: int, index: int) -> Tensor:
        return self._whole._decode(self._label(label), self._rows(label)[index])

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        return self._whole._look(self._label(label), self._rows(label)[index])

    def _listing(self) -> Iterator[str]:
        yield self._what
        yield from self._whole._listing()


@final
class Part(Chosen):
    """One of two disjoint parts of another source, the same on every machine.

    In each class, a seeded draw of the held-out fraction, rounded up, is `validation`. The other images are `train`.
    The draw depends only on the name of the class and on its number of images.

    Args:
        whole: the source that is divided.
        which: the part to take.
        held_out: the fraction of each class that is `validation`, above 0 and below 1.

    Raises:
        DapError: there is no such part, or a class would have no image left in one of the parts.
    """

    def __init__(self, whole: Source, which: Literal["train", "validation"], held_out: float) -> None:
        check_one_of(which, ("train", "validation"), "Real images of which some are held out take a part")
        self._parts: list[list[int]] = []
        for label, name in enumerate(whole.class_names):
            count = whole.count(label)
            held = math.ceil(held_out * count)
            if not 0 < held < count:
                raise DapError(
                    f"held_out {held_out} leaves class {name!r} of {whole.name} ({counted(count, 'image')}) with an empty part; "
                    "choose another fraction or add images"
                )
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(0, name, "held out")))
            chosen = order[:held] if which == "validation" else order[held:]
            self._parts.append(sorted(chosen.tolist()))
        super().__init__(whole, f"{which} of {held_out}", list(map(len, self._parts)))

    def _rows(self, label: int) -> list[int]:
        return self._parts[label]


@final
class OfClasses(Chosen):
    """The images of some classes of another source, in an order of one's own.

    Args:
        whole: the other source.
        classes: the names of the classes in label order, as `names.select` takes them.

    Raises:
        DapError: a class is unknown or named twice.
    """

    def __init__(self, whole: Source, classes: Sequence[str]) -> None:
        names, self._labels = select(whole.class_names, classes, whole.name)
        counts = [whole.count(label) for label in self._labels]
        super().__init__(whole, f"classes {self._labels}", counts, names)
        self.opened = whole.opened  # the classes of a recipe choose them again

    def _label(self, label: int) -> int:
        return self._labels[label]

    def _rows(self, label: int) -> range:
        return range(self._counts[label])
