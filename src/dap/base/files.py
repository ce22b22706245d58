"""Writing files so that a reader finds the whole file or none, and reading files whose writer was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dap.base.errors import DapError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the whole file or the one that was there before.

    Raises:
        OSError: the disk is full or the folder cannot be written; the error holds the path, and no part is left behind.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that replaces `path` when the block ends without an error.

    Use this function where the content is too large to hold in memory as a whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the error holds the path, and no part is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for writing while the block runs; the folder is made where it does not exist.

    Raises:
        DapError: another process holds the folder. The system frees the lock of a killed process at once.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise DapError(f"Another process is writing {folder}; wait for it or stop it.") from error


def check_folder(out: Path) -> None:
    """Check that a folder exists or can be made.

    Raises:
        DapError: the path itself, or one of the folders above it, is a file.
    """
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise DapError(f"{place} is a file; give a folder with --out.")
            return


def in_use(out: Path) -> bool:
    """Whether a folder holds any file; a lock that a killed process left does not count.

    Raises:
        DapError: the path is a file.
    """
    check_folder(out)
    return out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir())


@contextmanager
def building(out: Path, marker: str) -> Iterator[Path]:
    """Give an empty folder to fill; that folder replaces `out` when the block ends without an error.

    After an error `out` is as it was. Where `out` holds files already, they are replaced one by one. The file `marker` is
    replaced last, so a reader who checks the marker never sees a mixture.

    Raises:
        DapError: another process is building the same folder.
        OSError: a file cannot be written; the error holds the path.
    """
    out = out.resolve()
    aside = out.with_name(f".{out.name}.partial")
    with locked(aside):
        try:
            for left in aside.iterdir():  # files of a process that was killed
                if left.name != ".lock":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield aside
            if not in_use(out):
                if out.is_dir():
                    (out / ".lock").unlink(missing_ok=True)
                    out.rmdir()
                os.replace(aside, out)
                (out / ".lock").unlink()
                return
            files = [file for file in aside.rglob("*") if file.is_file() and file.name != ".lock"]
            for file in sorted(files, key=lambda file: file == aside / marker):
                target = out / file.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def inside(folder: Path, relative: str) -> Path:
    """The path of a file of a folder, which must be a regular file that really lies inside the folder.

    Args:
        folder: the folder.
        relative: the path as a file of the folder says it, such as a line of a manifest.

    Raises:
        DapError: the path leads out of the folder, by itself or by a symbolic link, or to no regular file.
    """
    from dap.base.documents import regular
    from dap.base.parsing import shown

    path = regular(folder / relative)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DapError(f"{shown(relative)} leads out of {shown(folder)}; what it leads to is no part of this folder.")
    return path


def natural_order(file: Path) -> tuple[str, str]:
    """The sorting key that puts 2.png before 10.png."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), file.stem), file.name


def dump(value: Any) -> bytes:
    """JSON text as this package writes it to files: indented by one, in UTF-8, with a newline at the end."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DapError: the file is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DapError(f"{path} is not valid JSON ({error}); restore it, or start in a new folder.") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The values of a file of JSON lines; nothing where there is no file.

    A killed writer can leave half a last line. That line, and any other that is not JSON, is left out.
    """
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def drop_torn_line(path: Path) -> None:
    """Cut off the half line that a killed writer left at the end of a file, so that the next line starts on its own."""
    if path.is_file():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            write_atomically(path, data[: data.rfind(b"\n") + 1])


def sha256_of(path: Path) -> str | None:
    """The sha256 of a file as 64 hex digits; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
