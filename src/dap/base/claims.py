"""Several processes share pieces of work. They meet only on the file system: a lease says who works on which piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dap.base import alone
from dap.base.alone import LOOK, Busy, Lease
from dap.base.errors import DapError

CLAIMS = ".claims"
"""The name of the folder of leases. A process that works on a piece holds the lease of the piece."""


class Claims:
    """The leases of one process on pieces of work, as files in a folder that all processes see.

    If a holder stops for `alone.LEASE` seconds and goes on later, two processes may work on one piece. So the result of a piece
    must be the same whoever makes it, and must be written atomically.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._leases: dict[str, Lease] = {}
        self._mine = set[str]()

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Hold the lease of a piece while the block runs. Gives False, at once, if another process holds it."""
        name = name.replace("/", "~")
        lease = self._leases.setdefault(name, Lease(self.folder / f"{name}.lock"))
        if not lease.take():
            yield False
            return
        self._mine.add(name)
        try:
            yield True
        finally:
            self._mine.remove(name)
            lease.give_back()
            self._leases.pop(name, None)

    @contextmanager
    def wait(self, name: str, every: float = LOOK) -> Iterator[None]:
        """Hold the lease of a piece while the block runs, and wait for it before, with `every` seconds between two looks."""
        while True:
            with self.take(name) as mine:
                if mine:
                    yield
                    return
            time.sleep(every)

    def held(self, start: str = "", look: float = 0.0) -> list[str]:
        """The pieces that other processes hold, of those whose names begin with `start`.

        A lease of a process that was killed on another machine counts until it expires. It expires only for an object that
        looks again: so this looks for `look` seconds while such a lease may be one.
        """
        began = time.monotonic()
        while True:
            names = [file.name.removesuffix(".lock") for file in sorted(self.folder.glob(f"{start}*.lock"))]
            found = [name for name in names if name not in self._mine and not self._free(name)]
            there = [name for name in found if self._leases[name].elsewhere]
            if not there or time.monotonic() - began >= look:
                return found
            time.sleep(LOOK)

    def _free(self, name: str) -> bool:
        with self.take(name) as mine:
            return mine


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
                    if time.monotonic() - busy.setdefault(name, time.monotonic()) < 2 * alone.LEASE:
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
