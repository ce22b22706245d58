"""Files that are there whole or not at all, and reading what an interrupted writer left."""

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
    """Write a file so that it is there whole or not at all.

    Raises:
        OSError: with the path in it; nothing is left behind.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, for what need not be in memory as a whole.

    Raises:
        OSError: with the path in it; nothing is left behind.
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
    """Hold a folder for writing; makes it if need be.

    Raises:
        DapError: another process holds it. The lock of a killed process is free at once.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise DapError(f"Another process is writing {folder}; wait for it or stop it.") from error


def check_folder(out: Path) -> None:
    """Whether a folder is there or can be.

    Raises:
        DapError: it, or one that it should lie in, is a file.
    """
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise DapError(f"{place} is a file; give a folder with --out.")
            return


def in_use(out: Path) -> bool:
    """Whether there is something in a folder, a left lock aside.

    Raises:
        DapError: it is a file.
    """
    check_folder(out)
    return out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir())


@contextmanager
def building(out: Path, marker: str) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `out` when the block ends well; whatever goes wrong, `out` stays.

    Where `out` is in use already, its files are replaced one by one, and `marker`, a file in it, last.

    Raises:
        DapError: another process is building the same folder.
        OSError: with the path in it.
    """
    out = out.resolve()
    aside = out.with_name(f".{out.name}.partial")
    with locked(aside):
        try:
            for left in aside.iterdir():  # of a process that was killed
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


def natural_order(file: Path) -> tuple[str, str]:
    """A sorting key under which 2.png comes before 10.png."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), file.stem), file.name


def dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DapError(f"{path} is not valid JSON ({error}); restore it, or start in a new folder.") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines; a torn last line, left by a killed writer, is not one."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def drop_torn_line(path: Path) -> None:
    if path.is_file():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            write_atomically(path, data[: data.rfind(b"\n") + 1])


def sha256_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
