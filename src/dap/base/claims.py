"""Several processes share pieces of work. They meet only on the file system: a lease says who works on which piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dap.base.alone import LEASE, Busy
from dap.base.errors import DapError

if TYPE_CHECKING:
    from filelock import SoftFileLease

CLAIMS = ".claims"
"""The name of the folder of leases. A process that works on a piece holds the lease of the piece."""


class Claims:
    """The leases of one process on pieces of work, as files in a folder that all processes see.

    A lease is a file with the host, the process and the time of its holder, which a thread renews. It needs no lock of the file
    system, so it also holds on network file systems. If a holder stops for `LEASE` seconds and goes on later, two processes may
    work on one piece. So the result of a piece must be the same whoever makes it, and must be written atomically.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A lease that expires must be watched for its whole time, so its object lives on between two looks.
        self._leases: dict[str, SoftFileLease] = {}
        self._mine = set[str]()
        self._empty: dict[str, tuple[tuple[int, int], float]] = {}
        """Lease files without a record: which file it is, and since when this process sees it so."""

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Hold the lease of a piece while the block runs. Gives False, at once, if another process holds it."""
        name = name.replace("/", "~")
        lease = self._acquired(name)
        if lease is None:
            yield False
            return
        self._mine.add(name)
        try:
            yield True
        finally:
            self._mine.remove(name)
            with suppress(OSError):  # the folder was removed meanwhile
                lease.release()
            self._leases.pop(name, None)

    def _acquired(self, name: str) -> SoftFileLease | None:
        """The lease of a piece, which this process holds from now on; None if another process holds it."""
        from filelock import SoftFileLease, Timeout

        lease = self._leases.get(name)
        if lease is None:
            path = self.folder / f"{name}.lock"
            lease = self._leases[name] = SoftFileLease(path, lease_duration=LEASE, timeout=0)
        for _ in range(2):  # the first look may only remove the file of a killed process
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lease.acquire()
            except (Timeout, FileNotFoundError):  # another process may remove the folder when the work is done
                self._free_if_empty(name)
                continue
            return lease
        return None

    def _free_if_empty(self, name: str) -> None:
        """Remove a lease file that has stayed empty for `LEASE` seconds.

        filelock writes the record right after it has made the file. A process that is killed in between leaves a file that names
        nobody, and filelock never frees such a file.
        """
        path = self.folder / f"{name}.lock"
        try:
            found = path.stat()
        except OSError:
            found = None
        if found is None or found.st_size:
            self._empty.pop(name, None)
            return
        file, now = (found.st_ino, found.st_ctime_ns), time.monotonic()
        if self._empty.get(name, (None, now))[0] != file:
            self._empty[name] = file, now
        elif now - self._empty[name][1] >= LEASE:
            path.unlink(missing_ok=True)
            del self._empty[name]

    @contextmanager
    def wait(self, name: str, every: float = 0.05) -> Iterator[None]:
        """Hold the lease of a piece while the block runs, and wait for it before, with `every` seconds between two looks."""
        while True:
            with self.take(name) as mine:
                if mine:
                    yield
                    return
            time.sleep(every)

    def held(self, start: str = "") -> list[str]:
        """The pieces that other processes hold, of those whose names begin with `start`. A lease of a process that was killed on
        another machine counts until it expires."""
        found = []
        for file in sorted(self.folder.glob(f"{start}*.lock")):
            name = file.name.removesuffix(".lock")
            if name in self._mine:
                continue
            with self.take(name) as mine:
                found += [] if mine else [name]
        return found


def share(pieces: Sequence[tuple[str, Callable[[], object]]], out: Path, wait: float = 1.0) -> None:
    """Do every piece that no other process holds, until all pieces are done.

    This process does a piece that another process holds after the other process lets the piece go. So this process
    finishes what a killed or stopped process left half-done. A finished piece is done again in this way, and so it must be
    cheap then.

    Args:
        pieces: for each piece its name, and the function that does it.
        out: the folder that the processes share.
        wait: the seconds between two looks at the pieces that other processes hold.

    Raises:
        DapError: a piece failed. The other pieces are done first, and the message names every failure.
    """
    claims = Claims(out / CLAIMS)
    todo, failed, busy = dict(pieces), {}, dict[str, float]()
    while todo:
        before = len(todo)
        for name in list(todo):
            with claims.take(name) as mine:
                if not mine:
                    continue
                try:
                    todo[name]()
                except Busy as error:  # a process that lost the lease, because it had stopped, still holds the folder
                    if time.monotonic() - busy.setdefault(name, time.monotonic()) < 2 * LEASE:
                        continue
                    failed[name] = error
                except DapError as error:
                    failed[name] = error
                del todo[name]
        if len(todo) == before:
            time.sleep(wait)
    if len(failed) == 1 and len(pieces) == 1:
        raise next(iter(failed.values()))
    if failed:
        told = " ".join(f"{name}: {error}" for name, error in failed.items())
        raise DapError(f"{len(failed)} of {len(pieces)} failed, the others are done. {told}")
