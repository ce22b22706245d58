"""The nearest of many, noted class by class. With many classes there are too many pairs for loops of Python."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dap.data.real.base import Source


def searched_in(train: Source, recipe: Mapping[str, Any] | None) -> str | None:
    """The fingerprint of the real images that a set is searched for, as the inputs.json of a set that was made of them has it.

    Args:
        train: the real training images.
        recipe: the recipe of the set; the fingerprint is that of the images at its size. None: nothing can be compared with it.
    """
    size = ((recipe or {}).get("data") or {}).get("size")
    if not isinstance(size, int) or size < 1:
        return None
    known = _FINGERPRINTS.setdefault(train, {})  # all sets of a grid are searched for the same images
    if size not in known:
        known[size] = train.fitted(size, "crop").fingerprint()
    return known[size]


_FINGERPRINTS: weakref.WeakKeyDictionary[Source, dict[int, str]] = weakref.WeakKeyDictionary()


class Nearest:
    """For each of n images one real image and its distance, as tensors.

    Attributes:
        distances: (n,), infinite as long as nothing is noted.
    """

    def __init__(self, n: int) -> None:
        self.distances, self._places = torch.full((n,), math.inf), torch.full((n, 2), -1)

    def note(self, rows: Tensor, which: Tensor, label: int, places: Tensor, distances: Tensor) -> None:
        """Take real images of a class for some images, in the place of what was noted for them before.

        Args:
            rows: (m,), images.
            which: (m,) bool, those of them that take the real image.
            label: the class of the real images.
            places: (m,), which real image of the class it is for each.
            distances: (m,), its distance to each.
        """
        chosen = rows[which]
        self.distances[chosen] = distances[which]
        self._places[chosen, 0], self._places[chosen, 1] = label, places[which]

    def found(self) -> list[tuple[int, int, float]]:
        """For each image the label and the place in its class of the real image, and the distance; (-1, -1, inf) for nothing."""
        pairs = zip(self._places.tolist(), self.distances.tolist(), strict=True)
        return [(label, place, distance) for (label, place), distance in pairs]
