"""Disks: one that takes no more, said in one sentence whichever library was writing, and what killed writers left on one.

Python's own files raise `OSError`, often without a path. safetensors raises an error of its own, torch's writer a `RuntimeError`
about a position, and pyarrow something of both. `writing` makes one `OSError` with a path of all of these.

A half-written file says in its name which process of which machine was writing it. `base.files` removes such files when a process
first writes to a folder: those of processes of this machine that no longer live at once, and all others when they are a day old.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from dap.base.errors import DapError

REFUSED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.EFBIG: "the file is larger than this disk, or this shell's ulimit -f, allows",
    errno.EROFS: "the disk can be read and not written",
    errno.EIO: "the disk did not take all of it; it is full or damaged",
}
"""What it means, in words, that a disk refuses to take something, by the number of the error."""

_NUMBER = re.compile(r"\bos error (\d+)\b|\[Errno (\d+)\]")
"""How Rust and Python write the number of an error into a message."""

_OF_TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|file write failed|iostream error")
"""What torch's writer says where a file did not take everything. It does not say why."""


def refusal(error: BaseException) -> OSError | None:
    """The refusal of a disk that is behind an error: the error itself, its cause, or the number in the message of a library.

    Returns:
        An `OSError` with one of the numbers of `REFUSED`; None where the error is of something else.
    """
    chain, of_torch = list[BaseException](), False
    todo: list[BaseException | None] = [error]
    while todo:
        if (one := todo.pop()) is None or one in chain:
            continue
        chain.append(one)
        todo += [one.__context__, one.__cause__]
    for one in chain:
        if isinstance(one, OSError) and one.errno in REFUSED:
            return one
        found = _NUMBER.search(str(one)) if not isinstance(one, (OSError, DapError)) else None
        number = int(found[1] or found[2]) if found else None
        if number in REFUSED:
            return OSError(number, os.strerror(number))
        of_torch = of_torch or (isinstance(one, RuntimeError) and _OF_TORCH.search(str(one)) is not None)
    return OSError(errno.EIO, os.strerror(errno.EIO)) if of_torch else None


@contextmanager
def writing(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Let a refusal of the disk while the block runs become an `OSError` that holds the path.

    Args:
        path: the file or folder that the user knows.
        aside: where the block really writes, if that is a place beside `path`. No message names it.

    Raises:
        OSError: the disk did not take what the block wrote.
    """
    try:
        yield
    except DapError:
        raise
    except Exception as error:
        known = isinstance(error, OSError) and error.errno is not None
        found = error if known else refusal(error)
        if not isinstance(found, OSError):
            raise
        named = [
            Path(os.fsdecode(name)) for name in (found.filename2, found.filename) if isinstance(name, (str, bytes))
        ]
        within = [name.relative_to(aside) for name in named if aside is not None and name.is_relative_to(aside)]
        if within:
            path = path / within[0]
        elif named or (found.errno not in REFUSED):
            raise
        raise type(found)(found.errno, found.strerror, str(path)) from error


def told(error: OSError) -> str:
    """An error of the system as a sentence that names the path, and what to do."""
    name = error.filename2 or error.filename  # of two paths, the second one is the one that is written
    where = str(known(Path(os.fsdecode(name)))) if isinstance(name, (str, bytes)) else ""
    if error.errno in REFUSED:
        what = f"{where} cannot be written" if where else "A file cannot be written"
        do = f"{_DO.get(error.errno, 'Mend this')}, and run the same again"
        return f"{what}: {REFUSED[error.errno]}. What was made is kept. {do}."
    said = error.strerror or str(error) or type(error).__name__
    return f"{where + ': ' if where else ''}{said}. What was made is kept; mend this and run the same again."


_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EIO), "Free some space there"),
    errno.EROFS: "Give a place that can be written, or make this one writable",
}
"""What to do where a disk refuses to take something, by the number of the error."""


def known(path: Path) -> Path:
    """The path as the user knows it. Files are written under hidden names of ours before they are whole, or beside a lock."""
    for place, part in enumerate(path.parts):
        if part.startswith(".tmp-") and _OURS.fullmatch(part):
            return Path(*path.parts[:place])
        if part == ".lock":
            return Path(*path.parts[:place])
        if found := _BESIDE.fullmatch(part):
            return Path(*path.parts[:place], *(() if found["kind"] == "lock" else (found["name"],)))
    return path


_BESIDE = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|anew|gone|lease|lock)")
"""Names that this package gives to what it writes beside a file or folder. A lock is one of the folder that holds it."""


OLD = 24 * 3600.0
"""Seconds after which a half-written file or folder counts as left behind, whoever wrote it."""

_OURS = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d{1,10})-[0-9a-f]{8}")
"""The names of `aside_of`."""

_BEFORE = re.compile(r"\.tmp-\d{1,10}-[0-9a-f]{8}|\..+\.(html|md|tex|csv)\.\d{1,10}\.tmp")
"""Names of earlier versions, which did not tell the machine."""

_swept: set[Path] = set()
"""The folders in which this process has looked."""


def aside_of(path: Path) -> Path:
    """A new name beside a path, under which this process can write before it replaces the path."""
    return path.with_name(f".tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextmanager
def passing_folder(parent: Path) -> Iterator[Path]:
    """A new folder in another one, as an absolute path. The folder goes at the end of the block. What killed processes left in
    `parent` goes first. The folder's time is renewed, so that no process on another machine takes it for such a rest."""
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder = aside_of(parent.absolute() / "folder")
    folder.mkdir()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(OLD / 24):
            with suppress(OSError):
                os.utime(folder)

    threading.Thread(target=renew, name="dap-folder", daemon=True).start()
    try:
        yield folder
    finally:
        over.set()
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder. Only the first call of a process for a folder looks into it.

    Files with other names stay, and so do files that cannot be removed.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") or entry.is_symlink() or not _left(entry):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    os.unlink(entry.path)


def _left(entry: os.DirEntry[str]) -> bool:
    ours = _OURS.fullmatch(entry.name)
    if ours is None and _BEFORE.fullmatch(entry.name) is None:
        return False
    if ours is not None and ours["host"] == _host():  # however old it is: the files of a long work are read to its end
        return not _lives(int(ours["process"]))
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD
    return False


def _lives(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it lives and belongs to somebody else
        return True
    return True


@cache
def _host() -> str:
    """Eight digits for this machine. Two containers of one machine count the processes each for itself, so they differ too."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
