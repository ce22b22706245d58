"""How much memory and disk a run may take: what the user says, or what is free less a reserve."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dap.base.errors import DapError
from dap.base.workers import WORKER

GIB = 2**30

LEAST_MEMORY, LEAST_DISK = GIB, 5 * GIB
"""The reserve that is left free is at least so many bytes."""


@dataclass(frozen=True)
class Budget:
    """How much a run may take for images.

    Attributes:
        memory: bytes of memory.
        disk: bytes of files that are made while the run lasts.
        folder: the folder of these files. It need not exist.
    """

    memory: int = field(default_factory=lambda: memory_budget())
    disk: int = 0
    folder: Path | None = None


def budget_of(folder: Path, memory: float | None = None, disk: float | None = None) -> Budget:
    """The budget of a run.

    Args:
        folder: where files are made.
        memory, disk: GiB, as the user says them; None: what is free, less a reserve.

    Raises:
        DapError: a number is not above 0.
    """
    return Budget(memory_budget(memory), disk_budget(folder, disk), folder)


def memory_budget(gib: float | None = None) -> int:
    """Bytes of memory that images may take: so many GiB, or by default what is free less a quarter, and less at least 1 GiB.
    Workers that were started together share it: each may take an equal part.

    Raises:
        DapError: the number is not above 0.
    """
    if gib is not None:
        return _checked(gib, "--memory") // sharing()
    free = free_memory()
    return max(0, free - max(free // 4, LEAST_MEMORY)) // sharing()


def sharing() -> int:
    """How many workers that were started together share what this machine has, this process among them; at least 1."""
    workers = os.environ.get(WORKER, "").rpartition("/")[2]
    return int(workers) if workers.isdecimal() and int(workers) else 1


def disk_budget(folder: Path, gib: float | None = None) -> int:
    """Bytes that files in a folder may take: so many GiB, but never more than is free; by default what is free less a tenth, and
    less at least 5 GiB. Workers that were started together share it, as they share the memory.

    Raises:
        DapError: the number is not above 0.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        free = 0
    if gib is not None:
        return min(_checked(gib, "--disk"), free) // sharing()
    return max(0, free - max(free // 10, LEAST_DISK)) // sharing()


def free_memory() -> int:
    """Bytes of memory that this process can still take: of the machine, and of the control groups (containers, jobs of a
    cluster) that it runs in."""
    found = [limit for place in _groups() if (limit := _left(place)) is not None]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    if not found:  # no Linux: half of what the machine has
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found))


def _groups() -> list[Path]:
    """The folders of this process's control groups (version 2), from the innermost outwards."""
    root, found = Path("/sys/fs/cgroup"), []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                inner = root / line[4:]
                found = [inner, *inner.parents]
    return [root, *(place for place in found if root in place.parents)]


def _left(group: Path) -> int | None:
    """Bytes that a control group may still take; None where it has no limit."""
    try:
        most = int((group / "memory.max").read_text())  # "max" is no number
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    # Pages of files that nobody uses just now are given back when memory is short.
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return most - used + cached


def _checked(gib: float, flag: str) -> int:
    if not 0 < gib < 2**30:
        raise DapError(f"{flag} takes a number of GiB above 0, such as 4, not {gib:g}.")
    return int(gib * GIB)
