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
    """Read the captions of real images: key of the image (`Source.keys`) -> caption, in the order of the file.

    Images without a caption are absent. A path in the file may be longer than the key: folders such as `train/`, or an
    absolute path, may stand in front of the key. A bare file name is enough where only one image has that name. A path
    whose key stands directly below a test split's folder, such as `val/`, names no training image. Where an image has
    two captions, the later one counts. Empty captions are ignored. Captions of images that the source does not have
    (other classes, held-out images) are ignored too.

    Args:
        path: a file with one JSON object in each line, {"path": key, "caption": text}; or {"file_name": ..., "text":
            ...}, as in the metadata.jsonl of an image folder.
        source: the real images.

    Raises:
        DapError: there is no such file, a line is not such an object, or a class has no image with a caption.
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
    """Check that the file of captions exists, without reading the file. The path of the file is returned.

    Raises:
        DapError: there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DapError(f"There is no file of captions {path}; dap caption writes one.")
    return file


def finder(source: Source) -> Callable[[str], str | None]:
    """A function that finds an image of the source: path as a person writes it -> key of the image, or None.

    `read_captions` says which paths name an image.
    """
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
"""The names of the two fields of a line. The first name of each pair is ours. The second name is that of image folders
with metadata."""


def _wrong(file: Path, number: int, line: str) -> DapError:
    return DapError(f'{file}, line {number}: {{"path": "...", "caption": "..."}} is needed, not {line[:80]!r}.')


class _Index:
    """Finds the key of an image for a path as people write it."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = frozenset(keys)
        names = Counter(key.rpartition("/")[2] for key in keys)
        self._by_name = {name: key for key in keys if names[name := key.rpartition("/")[2]] == 1}

    def find(self, path: str) -> str | None:
        """The key of the image that the path names; None where the path names no image."""
        if path in self._keys:
            return path
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            key = "/".join(parts[start:])
            if key in self._keys:
                return None if start and parts[start - 1] in SPLITS["test"] else key
        # Two folders may number their files alike. So `0001.png` in an unknown folder may be another image than
        # `0001.png` of the source, and only a path without a folder is looked up by its file name.
        return self._by_name.get(parts[0]) if len(parts) == 1 else None
