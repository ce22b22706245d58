"""Images that need not fit into memory: their rows are read from a file, or decoded anew, when they are asked for.

A `Streamed` stands for a tensor of images (n, 3, side, side) whose rows are read when they are asked for. It is a torch
`Dataset`, and torch's `DataLoader` reads it ahead. `gathering.gathered` decides how images are kept.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dap.base.errors import DapError

Read = Callable[[int], Tensor]
"""A function from a row to its image (3, side, side), float32 in [0, 1], or to a clip as an image of more channels. It raises
`BrokenImage` or another `DapError`."""


class Streamed(Dataset[Any], ABC):
    """Images (n, 3, side, side) that are read when they are asked for.

    Attributes:
        shape, ndim, dtype: those of the tensor that it stands for; the dtype is uint8, from 0 to 255, or float32 in [0, 1].
        workers: how many processes read ahead; 0: this one reads.
    """

    ndim = 4

    def __init__(self, n: int, side: int, dtype: torch.dtype, workers: int = 0, channels: int = 3) -> None:
        self.shape, self.dtype, self.workers = torch.Size((n, channels, side, side)), dtype, workers

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether the images are float32."""
        return self.dtype.is_floating_point

    @abstractmethod
    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Images (m, 3, side, side) of some rows. Raises `DapError` for an image that is gone."""

    def __getitems__(self, rows: list[int]) -> np.ndarray | DapError:
        # An error of another process would reach the user as a trace. So it is handed on as a value.
        try:
            return self.read(rows)
        except DapError as error:
            return DapError(str(error))

    def take(self, rows: Tensor | slice) -> Tensor:
        """The images (m, 3, side, side) of these rows, on the CPU."""
        wanted = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return torch.from_numpy(self.read(wanted))

    def in_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each part, one part after the other. Other processes read ahead where there are workers."""
        for found in loaded(self, (part.tolist() for part in parts), self.workers):
            if isinstance(found, DapError):
                raise found
            yield torch.from_numpy(found)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time, as `Tensor.split` gives them."""
        return self.in_parts(torch.arange(len(self)).split(size))


class Packed(Streamed):
    """Images that lie one after the other in an open file. Rows are read and not mapped, so memory holds no more than a batch."""

    def __init__(self, file: Any, n: int, side: int, dtype: torch.dtype, channels: int = 3) -> None:
        super().__init__(n, side, dtype, channels=channels)
        self.file, self._type = file, np.dtype(str(dtype).removeprefix("torch."))
        weakref.finalize(self, file.close)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), self._type)
        each, start = found[:1].nbytes, 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and rows[end] == rows[end - 1] + 1:
                end += 1
            place, at = found[start:end].data.cast("B"), rows[start] * each
            while len(place):  # Linux reads no more than 2 GiB at once
                if not (count := os.preadv(self.file.fileno(), [place], at)):
                    raise DapError("The file of decoded images was cut while it was read; run the same again.")
                place, at = place[count:], at + count
            start = end
        return found


class Decoding(Streamed):
    """Images that are decoded each time they are asked for."""

    def __init__(
        self, read: Read, rows: Tensor, side: int, dtype: torch.dtype, workers: int, channels: int = 3
    ) -> None:
        super().__init__(len(rows), side, dtype, workers, channels)
        self._read, self._rows = read, rows

    def read(self, rows: Sequence[int]) -> np.ndarray:
        images = torch.stack([self._read(int(self._rows[row])) for row in rows])
        return (as_bytes(images) if self.dtype == torch.uint8 else images).numpy()


Stored = Tensor | Streamed
"""Images (n, c, h, w) in memory, or read when they are asked for."""


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8."""
    return (images * 255).round().to(torch.uint8)


def loaded(data: Dataset[Any], parts: Iterable[list[int]], workers: int) -> Iterator[Any]:
    """What the data give for each part, in order."""
    # A DataLoader draws a seed. From torch's own generator it would change what is drawn after it, such as dropout.
    how: dict[str, Any] = {"generator": torch.Generator(), "collate_fn": _same, "num_workers": workers}
    if workers:
        how["multiprocessing_context"] = "fork"
    try:
        yield from DataLoader(data, batch_sampler=parts, **how)  # pyright: ignore[reportArgumentType]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DapError(
            "A process that decodes images was ended by the system, often for want of memory; run the same again with fewer "
            "--threads."
        ) from error


def _same(found: Any) -> Any:
    return found
