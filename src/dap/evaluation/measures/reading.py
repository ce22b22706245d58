"""How many real images of each class a set is compared with, and searched for near-copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COMPARED, COMPARED_IN_ALL = 500, 50_000
"""The largest number of real images whose features are computed: of one class, and of all classes together."""

SEARCHED_IN_ALL = 100_000
"""The largest number of real images, of all classes, that are searched for near-copies. The user may set another number."""

FEWEST = 100
"""Of each class so many are compared and searched all the same, however many classes there are."""


@dataclass(frozen=True)
class Reading:
    """How many real images are read.

    Args:
        counts: the real images of each class; no class is empty.
        frames: the pictures of each image: 1, or the frames of a clip that are compared.
    """

    counts: Sequence[int]
    frames: int = 1

    @property
    def compared(self) -> int:
        """The largest number of images of a class whose features are computed."""
        return min(COMPARED, max(COMPARED_IN_ALL // len(self.counts), FEWEST))

    @property
    def searched(self) -> int:
        """The largest number of images of a class that are searched. A larger class is cut to it, by a random draw."""
        return max(even_limit(self.counts, SEARCHED_IN_ALL // self.frames), FEWEST)

    @property
    def marks(self) -> list[str]:
        """A text where earlier versions searched fewer images; else nothing. They gave each class the same share, and a class
        with fewer images left the rest of its share to nobody."""
        earlier = max(SEARCHED_IN_ALL // self.frames // len(self.counts), FEWEST)
        cut = [[min(count, most) for count in self.counts] for most in (earlier, self.searched)]
        return [] if cut[0] == cut[1] else [f"{self.searched} real images of a class are searched"]


def even_limit(counts: Sequence[int], most: int) -> int:
    """The largest number to which classes of these sizes can be cut so that no more than `most` images are left of them all.

    A smaller class keeps all it has, and what it leaves goes to the larger ones.
    """
    left, ordered = most, sorted(counts)
    for k, count in enumerate(ordered):
        share = left // (len(ordered) - k)
        if count > share:
            return share
        left -= count
    return ordered[-1]
