"""Reads JSON, JSON lines and YAML files whose writer may be a stranger, a killed process or a bad disk.

A document is read in three steps. The file must be a regular file of bounded size. Its text must be well-formed, as `parsing`
says. Its values must fit a closed pydantic model with bounds. A document that fails a step is refused in one sentence that
names the file and, where it is known, the line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from dap.base.errors import DapError
from dap.base.mistakes import told
from dap.base.parsing import Damaged, decode, parse_json, parse_yaml, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

LARGEST = 64 * 2**20
"""How many bytes a document may have: 64 MiB. No document of this package comes near it, except lines of a manifest."""
LARGEST_YAML = 2**18
"""How many bytes a YAML file may have: 256 KiB. Parsing YAML is slow."""
LARGEST_LINES = 2 * 2**30
"""How many bytes a file of JSON lines may have: 2 GiB, some millions of images."""
LONGEST_LINE = 2**20
"""How many bytes one line of such a file may have."""


def regular(path: Path) -> Path:
    """The path of a file that can be read to its end. Symbolic links are followed.

    Raises:
        DapError: the path leads to nothing, to a folder, or to a pipe, socket or device, which may never end.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DapError(f"There is no file {shown(path)}.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "its name holds a NUL"
        raise DapError(f"{shown(path)} cannot be read: {reason}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise DapError(f"{shown(path)} is {kind}, not a file. Put a regular file in its place.")
    return path


POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that Git LFS puts in the place of a file which was not fetched."""

PAGES = (b"<!doctype html", b"<html")
"""How a page of the web begins, in small letters."""


def check_fetched(path: Path) -> Path:
    """The path of a regular file, unless it only points to the file that belongs there, or a page of the web came in its place.

    Raises:
        DapError: there is no regular file, or it is a pointer of Git LFS or a page of the web.
    """
    with regular(path).open("rb") as file:
        head = file.read(len(POINTER))
    if head == POINTER:
        raise DapError(
            f"{shown(path)} is a Git LFS pointer and not the file itself: it was cloned without its contents. Fetch "
            "the file, as with git lfs pull in its folder, or download it from where it comes from."
        )
    if head.lstrip().lower().startswith(PAGES):
        raise DapError(
            f"{shown(path)} is a page of the web and not the file itself; such a page may ask to sign in. Fetch the file anew."
        )
    return path


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DapError: there is no regular file, it is larger than `largest` bytes, or it is not UTF-8.
    """
    return decode(read_bytes(path, largest), path)


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `largest` bytes.

    Raises:
        DapError: there is no regular file, it is larger, or it cannot be read.
    """
    try:
        with regular(path).open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise DapError(f"{shown(path)} cannot be read: {error.strerror}.") from error
    _check_size(path, len(data), largest)
    return data


def _check_size(path: Path, size: int, largest: int) -> None:
    if size > largest:
        raise Damaged(f"{shown(path)} is larger than {largest:,} bytes; a file of this kind is never so large.")


def read_json(path: Path, model: type[T] | TypeAdapter[T], *, largest: int = LARGEST) -> T:
    """The value of a JSON file as a model.

    Args:
        path: the file.
        model: a closed pydantic model, or a type that pydantic can check, such as `dict[str, int]`.
        largest: how many bytes the file may have.

    Raises:
        DapError: the file cannot be read, is not JSON, or does not fit the model. The message names the file, and the line
            of what is wrong.
    """
    text = read_text(path, largest)
    return fitted(parse_json(text, path), model, path, text)


def read_yaml(path: Path, model: type[T] | TypeAdapter[T], *, largest: int = LARGEST_YAML) -> T:
    """The value of a YAML file as a model, as `read_json` gives that of a JSON file."""
    text = read_text(path, largest)
    return fitted(parse_yaml(text, path), model, path, text)


def read_names(path: Path) -> list[str]:
    """The class names in a JSON file that is a list of them in label order: 1 to 10**6 names.

    Raises:
        DapError: the file cannot be read, is not JSON, or is no such list.
    """
    from pydantic import Field, TypeAdapter

    from dap.base.fields import Name

    names = read_json(path, TypeAdapter(Any))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DapError(f'{shown(path)} must hold a list of class names in label order, such as ["cat", "dog"].')
    return fitted(names, TypeAdapter(Annotated[list[Name], Field(min_length=1, max_length=10**6)]), path)


@dataclass(frozen=True)
class Line(Generic[T]):
    """One line of a file of JSON lines.

    Attributes:
        number: the number of the line, from 1.
        value: what the line holds; None where the line cannot be used.
        problem: why the line cannot be used, in words, with file and line; None where it can.
    """

    number: int
    value: T | None
    problem: str | None


def read_lines(path: Path, model: type[T] | TypeAdapter[T], *, largest: int = LARGEST_LINES) -> Iterator[Line[T]]:
    """Every line of a file of JSON lines that is not empty; nothing where there is no file.

    A line that cannot be used does not stop the reading: a killed writer leaves half a last line. The caller decides what
    a problem means.

    Raises:
        DapError: the file is no regular file, or it is larger than `largest` bytes.
    """
    if not os.path.lexists(path):
        return
    _check_size(path, regular(path).stat().st_size, largest)
    check = _adapter(model)
    with path.open("rb") as file:
        number = 0
        while data := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{shown(path)}, line {number}"
            if len(data) > LONGEST_LINE:
                while data and not data.endswith(b"\n"):
                    data = file.readline(LONGEST_LINE)
                yield Line(number, None, f"{where}: it is longer than {LONGEST_LINE:,} bytes.")
                continue
            if not data.strip():
                continue
            try:
                value = parse_json(decode(data, path), path)
                yield Line(number, fitted(value, check, where), None)
            except DapError as error:
                said = str(error)
                if not said.startswith(where):  # the parser counts lines inside its own text
                    said = f"{where}: {said.partition(': ')[2] or said}"
                yield Line(number, None, said)


def fitted(value: Any, model: type[T] | TypeAdapter[T], where: Path | str, text: str | None = None) -> T:
    """A value as a model.

    Args:
        value: what a parser made.
        model: a closed pydantic model, or a type that pydantic can check.
        where: the file, and the line where it is known, for the message.
        text: the text that was parsed, in which the line of a wrong value is looked up.

    Raises:
        DapError: the value does not fit. The message names each wrong value, at most five.
    """
    from pydantic import ValidationError

    try:
        return _adapter(model).validate_python(value)
    except ValidationError as error:
        raise Damaged(told(error, where, text)) from error


def _adapter(model: Any) -> Any:
    from pydantic import TypeAdapter

    return model if isinstance(model, TypeAdapter) else TypeAdapter(model)
