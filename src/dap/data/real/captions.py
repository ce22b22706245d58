"""Captions of real images: JSON lines of path and caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

from dap.base.documents import read_lines, regular
from dap.base.errors import DapError
from dap.base.fields import Text
from dap.base.files import expanded
from dap.data.real.finding.splits import ORDER, split_of
from dap.data.real.sources import Source


def read_captions(path: str | Path, source: Source) -> Mapping[str, str]:
    """Read the captions of real images: key of the image (`Source.keys`) -> caption, in the order of the file.

    Images without a caption are absent. A path in the file may be longer than the key: folders such as `train/`, or an
    absolute path, may stand in front of the key. A bare file name is enough where only one image has that name. A path
    whose key stands directly below a test split's folder, such as `val/`, `dev/` or `Testing/`, names no training image,
    unless this is the folder of the source itself. Where an image has two captions, the later one counts. Empty captions
    are ignored. Captions of images that the source does not have (other classes, held-out images) are ignored too.

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
    for said in lines_of(file):
        key, last = find(said.path), said.path
        if key is not None and said.caption.strip():
            found[key] = said.caption.strip()
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
    file = expanded(path)
    if not file.exists():
        raise DapError(f"There is no file of captions {path}; dap caption writes one.")
    return regular(file)


def finder(source: Source) -> Callable[[str], str | None]:
    """A function that finds an image of the source: path as a person writes it -> key of the image, or None.

    `read_captions` says which paths name an image.
    """
    return _Index([key for mine in _keys(source) for key in mine], "" if source.root is None else source.root.name).find


def _keys(source: Source) -> list[list[str]]:
    return [source.keys(label, range(source.count(label))) for label in range(len(source.class_names))]


class Captioned(BaseModel, frozen=True):
    """A line of a file of captions. Other keys are allowed, because an image folder's metadata.jsonl may have any."""

    model_config = ConfigDict(extra="ignore", strict=True)
    path: Annotated[str, StringConstraints(max_length=4096), Field(validation_alias=AliasChoices("path", "file_name"))]
    caption: Annotated[Text, Field(validation_alias=AliasChoices("caption", "text"))]
    model: Text | None = None
    ask: Text | None = None


def lines_of(file: Path) -> Iterator[Captioned]:
    """The captions in a file, line by line.

    Raises:
        DapError: a line cannot be used. The message names the file and the line.
    """
    for line in read_lines(file, Captioned):
        if line.value is None:
            raise DapError(f'{line.problem} A line must be {{"path": "...", "caption": "..."}}.')
        yield line.value


class _Index:
    """Finds the key of an image for a path as people write it."""

    def __init__(self, keys: list[str], folder: str) -> None:
        self._keys, self._folder = frozenset(keys), folder
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
                above = parts[start - 1] if start else self._folder
                return None if above != self._folder and split_of(above) in ORDER["test"] else key
        # Two folders may number their files alike. So `0001.png` in an unknown folder may be another image than
        # `0001.png` of the source, and only a path without a folder is looked up by its file name.
        return self._by_name.get(parts[0]) if len(parts) == 1 else None
