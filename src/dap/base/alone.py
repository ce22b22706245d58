"""One at a time: one thread where a library changes the state of the whole process, and one process where files are written.

diffusers, accelerate and transformers put other functions into `torch.nn.Module` while they load a model. Two loads at one time
leave these functions there for good, and every network that is built later has no weights. torch's global generator, which draws
the first weights of a network, belongs to the whole process too.

Processes meet on the file system. Some file systems of clusters have no locks of files: Lustre that was mounted without `flock`,
and NFS without its lock service. A lease, which is a file that its holder renews, takes the place of a lock there.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dap.base.errors import DapError

if TYPE_CHECKING:
    from filelock import SoftFileLease

log = logging.getLogger(__name__)

_LOCK = threading.RLock()

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
"""The errors of a file system that has no locks of files."""

LEASE = 60.0
"""Seconds after which a lease is free, unless its holder has renewed it. It is free at once if its holder was killed on this
machine."""

LOOK = 0.05
"""Seconds between two looks at a lease that another process holds."""


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is inside such a block. A thread that is inside may enter again."""
    with _LOCK:
        yield


class Busy(DapError):
    """Another process is writing the same folder."""


class Lease:
    """A file with the host, the process and the time of its holder, which a thread of the holder renews.

    It needs no lock of the file system, so it also holds on network file systems. A holder that stops for `LEASE` seconds
    has lost the lease without knowing it, so what is written under it must be the same whoever writes it.

    Whether a holder on another machine lives shows only to an object that looks again after `LEASE` seconds. So a process that
    waits keeps its object between two looks.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: SoftFileLease | None = None
        self._empty: tuple[tuple[int, int], float] | None = None
        """The file without a record of its holder: which file it is, and since when this process sees it so."""

    def take(self) -> bool:
        """Take the lease without waiting. Says whether this process holds it from now on."""
        from filelock import SoftFileLease, Timeout

        if self._file is None:
            self._file = SoftFileLease(self.path, lease_duration=LEASE, timeout=0)
        for _ in range(2):  # the first look may only remove the file of a killed process
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file.acquire()
            except (Timeout, FileNotFoundError):  # another process may remove the folder when its work is done
                self._free_if_empty()
                continue
            except OSError as error:
                if error.filename is None:  # a full disk, of which filelock does not say the path
                    raise type(error)(error.errno, error.strerror, str(self.path)) from error
                raise
            return True
        return False

    @property
    def elsewhere(self) -> bool:
        """Whether the file names a holder on another machine. If that one was killed, only looking for `LEASE` seconds tells."""
        owner = self._file.owner if self._file is not None else None
        return owner is not None and owner.hostname != socket.gethostname()

    def give_back(self) -> None:
        """Let other processes take the lease."""
        if self._file is not None:
            with suppress(OSError):  # the folder was removed meanwhile
                self._file.release()

    def _free_if_empty(self) -> None:
        """Remove a file that has stayed empty for `LEASE` seconds.

        filelock writes the record right after it has made the file. A process that is killed in between leaves a file that names
        nobody, and filelock never frees such a file.
        """
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or found.st_size:
            self._empty = None
            return
        file, now = (found.st_ino, found.st_ctime_ns), time.monotonic()
        if self._empty is None or self._empty[0] != file:
            self._empty = file, now
        elif now - self._empty[1] >= LEASE:
            self.path.unlink(missing_ok=True)
            self._empty = None


@contextmanager
def held(lock: Path, wait: float | None = None, *, lease: Path | None = None, look: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file while the block runs.

    Where the file system has no locks, a lease is held.

    Args:
        lock: the file, which is made where it does not exist.
        wait: how many seconds to wait for another process that holds it; None waits without end.
        lease: the file of the lease. By default it lies beside the lock.
        look: how many seconds to wait at least if it is a lease, which shows after `LEASE` seconds alone whether its holder on
            another machine lives.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    mine = FileLock(lock, timeout=-1 if wait is None else wait, fallback_to_soft=False)
    try:
        mine.acquire()
        let_go = mine.release
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        log.debug("%s: no locks on this file system (%s), so a lease takes its place", lock, error)
        instead = Lease(lease or lock.with_name(f"{lock.name}-lease"))
        began = time.monotonic()
        while not instead.take():
            if wait is not None and time.monotonic() - began >= max(wait, look):
                raise Timeout(str(lock)) from error
            time.sleep(LOOK)
        let_go = instead.give_back
    try:
        yield
    finally:
        let_go()


@contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold a folder for writing while the block runs; the folder is made where it does not exist.

    Args:
        folder: the folder.
        wait: how many seconds to wait for another process that holds it. On a file system without locks, at least a little longer
            than `LEASE`.

    Raises:
        Busy: another process holds the folder. The system frees the lock of a killed process at once.
        DapError: something else lies in the place of the lock.
    """
    from filelock import Timeout

    busy = f"Another process is writing {folder}; wait for it or stop it."
    folder.mkdir(parents=True, exist_ok=True)
    lock, whole = folder / ".lock", folder.resolve()
    beside = whole.with_name(f".{whole.name}.lease")  # not inside: the folder may be moved while it is held
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        raise DapError(f"{lock} is a link or no regular file, where a lock belongs; remove it.")
    with open(os.open(lock, os.O_RDONLY | os.O_CREAT, 0o644), "rb") as seen:
        try:
            with held(lock, wait, lease=beside, look=1.1 * LEASE):
                # The process that held the lock may have moved the folder away, and somebody else may hold that of a new
                # folder. While the file is open here, no other file has its number.
                if not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(seen.fileno()))):
                    raise Busy(busy)
                yield
        except Timeout as error:
            raise Busy(busy) from error
