"""Files that killed processes left behind in the middle of a write.

Each such file says in its name which process of which machine was writing it. `base.files` removes them when a process first
writes to a folder: those of processes of this machine that no longer live at once, and all others when they are a day old.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

OLD = 24 * 3600.0
"""Seconds after which a half-written file counts as left behind, whoever wrote it."""

_OURS = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d{1,10})-[0-9a-f]{8}")
"""The names of `aside_of`."""

_BEFORE = re.compile(r"\.tmp-\d{1,10}-[0-9a-f]{8}|\..+\.(html|md|tex|csv)\.\d{1,10}\.tmp")
"""Names of earlier versions, which did not tell the machine."""

_swept: set[Path] = set()
"""The folders in which this process has looked."""


def aside_of(path: Path) -> Path:
    """A new name beside a path, under which this process can write before it replaces the path."""
    return path.with_name(f".tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder. Only the first call of a process for a folder looks into it.

    Files with other names stay, and so do files that cannot be removed.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.is_file(follow_symlinks=False) and _left(entry):
                with suppress(OSError):
                    os.unlink(entry.path)


def _left(entry: os.DirEntry[str]) -> bool:
    ours = _OURS.fullmatch(entry.name)
    if ours is None and _BEFORE.fullmatch(entry.name) is None:
        return False
    with suppress(OSError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD:
            return True
    return ours is not None and ours["host"] == _host() and not _lives(int(ours["process"]))


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
