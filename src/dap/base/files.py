"""Writing files so that a reader finds the whole file or none, and reading files whose writer was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dap.base.alone import locked
from dap.base.disk import aside_of, sweep, writing
from dap.base.errors import DapError
from dap.base.parsing import shown


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
    aside = aside_of(path)
    with writing(path, aside):
        try:
            with _opened(aside) as file:
                sweep(path.parent)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _opened(path: Path, again: int = 9) -> BinaryIO:
    """A new file to write. Its folder is made, again if another process removes the empty folder before the file is in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except (FileNotFoundError, FileExistsError):
        if not again:
            raise
        return _opened(path, again - 1)


def append(path: Path, text: str) -> None:
    """Add a text to the end of a file, all of it or nothing of it. The file is made where there is none.

    Raises:
        OSError: the disk is full or the file cannot be written; the error holds the path.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        data, began, done = text.encode(), file.seek(0, 2), 0
        try:
            while done < len(data):
                done += file.write(data[done:]) or 0
            os.fsync(file.fileno())
        except OSError:
            if done and file.seek(0, 2) == began + done:  # nobody has written after it
                file.truncate(began)
            raise


def check_folder(out: Path) -> None:
    """Check that a folder can be written, see `check_output`.

    Raises:
        DapError: it cannot, or the path itself, or one of the folders above it, is a file.
    """
    check_output(out)
    _check_no_file(out)


def _check_no_file(out: Path) -> None:
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise DapError(f"{place} is a file; give a folder with --out.")
            return


def check_file(out: Path) -> None:
    """Check, before any work, that a path can be that of a file that is written.

    Raises:
        DapError: it is a folder, a pipe or a device, or one of the folders above it is a file.
    """
    check_folder(out.parent)
    if out.exists() and not out.is_file():
        what = "a folder" if out.is_dir() else "a pipe, a socket or a device"
        raise DapError(f"{shown(out)} is {what}; give the name of a file with --out.")


def in_use(out: Path) -> bool:
    """Whether a folder holds any file; a lock that a killed process left does not count.

    Raises:
        DapError: the path is a file.
    """
    _check_no_file(out)
    return out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir())


@contextmanager
def building(out: Path, marker: str, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Give an empty folder to fill; that folder replaces `out` when the block ends without an error.

    After an error `out` is as it was. Where `out` holds files already, they are replaced one by one. The file `marker` is
    replaced last, so a reader who checks the marker never sees a mixture.

    Args:
        out: the folder.
        marker: the name of the file that is replaced last.
        check: raises `DapError` if `out` must not be written over. It is asked while no other process can build `out`.

    Raises:
        DapError: another process is building the same folder, or `check` has raised it.
        OSError: a file cannot be written; the error holds the path.
    """
    out = out.resolve()
    aside = out.with_name(f".{out.name}.partial")
    with locked(aside):
        moved = False
        try:
            check()
            for left in aside.iterdir():  # files of a process that was killed
                if left.name != ".lock":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            with writing(out, aside):
                yield aside
            if not (aside / ".lock").is_file():
                raise DapError(
                    f"Something removed files of {out} while they were written, so it is not whole; do the same again."
                )
            if not in_use(out):
                if out.is_dir():
                    (out / ".lock").unlink(missing_ok=True)
                    out.rmdir()
                os.replace(aside, out)
                moved = True  # a folder that is aside from now on belongs to another process
                (out / ".lock").unlink(missing_ok=True)
                return
            files = [file for file in aside.rglob("*") if file.is_file() and file.name != ".lock"]
            for file in sorted(files, key=lambda file: file == aside / marker):
                target = out / file.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        finally:
            if not moved:
                shutil.rmtree(aside, ignore_errors=True)


def expanded(path: str | Path) -> Path:
    """A path with ~ and ~name as the user's folder. Where there is no such user, ~name is a name like another, as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_writable(folder: Path, advice: str) -> None:
    """Check, before any work, that files can be written into a folder, which is made where it does not exist.

    Args:
        folder: the folder.
        advice: what to do where it cannot be written, as a sentence.

    Raises:
        DapError: the folder cannot be made or written.
    """
    probe = aside_of(folder / "probe")  # a name of its own: several processes may judge one set
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DapError(f"{shown(folder)} cannot be written ({error.strerror}). {advice}") from error


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two texts name the same thing: they are equal, or they are two paths of one file or folder that is there."""
    if str(one) == str(other):
        return True
    here, there = expanded(one), expanded(other)
    return os.path.exists(here) and here.resolve() == there.resolve()  # Path.exists fails for a long text


