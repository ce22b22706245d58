"""How many images a source has."""

from __future__ import annotations

from typing import Protocol


class Counted(Protocol):
    """Images by class, such as a `Source`."""

    class_names: tuple[str, ...]

    def count(self, label: int) -> int:
        """How many images a class has."""
        ...


def counts_of(source: Counted) -> list[int]:
    """How many images each class has, in label order."""
    return [source.count(label) for label in range(len(source.class_names))]


def total_of(source: Counted) -> int:
    """How many images all classes have together."""
    return sum(counts_of(source))
