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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dap.base.errors import DapError

log = logging.getLogger(__name__)

_LOCK = threading.RLock()

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
"""The errors of a file system that has no locks of files."""

LEASE = 60.0
"""Seconds after which a lease that takes the place of a lock is free, unless its holder has renewed it. It is free at once if its
holder was killed on this machine."""


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is inside such a block. A thread that is inside may enter again."""
    with _LOCK:
        yield


class Busy(DapError):
    """Another process is writing the same folder."""


@contextmanager
def held(lock: Path, wait: float | None = None, *, lease: Path | None = None, look: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file while the block runs.

    Where the file system has no locks, a lease is held. A holder that stops for `LEASE` seconds and goes on later
    has lost the lease without knowing it, so what is written under it must be the same whoever writes it.

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
    from filelock import FileLock, SoftFileLease, Timeout

    seconds = -1 if wait is None else wait
    mine = FileLock(lock, timeout=seconds, fallback_to_soft=False)
    try:
        mine.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        log.debug("%s: no locks on this file system (%s), so a lease takes its place", lock, error)
        mine = SoftFileLease(lease or lock.with_name(f"{lock.name}-lease"), lease_duration=LEASE, timeout=0)
        try:
            mine.acquire()
        except Timeout:  # this look may only have removed the lease of a killed process
            mine.acquire(timeout=seconds if wait is None else max(wait, look, 0.1))
    try:
        yield
    finally:
        mine.release()


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
