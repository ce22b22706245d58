"""Captions of real images: JSON lines of path and caption."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.data.real.layouts import SPLITS
from dap.data.real.sources import Source


def read_captions(path: str | Path, source: Source) -> Mapping[str, str]:
    """Caption of each real image by its key (`Source.keys`): of those that have one, in the file's order.

    A path in the file is found by its end: with the folders above the class folders in front of it, `train/` or absolute, or
    as a bare file name where that belongs to one image alone. A path below another split's folder, such as `val/`, is none of
    the training images. Of two captions of an image the later one counts, an empty caption is none, and those of images that
    the source does not have (other classes, held-out images) are left aside.

    Args:
        path: a file with one JSON object a line, {"path": key, "caption": text}; or {"file_name": ..., "text": ...}, as in
            the metadata.jsonl of an image folder.
        source: whose images they are of.

    Raises:
        DapError: no such file, a line that is not one, or a class without any captioned image.
    """
    file = check_captions(path)
    keys, find = _keys(source), finder(source)
    found: dict[str, str] = {}
    last = None
    for last, caption in _lines(file):
        key = find(last)
        if key is not None and caption.strip():
            found[key] = caption.strip()
    for name, mine in zip(source.class_names, keys, strict=True):
        if found.keys().isdisjoint(mine):
            like = f", and one in the file is {last!r}" if last is not None else ""
            raise DapError(
                f"{path} has no caption of any image of class {name!r} of {source.name}. An image there is {mine[0]!r}{like}; "
                "dap caption adds what is missing."
            )
    return found


def check_captions(path: str | Path) -> Path:
    """The file, found to be there without reading it.

    Raises:
        DapError: it is not.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DapError(f"There is no file of captions {path}; dap caption writes one.")
    return file


def finder(source: Source) -> Callable[[str], str | None]:
    """What gives the key of a source's image for a path that people write, as `read_captions` says; None for no image's."""
    return _Index([key for mine in _keys(source) for key in mine]).find


def _keys(source: Source) -> list[list[str]]:
    return [source.keys(label, range(source.count(label))) for label in range(len(source.class_names))]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            said: dict[str, Any] = json.loads(line)
            path, caption = (said[new] if new in said else said[old] for new, old in NAMES)
        except (ValueError, TypeError, KeyError) as error:
            raise _wrong(file, number, line) from error
        if not (isinstance(path, str) and isinstance(caption, str)):
            raise _wrong(file, number, line)
        yield path, caption


NAMES = (("path", "file_name"), ("caption", "text"))
"""Of the two fields, ours and those of image folders with metadata."""


def _wrong(file: Path, number: int, line: str) -> DapError:
    return DapError(f'{file}, line {number}: {{"path": "...", "caption": "..."}} is needed, not {line[:80]!r}.')


class _Index:
    """Keys of images by what people write for them."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = frozenset(keys)
        names = Counter(key.rpartition("/")[2] for key in keys)
        self._by_name = {name: key for key in keys if names[name := key.rpartition("/")[2]] == 1}

    def find(self, path: str) -> str | None:
        """The key that a path means, or None."""
        if path in self._keys:
            return path
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            key = "/".join(parts[start:])
            if key in self._keys:
                return None if start and parts[start - 1] in SPLITS["test"] else key
        # A folder's own numbering says nothing of an image of another folder, so only a bare name is looked up as one.
        return self._by_name.get(parts[0]) if len(parts) == 1 else None
