"""What lies in the folder of a distilled set, read as if a stranger had written it.

Each file has a closed model with bounds. Further keys are allowed only where methods or other versions write their own; these
hold any JSON of bounded depth. Every path of a set leads to a regular file inside its folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from dap.base import documents
from dap.base.documents import regular
from dap.base.errors import DapError
from dap.base.fields import FromFile, Inside, Name, Seed, Sha256, Text
from dap.base.files import inside, natural_order, roots
from dap.base.parsing import brief, counted, parse_json, shown
from dap.data.sets.notes import MOST_CLASSES, MOST_IMAGES, Inputs, Ipc, Names, RecipeNote, as_read, there

WORK = ".work"
"""The folder in a set for checkpoints, for files that its method makes once, and for what processes that share the work write.
It is removed when the set is finished."""

FAILED = "failed.jsonl"
"""Lists the units whose images are not finite, one a line: label, class_name, slots and reason. See `methods.finite`."""

PARTS = f"{WORK}/manifest"
"""The folder of the manifest's parts. Processes that make a set together write one part a unit, so that no two of them ever write
one file. The last one that finishes puts all lines into manifest.jsonl."""

LARGEST_IMAGE = 2**28
"""How many bytes the file of one image may have: 256 MiB. An RGB image of as many pixels as Pillow opens has no more."""


def _one_part(folder: str) -> str:
    if "/" in folder or folder in (".", ".lock") or folder.startswith(".tmp-"):
        raise ValueError("this must be the name of a folder")
    return folder


Folders = Annotated[list[Annotated[Inside, AfterValidator(_one_part)]], Field(min_length=1, max_length=MOST_CLASSES)]
"""The folder of each class, in label order."""


class _Open(FromFile, frozen=True, extra="allow"):
    """A file to which methods or other versions may add keys of their own."""


class Classes(FromFile, frozen=True):
    """classes.json: the names and folders of the classes in label order, and the number of images per class."""

    names: Names
    folders: Folders
    ipc: Ipc

    @model_validator(mode="after")
    def _fit(self) -> Classes:
        if len(self.folders) != len(self.names):
            raise ValueError(
                f"it has {counted(len(self.names), 'name')} and {counted(len(self.folders), 'folder')}; each class has one folder"
            )
        for what, values in (("name", self.names), ("folder", [folder.casefold() for folder in self.folders])):
            if len(set(values)) < len(values):
                seen: set[str] = set()
                twice = next(value for value in values if value in seen or seen.add(value))
                raise ValueError(f"two classes have the {what} {twice[:80]!r}")
        if len(self.names) * self.ipc > MOST_IMAGES:
            raise ValueError(
                f"{counted(len(self.names), 'class')} of {self.ipc} images are more than {MOST_IMAGES:,} images"
            )
        return self

    def path(self, label: int, slot: int) -> str:
        """Where the image of a label and slot lies in the set."""
        return f"images/{self.folders[label]}/{slot:05d}.png"


class ManifestLine(_Open, frozen=True):
    """One line of manifest.jsonl. Methods add fields of their own: the seed, the real image, the prompt, a confidence."""

    path: Inside
    label: Annotated[int, Field(ge=0, lt=MOST_CLASSES)]
    class_name: Name
    slot: Annotated[int, Field(ge=0, lt=MOST_IMAGES)]
    sha256: Sha256
    seed: Seed | None = None
    weight: Annotated[float, Field(gt=0, le=MOST_IMAGES)] | None = None
    """How much of its class the image stands for; the mean in a class is 1. Protocols with `weights: manifest` use it."""
    doubt: Text | None = None
    """Why the image is probably no image of anything; see `looks.doubts`."""


def new_line(
    path: str, label: int, class_name: str, slot: int, digest: str, record: Mapping[str, Any]
) -> dict[str, Any]:
    """A line of the manifest that is to be written: what the set says of an image, and the fields of its record.

    Raises:
        DapError: a later reader would refuse the line, and the image would count as missing for ever. The field is named.
    """
    facts: dict[str, Any] = {"path": path, "label": label, "class_name": class_name, "slot": slot, "sha256": digest}
    where = f"The record of image {slot} of class {shown(class_name)!r}"
    for name, value in record.items():
        if name in facts:
            if type(value) is not type(facts[name]) or value != facts[name]:
                raise DapError(f"{where} has a field {name} of its own, which the set writes; give it another name.")
            continue
        says = f"{where} has {shown(str(name))} = {brief(value)}, which"
        if not isinstance(name, str):
            raise DapError(f"{says} is no field: the name of a field is a text.")
        try:
            documents.fitted(parse_json(json.dumps({**facts, name: value}), where), LINE, where)
        except DapError as error:
            raise DapError(f"{says} no reader of a set takes: {str(error).removeprefix(f'{where}: ')}") from error
        except (TypeError, ValueError) as error:
            raise DapError(
                f"{says} no line of JSON holds. Give numbers, texts, or lists and mappings of these, such as .item() or "
                ".tolist() of a tensor."
            ) from error
    line = {name: value for name, value in {**facts, **record}.items() if name != "sha256"} | {"sha256": digest}
    if len(json.dumps(line)) >= documents.LONGEST_LINE:
        raise DapError(
            f"{where} is longer than {documents.LONGEST_LINE:,} bytes; keep large values in files of your own."
        )
    return line


class _ExportFile(_Open, frozen=True):
    layout: Name
    class_names: Names
    folders: Folders | None = None
    files: Annotated[dict[Inside, Sha256 | None], Field(max_length=MOST_IMAGES)] = {}
    recipe: RecipeNote | None = None

    @model_validator(mode="after")
    def _fit(self) -> _ExportFile:
        if self.folders is not None and not len(set(self.folders)) == len(self.folders) == len(self.class_names):
            raise ValueError("each class of class_names must have one folder of its own in folders")
        return self


JSON: Any = Any
"""Any JSON."""
LINE = as_read(ManifestLine)
"""A line of manifest.jsonl, as a dictionary."""
RECIPE = as_read(RecipeNote)
"""recipe.json, as a dictionary."""
INPUTS = as_read(Inputs)
"""inputs.json, as a dictionary."""
EXPORT = as_read(_ExportFile)
"""export.json, as a dictionary."""


def check_exported(path: Path, said: Mapping[str, Any]) -> None:
    """Check that the files which an export.json lists are there, but for the card and for settings of other tools.

    Args:
        path: the folder of the export.
        said: its export.json; {} where there is none.

    Raises:
        DapError: some are gone; the message names the first of them.
    """
    listed = [name for name in said.get("files", ()) if name != "README.md" and not name.endswith(".yaml")]
    if absent := [name for name in listed if not os.path.isfile(path / name)]:
        more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        raise DapError(
            f"{shown(path)} lacks {shown(absent[0])}{more} of the {counted(len(listed), 'file')} that its export.json "
            "lists. Fetch or "
            "export it again; or, to take what is there, remove export.json and give the classes with --classes."
        )


class Within:
    """The files of a folder, of which none may lead out of it.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._roots = folder, roots(folder)
        self._known: dict[str, bool] = {}

    def read(self, relative: str, largest: int = LARGEST_IMAGE) -> bytes:
        """The bytes of a file.

        Args:
            relative: its path in the folder.
            largest: how many bytes it may have.

        Raises:
            DapError: there is no such regular file inside the folder, it cannot be read, or it is larger.
        """
        parent = relative.rpartition("/")[0]
        if parent not in self._known:  # every folder is resolved once, because this takes longer than to read an image
            real = (self.folder / parent).resolve()
            self._known[parent] = any(real.is_relative_to(root) for root in self._roots)
        path: Path | str = f"{self.folder}/{relative}"
        if not self._known[parent]:
            path = inside(self.folder, relative)  # which raises
        try:
            handle = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                documents.regular(self.folder / relative)
                raise DapError(f"{shown(path)} cannot be read: {error.strerror}.") from error
            handle = os.open(inside(self.folder, relative).resolve(), _FLAGS)  # a link to another file of the folder
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                documents.regular(self.folder / relative)
                raise DapError(f"{shown(path)} is no regular file.")
            if found.st_size > largest:
                raise DapError(f"{shown(path)} is larger than {largest:,} bytes; an image of a set is never so large.")
            with open(handle, "rb", buffering=0, closefd=False) as file:
                return file.readall()
        finally:
            os.close(handle)


