"""A source of files that are listed: each image is one file of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dap.base.parsing import shown
from dap.data.real.base import Source
from dap.data.real.decode import decode
from dap.data.real.identity import DECODING, DIGEST, NOT_READ, UNREADABLE, digests
from dap.data.real.sizes import size_of


class FileSource(Source):
    """Image files in a folder.

    Args:
        root: the folder.
        files: for each class its images, as posix paths relative to the folder.
    """

    def __init__(self, name: str, class_names: Sequence[str], root: Path, files: list[list[str]], **how: Any) -> None:
        self._root, self._files = root, files
        self._digests = bytearray()  # of all files, for this source and its twins of other sizes
        super().__init__(name, class_names, list(map(len, files)), **how)

    def _key(self, label: int, index: int) -> str:
        return shown(self._files[label][index])

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        return size_of(self._root / self._files[label][index])

    def _decode(self, label: int, index: int) -> Tensor:
        return decode(self._root / self._files[label][index], self.size, self.fit)

    def _hashed(self, files: list[str]) -> bytearray:
        """The sha256 of each image, `DIGEST` bytes each."""
        return digests(self._root, files)

    def _listing(self) -> Iterator[str]:
        yield f"decoding {DECODING}"
        # One call for all classes: the index remembers what one call asks of a folder, and classes can share a folder.
        if not self._digests:
            self._digests += self._hashed([file for files in self._files for file in files])
        place = 0
        for files in self._files:
            yield f"{len(files)} images"
            for file in files:
                digest = self._digests[place : place + DIGEST]
                place += DIGEST
                yield f"{shown(file)}\t{UNREADABLE if digest == NOT_READ else digest.hex()}"