def check_beside(out: Path, source: Path, what: str) -> None:
    """Check that a new folder does not lie in the folder that is read.

    Args:
        out: the new folder.
        source: the folder that is read.
        what: what would become of the new folder there, for the message.

    Raises:
        DapError: it lies there.
    """
    from dap.base.errors import DapError

    real, given = out.resolve(), source.resolve()
    if real != given and real.is_relative_to(given):
        raise DapError(f"{shown(out)} lies in {shown(source)}, where it {what}; give a folder elsewhere with --out.")


def check_output(out: Path, flag: str = "--out") -> None:
    """Check, before any work, that a folder can be written, and does not lie among the images of a distilled set, which would no
    longer be whole. Nothing is written.

    Args:
        out: the folder; it need not be there.
        flag: what the user gave it with.

    Raises:
        DapError: it lies there, or the system lets nobody write into it or into the nearest folder above it.
    """
    try:
        real = out.resolve()
    except (RuntimeError, OSError) as error:  # RuntimeError until Python 3.13
        raise DapError(
            f"{shown(out)} lies behind a link that leads back to itself; give another place with {flag}."
        ) from error
    for folder in (real, *real.parents):
        if folder.name == "images" and any(
            (folder.parent / name).is_file() for name in ("classes.json", "recipe.json")
        ):
            raise DapError(
                f"{shown(out)} lies in {shown(folder)}, where it would be taken for a class of the set; give a folder elsewhere "
                f"with {flag}."
            )
    there = next((folder for folder in (real, *real.parents) if folder.exists()), real)
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        of = "" if there == real else f", since the folder {shown(there)} cannot be"
        raise DapError(
            f"{shown(out)} cannot be written{of}. Give another place with {flag}, or make this one writable."
        )


def inside(folder: Path, relative: str) -> Path:
    """The path of a file of a folder, which must be a regular file that really lies inside the folder.

    Args:
        folder: the folder.
        relative: the path as a file of the folder says it, such as a line of a manifest.

    Raises:
        DapError: the path leads out of the folder, by itself or by a symbolic link, or to no regular file.
    """
    from dap.base.documents import regular

    path = regular(folder / relative)
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots(folder)):
        raise DapError(
            f"{shown(relative)} leads out of {shown(folder)}; what it leads to is no part of this folder. If you trust it, copy "
            "the folder with cp -rL, which puts files in the place of links."
        )
    return path


def roots(folder: Path) -> list[Path]:
    """The folders to which links inside a folder may lead, without links in their own paths.

    These are the folder itself and, in the cache of the Hugging Face hub, where each file of a download is a link to the
    folder `blobs` beside `snapshots`, this folder.
    """
    real = folder.resolve()
    found = [real]
    for parent in real.parents:
        blobs = parent.parent / "blobs"
        if parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            found.append(blobs)
    return found


def check_there(folder: Path, files: Iterable[str]) -> None:
    """Check that all files that were written into a folder are there.

    Raises:
        DapError: some are gone, because something removed them meanwhile; the message counts them.
    """
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise DapError(
            f"{folder} lacks {len(absent)} of the files that were written into it, such as {absent[0]}; something removed "
            "them meanwhile. Remove the folder, and make it again."
        )


def natural_order(file: Path) -> tuple[str, str]:
    """The sorting key that puts 2.png before 10.png."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), file.stem), file.name


def dump(value: Any) -> bytes:
    """JSON text as this package writes it to files: indented by one, in UTF-8, with a newline at the end.

    Raises:
        DapError: a text in it, such as the path of a folder, holds bytes that are not UTF-8.
    """
    try:
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.start].rpartition("\n")[2] + error.object[error.start :].partition("\n")[0]
        where = shown(line).strip(" ,")[:200]
        raise DapError(
            f"This name holds bytes that are not UTF-8: {where}. Rename the file or folder to UTF-8, for example with "
            "convmv -f latin1 -t utf8 --notest."
        ) from error


def drop_torn_line(path: Path) -> None:
    """Cut off the half line that a killed writer left at the end of a file, so that the next line starts on its own."""
    if path.is_file() and not ended(path):
        data = path.read_bytes()
        write_atomically(path, data[: data.rfind(b"\n") + 1])


def ended(path: Path) -> bool:
    """Whether a file is empty or ends with a newline. Only its last byte is read."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        return file.read() in (b"\n", b"")


def sha256_of(path: Path) -> str | None:
    """The sha256 of a file as 64 hex digits; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
