"""The size of a shared cache. Entries that were not used for the longest time go when the cache passes its limit."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from dap.base.alone import held
from dap.base.errors import DapError

log = logging.getLogger("dap")

ENTRY = re.compile(r".*-[0-9a-f]{16}\.(safetensors|pt)")
"""The names of files that a store writes. Other files of the folder are never removed."""

OLD = 24 * 3600.0
"""Seconds after which a checkpoint that nobody has written again counts as left behind."""

PART = 50
"""The folder is listed again each time that this process has written a 50th of the limit to it."""

_written: dict[Path, int] = {}
"""For each cache, the bytes that this process has written since it last listed the folder."""


def limit() -> int:
    """The most bytes that a cache may have: 20 GiB, or as many GiB as the environment variable DAP_CACHE_GIB says.

    Raises:
        DapError: the variable holds no number above 0.
    """
    said = os.environ.get("DAP_CACHE_GIB", "20")
    try:
        found = float(said)
    except ValueError:
        found = 0.0
    if not 0 < found < 2**40:
        raise DapError(f"DAP_CACHE_GIB holds {said!r}; set it to a number of GiB above 0, such as 20.")
    return int(found * 2**30)


def keep_small(folder: Path, written: int) -> None:
    """Remove the entries of a cache that were not used for the longest time, if the cache has passed its `limit`.

    An entry that another process is making or reading is locked and stays. The folder is listed when this process first
    writes to it and then once in a while, so the cache can be larger than its limit by a few hundredths.

    Args:
        folder: the cache.
        written: the bytes that were written to it just now.
    """
    most = limit()
    seen = _written.get(folder)
    _written[folder] = (seen or 0) + written
    if seen is not None and _written[folder] < most // PART:
        return
    _written[folder] = 0
    entries = sorted(_entries(folder))
    total = sum(size for _, size, _ in entries)
    removed = freed = 0
    for _, size, file in entries[:-1]:  # the newest is the one that was written just now
        if total - freed <= most:
            break
        if _remove(file):
            removed, freed = removed + 1, freed + size
    if removed:
        log.warning(
            "The cache %s was larger than %.3g GiB; %d entries that were not used for the longest time were removed",
            folder, most / 2**30, removed,
        )  # fmt: skip


def touch(file: Path) -> None:
    """Note that an entry was used now. A folder that cannot be written keeps its times."""
    with contextlib.suppress(OSError):
        os.utime(file)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of the last use, bytes, file) of every entry. Symbolic links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if ENTRY.fullmatch(name) and not file.is_symlink():
                with contextlib.suppress(OSError):  # another process removed it just now
                    about = file.stat()
                    yield about.st_mtime, about.st_size, file


def _remove(file: Path) -> bool:
    """Remove an entry that nobody holds. Says whether it was removed."""
    from filelock import Timeout

    try:
        if file.suffix == ".pt":
            if time.time() - file.stat().st_mtime < OLD:
                return False
            file.unlink()
            return True
        with held(file.with_name(f".{file.stem}.lock"), 0):
            file.unlink(missing_ok=True)
    except (OSError, Timeout):
        return False
    return True
