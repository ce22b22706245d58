"""Features that need not fit into memory: a table of rows (n, D) in memory, or in a file that goes with the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dap.data.real.stored.budget import Budget
from dap.data.real.stored.gathering import Sink
from dap.data.real.stored.streams import Stored, Streamed

SHARE = 4
"""A table takes no more than one part in so many of the budget's memory."""


class Rows:
    """Features (n, D), float32, in a file. It is indexed and split as a tensor is, and each time reads the rows asked for.

    Args:
        stored: the features as images (n, D, 1, 1).
    """

    def __init__(self, stored: Streamed) -> None:
        self._stored, self.shape = stored, stored.shape[:2]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The rows (m, D) of a slice, of indices (m,), or of a mask (n,)."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        return self._stored.take(rows).flatten(1)

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` at a time."""
        return (part.flatten(1) for part in self._stored.split(size))


Table = Tensor | Rows
"""Features (n, D) in memory, or in a file."""


class Filling:
    """Takes up features part after part, and gives them back as a table.

    Args:
        n: how many rows there will be at most.
        budget: memory and disk. A table that takes more than its share of the memory lies in a file.
    """

    def __init__(self, n: int, budget: Budget) -> None:
        self._n, self._budget, self._sink, self._width = n, budget, None, 0

    def add(self, features: Tensor) -> None:
        """Take up rows (m, D). All parts have the same D.

        Raises:
            DapError: the disk is full.
        """
        if self._sink is None:
            self._width, nbytes = features.shape[1], 4 * self._n * features.shape[1]
            how = "memory" if nbytes <= self._budget.memory // SHARE else "disk"
            self._sink = Sink(how, self._n, 1, torch.float32, self._budget.folder, self._width, what="Features")
        self._sink.add(features.float().cpu().contiguous()[:, :, None, None].numpy())

    def table(self) -> Table:
        """What was taken up."""
        if self._sink is None:
            return torch.empty(0, 0)
        found = self._sink.images(self._sink.count)
        return Rows(found) if isinstance(found, Streamed) else found.flatten(1)


class Pools(Sequence[Tensor]):
    """The features of each class (m, D), which lie one after the other in a table.

    Args:
        table: the features of all classes.
        counts: how many rows each class has.
    """

    def __init__(self, table: Table, counts: Sequence[int]) -> None:
        self.table, self.counts = table, list(counts)
        self._starts = torch.tensor([0, *counts]).cumsum(0).tolist()

    @property
    def labels(self) -> Tensor:
        """The class (n,) of each row."""
        return torch.arange(len(self)).repeat_interleave(torch.tensor(self.counts))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, label: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= label < len(self):
            raise IndexError(label)
        return self.table[self._starts[label] : self._starts[label + 1]]


def table_of(features: Callable[[Tensor], Tensor], images: Stored, budget: Budget) -> Table:
    """What `features` gives for images (n, c, h, w), 500 at a time."""
    filling = Filling(len(images), budget)
    for part in images.split(500):  # pyright: ignore[reportCallIssue]
        filling.add(features(part))
    return filling.table()


def rows_in(nbytes: int, width: int) -> int:
    """How many rows of `width` float64 numbers these bytes hold, and no fewer than `width`."""
    return max(width, math.floor(nbytes / (8 * max(1, width))))