_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Without O_NONBLOCK, to open a pipe waits until somebody writes to it.


@dataclass
class Manifest:
    """The lines of manifest.jsonl.

    Attributes:
        lines: the last usable line of each (label, slot), with its number in the file.
        problems: why the other lines cannot be used, each with file and line.
    """

    lines: dict[tuple[int, int], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def part_of(folder: Path, label: int, slot: int) -> Path:
    """The part of the manifest for the unit of this class whose first slot is `slot`."""
    return folder / PARTS / f"{label}-{slot}.jsonl"


def part_files(folder: Path) -> list[Path]:
    """The parts of the manifest of a set that several processes make, in order."""
    found = folder / PARTS
    if found.is_symlink() or not found.is_dir():
        return []
    named = [file for file in found.iterdir() if re.fullmatch(r"\d+-\d+\.jsonl", file.name)]
    return sorted(named, key=natural_order)


def read_manifest(folder: Path, classes: Classes) -> Manifest:
    """Read the manifest of a set. A line that does not fit the classes is a problem, as is one that cannot be read.

    Several lines of one image are no problem: an image that was made again has a further line, and the last one counts. While
    several processes make the set, the lines of manifest.jsonl come first and those of its parts after them.

    Raises:
        DapError: the file is no regular file of the folder, or it is too large.
    """
    found = Manifest()
    # The parts are read before the file, because they are removed after they were put into it.
    parts = [(file, line) for file in part_files(folder) for line in _lines_of(folder, file)]
    file, last = folder / "manifest.jsonl", 0
    for where, line in (*((file, line) for line in _lines_of(folder, file)), *parts):
        last = line.number if where == file else last + 1
        why = line.problem if line.value is None else misfit(line.value, classes)
        if why is not None or line.value is None:
            found.problems.append(str(why) if line.problem else f"{shown(where)}, line {line.number}: {why}.")
        elif found.lines.get(key := (line.value["label"], line.value["slot"]), (0, None))[1] != line.value:
            found.lines[key] = last, line.value
    return found


def _lines_of(folder: Path, file: Path) -> list[documents.Line[dict[str, Any]]]:
    """The lines of a manifest or of a part of it; none where the file is gone.

    Raises:
        DapError: it is no regular file of the folder, or it is too large.
    """
    name = file.relative_to(folder).as_posix()
    try:
        return list(documents.read_lines(inside(folder, name), LINE)) if there(folder, name) else []
    except (DapError, OSError):
        if there(folder, name):
            raise
        return []  # it was put into manifest.jsonl just now


def misfit(line: Mapping[str, Any], classes: Classes) -> str | None:
    """Why a manifest line does not fit classes.json, in words; None where it does."""
    label, slot = line["label"], line["slot"]
    if label >= len(classes.names):
        return f"there is no label {label}, because classes.json has {counted(len(classes.names), 'class')}"
    if slot >= classes.ipc:
        return f"there is no slot {slot}, because classes.json says {counted(classes.ipc, 'image')} per class"
    if line["class_name"] != classes.names[label]:
        return (
            f"class {label} is called {shown(line['class_name'])[:80]!r} here, "
            f"but {shown(classes.names[label])[:80]!r} in classes.json"
        )
    if line["path"] != classes.path(label, slot):
        return (
            f"the path is {shown(line['path'])[:120]!r}, "
            f"but the image of label {label} and slot {slot} is {classes.path(label, slot)!r}"
        )
    return None


def file_of(folder: Path, relative: str) -> Path:
    """The file of an image of a set. In a set of this library it lies inside the folder; a link in a folder that others made
    may lead where it wants.

    Raises:
        DapError: it leads out of a set of this library, or to no regular file.
    """
    return inside(folder, relative) if there(folder, "classes.json") else regular(folder / relative)


def sha256(data: bytes) -> str:
    """The sha256 of bytes, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
