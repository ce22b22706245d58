"""The interface of a method, and the plan of its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.data.sources import Source
from dap.recipe import Recipe


@dataclass(frozen=True)
class Unit:
    """A batch of work that is done or not done: some slots of one class."""

    label: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """The images of a unit, (slots, 3, h, w) in [0, 1], and for each what else its manifest line should say."""

    images: Float[Tensor, "b 3 h w"]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What a method gets: a resolved recipe and the objects behind it.

    Attributes:
        recipe: resolved.
        source: the real training images.
        backbone: None for a method that needs none.
        cache: folder for real features that several runs share, or None.
    """

    recipe: Recipe
    source: Source
    backbone: Backbone | None
    cache: Path | None = None


class Method(ABC):
    """Makes the images of a set, unit by unit.

    Attributes:
        needs: of "backbone", "classifier", "training", "captions"; checked before any work starts.
        guidance: the method's own defaults over `GuidanceOptions`, or None for a method without guidance.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    guidance: ClassVar[Mapping[str, Any] | None] = None

    @abstractmethod
    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        """Do what is done once, and return what makes a unit. Must be cheap when every unit is already there."""


def plan(classes: int, ipc: int, block: int) -> list[Unit]:
    """The units of a set: blocks of slots, class by class; a function of the recipe alone.

    With whole blocks, a set grows from ipc 10 to 50 without touching its first ten images.
    """
    starts = range(0, ipc, block)
    return [Unit(label, tuple(range(s, min(s + block, ipc)))) for label in range(classes) for s in starts]
