"""Many images are read once, by several processes, and kept as the budget allows: in memory, in a file, or to be decoded anew.

The images and their order are the same in each way, to the last bit.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.counts import counts_of
from dap.data.real.decode import BrokenImage
from dap.data.real.stored.budget import GIB, Budget
from dap.data.real.stored.streams import Decoding, Packed, Read, Stored, as_bytes, loaded

log = logging.getLogger("dap")

Keep = Literal["memory", "disk", "nothing"]
"""How images are kept: in memory, in a file, or not at all, so that each pass decodes them anew."""

CHUNK = 64
"""How many images a process decodes at a time."""

ALONE = 512
"""Fewer images are decoded by this process alone, as other processes would take longer to start."""

MOST_WORKERS = 16


@dataclass(frozen=True)
class Gathered:
    """The images of `gathered`.

    Attributes:
        images: those that could be decoded.
        rows: (n,), their rows.
        whole: whether bytes hold the images without loss, as they do for images of 8 bits.
    """

    images: Stored
    rows: Tensor
    whole: bool


def gathered(
    read: Read,
    n: int,
    side: int,
    budget: Budget,
    *,
    exact: bool = False,
    broken: Callable[[int, str], object] | None = None,
    workers: int | None = None,
    keep: Keep | None = None,
    channels: int = 3,
) -> Gathered:
    """Read n images and keep them: in memory, where they take no more than half of the budget; in a file, where they fit the
    budget's disk; else they are decoded anew in each pass.

    Args:
        read: see `Read`.
        n: how many images there are.
        side: their height and width.
        budget: memory and disk, and the folder of the file. The file has no name and goes with the process.
        exact: keep images of more than 8 bits as float32. By default all images become uint8.
        broken: is told the row and the reason of each image that cannot be decoded, in order, and may raise. Such images are
            left out. None: the error is raised.
        workers: how many processes decode; default: as many as torch has threads, at most `MOST_WORKERS`.
        keep: how images are kept, whatever the budget says.
        channels: how many channels an image has: 3, or as many times more as a clip has frames.

    Raises:
        DapError: an image cannot be read, or the disk is full.
    """
    workers = decoders(n) if workers is None else workers
    dtype = torch.uint8
    while True:
        nbytes = n * channels * side * side * dtype.itemsize
        how = keep or _way(nbytes, budget)
        into = Sink(how, n, side, dtype, budget.folder, channels)
        try:
            rows, whole = _read(_First(read, dtype), n, workers, into, broken, refuse=exact and dtype == torch.uint8)
        except BaseException as error:
            into.close()
            if not isinstance(error, _Deeper):
                raise
            dtype = torch.float32  # all images are read again
            continue
        images = into.images(len(rows)) if how != "nothing" else Decoding(read, rows, side, dtype, workers, channels)
        if how != "memory" and keep is None:
            what = f"lie in a file of {nbytes / GIB:.1f} GiB" if how == "disk" else "are decoded in every pass"
            many, memory = f"{len(rows):,}", budget.memory / GIB
            log.info("%s images of %d px %s, as --memory is %.1f GiB", many, side, what, memory)
        return Gathered(images, rows, whole)


def stored(
    source: Source, budget: Budget, *, exact: bool = False, grey: bool = False, **how: Any
) -> tuple[Stored, Tensor, bool]:
    """The images and labels of a source as `Source.tensors` gives them, kept as the budget allows.

    Args:
        source: the images.
        budget, exact: see `gathered`.
        grey: keep one channel, the mean of the colours.
        how: further arguments of `gathered`.

    Returns:
        The images (n, 3, size, size), or (n, 1, size, size) where they are grey, the labels (n,), and `Gathered.whole`. Clips are
        images of 3 · frames channels, first all frames of a colour, then those of the next.

    Raises:
        DapError: too many images are broken, or all images of a class.
    """
    counts = counts_of(source)
    starts = list(accumulate(counts, initial=0))

    def place(row: int) -> tuple[int, int]:
        label = bisect_right(starts, row) - 1
        return label, row - starts[label]

    def read(row: int) -> Tensor:
        image = source.decoded(*place(row))
        return image.mean(0, keepdim=True) if grey else folded(image)

    found = gathered(
        read,
        starts[-1],
        source.size,
        budget,
        exact=exact,
        broken=lambda row, reason: source.met(*place(row), reason, planned=starts[-1]),
        channels=1 if grey else 3 * (source.frames or 1),
        **how,
    )
    labels = torch.searchsorted(torch.tensor(starts[1:]), found.rows, right=True)
    for label, left in enumerate(labels.bincount(minlength=len(counts)).tolist()):
        if not left:
            source.refuse_broken(label)
    return found.images, labels, found.whole


def folded(image: Tensor) -> Tensor:
    """A clip (3, frames, h, w) as an image of 3 · frames channels; an image stays as it is."""
    return image.flatten(0, -3)


def decoders(n: int) -> int:
    """How many processes decode n images beside this one; 0: this one decodes them."""
    threads = torch.get_num_threads()
    if n < ALONE or threads < 2 or sys.platform != "linux":  # elsewhere each would need a copy of the list of files
        return 0
    return min(threads, MOST_WORKERS)


def _way(nbytes: int, budget: Budget) -> Keep:
    if nbytes <= budget.memory // 2:
        return "memory"
    return "disk" if budget.folder is not None and nbytes <= budget.disk else "nothing"


class _Deeper(Exception):
    """An image has more than 8 bits."""


class Sink:
    """Takes up images (m, channels, side, side) one part after the other, in memory or in a file without a name.

    Args:
        how: where they are kept.
        n: how many images there will be at most.
        side, dtype, channels: of the images.
        folder: the folder of the file; default: that of temporary files.
        what: what they are called where the disk is full.
    """

    def __init__(
        self,
        how: Keep,
        n: int,
        side: int,
        dtype: torch.dtype,
        folder: Path | None,
        channels: int = 3,
        what: str = "Decoded images",
    ) -> None:
        self.how, self.side, self.dtype, self.count, self.channels = how, side, dtype, 0, channels
        self.what = what
        self.folder = folder or Path(tempfile.gettempdir())
        self.memory = torch.empty(n if how == "memory" else 0, channels, side, side, dtype=dtype)
        self.file: Any = None
        if how == "disk":
            with self._told():
                self.folder.mkdir(parents=True, exist_ok=True)
                # A file without a name goes when the process ends, in whatever way.
                self.file = tempfile.TemporaryFile(dir=self.folder, prefix="dap-images-")  # noqa: SIM115

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, images: np.ndarray) -> None:
        if self.how == "memory":
            self.memory[self.count : self.count + len(images)] = torch.from_numpy(images)
        elif self.file is not None:
            with self._told():
                self.file.write(images.data.cast("B"))
        self.count += len(images)

    def images(self, n: int) -> Stored:
        if self.file is None:
            return self.memory[:n]
        with self._told():
            self.file.flush()
        return Packed(self.file, n, self.side, self.dtype, self.channels)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DapError(
                f"{self.what} cannot be written to {self.folder} ({error.strerror}); give another folder with --cache, or "
                "--disk with the GiB that they may take."
            ) from error


@dataclass
class _Part:
    """What the first reading found in some rows."""

    images: np.ndarray = field(default_factory=lambda: np.empty(0))
    rows: list[int] = field(default_factory=list)
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    failed: str = ""
    whole: bool = True
    said: list[tuple[str, str]] = field(default_factory=list)


def _read(
    data: Dataset[Any],
    n: int,
    workers: int,
    into: Sink,
    broken: Callable[[int, str], object] | None,
    refuse: bool,
) -> tuple[Tensor, bool]:
    # One tensor from the beginning: a small one for each part would lie between the large ones that come and go, and their
    # places could not be used again.
    kept, count, whole = torch.empty(n, dtype=torch.int64), 0, True
    parts = (list(range(start, min(start + CHUNK, n))) for start in range(0, n, CHUNK))
    for found in loaded(data, parts, workers):
        if refuse and not found.whole:
            raise _Deeper
        whole &= found.whole
        for kind, message in found.said:
            if kind not in _said:
                _said.add(kind)
                log.warning("%s", message)
        for row, reason, told in found.broken:
            if broken is None:
                raise DapError(told)
            broken(row, reason)
        if found.failed:
            raise DapError(found.failed)
        if found.rows:
            into.add(found.images)
            kept[count : count + len(found.rows)] = torch.tensor(found.rows)
            count += len(found.rows)
    return kept[:count], whole


_said: set[str] = set()
"""The kinds of warnings about images that were said. The processes that decode cannot know that they were."""


class _First(Dataset[Any]):
    """The first reading of images, which finds those that are broken."""

    def __init__(self, read: Read, dtype: torch.dtype) -> None:
        self._read, self._dtype = read, dtype

    def __getitems__(self, rows: list[int]) -> _Part:
        images: list[Tensor] = []
        part = _Part()
        with _overheard(part.said):
            for row in rows:
                try:
                    image = self._read(row)
                except BrokenImage as error:
                    part.broken.append((row, error.reason, str(error)))
                    continue
                except DapError as error:
                    part.failed = str(error)
                    break
                small = as_bytes(image)
                part.whole &= bool((small.float() / 255).equal(image))
                images.append(small if self._dtype == torch.uint8 else image)
                part.rows.append(row)
        if images:
            part.images = torch.stack(images).numpy()
        return part


class _Overheard(logging.Handler):
    def __init__(self, said: list[tuple[str, str]]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append((str(record.msg), record.getMessage()))


@contextmanager
def _overheard(said: list[tuple[str, str]]) -> Iterator[None]:
    """Take down the warnings of a process that decodes for another one, which says each of them once."""
    if get_worker_info() is None:
        yield
        return
    before = list(log.handlers), log.propagate
    log.handlers, log.propagate = [_Overheard(said)], False
    try:
        yield
    finally:
        log.handlers, log.propagate = before
