"""A source of files that are listed: each image is one file of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from torch import Tensor

from dap.base.parsing import shown
from dap.data.real.base import Source
from dap.data.real.decode import decode
from dap.data.real.finding.walking import Left
from dap.data.real.identity import DECODING, DIGEST, NOT_READ, UNREADABLE, digests
from dap.data.real.names import composed, some
from dap.data.real.sizes import size_of
from dap.data.real.suffixes import IMAGE_SUFFIXES, UNREAD


def filled(
    names: Sequence[str],
    found: Sequence[tuple[list[str], Left]],
    elsewhere: Callable[[], set[str]],
    what: str = "image",
) -> tuple[list[str], list[list[str]], Left, str]:
    """The folders that are classes, where nobody names the classes: those that hold images.

    A folder without images stays, and the source refuses it, if its images may have been lost: the folder is empty, it holds
    pictures in formats that are not read, or the other split has images of this class.

    Args:
        names: the names of the folders.
        found: for each the images, and what is left out.
        elsewhere: gives the classes of which the other split holds images.
        what: what its files are called, "image" or "clip".

    Returns:
        The names of the classes, their images, what is left out of them, and a clause on the folders that are left out, or "".
    """
    lost = UNREAD | IMAGE_SUFFIXES  # images that are no clips are among the others, where clips are read
    kept = [bool(files) or not left.others or not lost.isdisjoint(left.others) for files, left in found]
    if not all(kept):
        twins = elsewhere()
        kept = [keep or composed(name) in twins for keep, name in zip(kept, names, strict=True)]
    total = Left()
    for keep, (_, left) in zip(kept, found, strict=True):
        if keep:
            total.others.update(left.others)
            total.hidden += left.hidden
    out = [f"{shown(name)}/" for keep, name in zip(kept, names, strict=True) if not keep]
    told = f"left out: {some(out, 5)}, which hold{'s' * (len(out) == 1)} no {what}" if out else ""
    return list(compress(names, kept)), [files for files, _ in compress(found, kept)], total, told


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


def shared(one: FileSource, other: FileSource) -> list[str]:
    """The images of a source that are images of another one too: the same name in the same folder, links to folders resolved.
    No image is read."""
    folders: dict[tuple[Path, str], str] = {}

    def place(source: FileSource, file: str) -> tuple[str, str]:
        folder, _, name = file.rstrip("/").rpartition("/")
        key = (source._root, folder)
        if key not in folders:
            folders[key] = os.path.realpath(source._root / folder)
        return folders[key], name

    there = {place(other, file) for files in other._files for file in files}
    return [file for files in one._files for file in files if place(one, file) in there]
