"""What a file is, by its content. Files are hashed once; an index of the user remembers the hashes.

A file counts as unchanged, and is not read again, while its size, its times of change (mtime and ctime, in ns), its inode and
its device are what they were when it was hashed. This is what is trusted. A file that was changed within two seconds before it
was hashed is not remembered, because a clock that ticks slowly could hide a second change.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

log = logging.getLogger("dap")

DECODING = 2
"""The version of the rules by which a file becomes pixels. It is part of the identity of files that are decoded. Raise it when
`decode` gives other pixels for the same file."""

MARK, DIGEST = 16, 32

UNREADABLE = "unreadable"
"""Stands where there is no hash of a file."""
NOT_READ = bytes(DIGEST)
"""The same among hashes as bytes."""

SETTLED = 2 * 10**9
"""How many ns must lie between the last change of a file and its hash, so that the hash is remembered."""
LARGEST = 2 * 2**30
"""How many bytes the index may have. A larger index is begun anew."""
THREADS = 8
"""How many files are read at once: a disk that is far away answers late."""
TELL_FROM = 2 * 2**30
"""From how many bytes on the user is told that files are read once."""


def folder() -> Path:
    """The folder of the index: `$DAP_CACHE`, or the user's own cache folder."""
    if given := os.environ.get("DAP_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "dap"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dap"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dap"


def hashes(root: Path, files: list[str]) -> list[str]:
    """The sha256 of files in hexadecimal, or "unreadable", in their order.

    Args:
        root: the folder that the files lie in.
        files: paths relative to the folder. They need no order, but files of one folder are looked up together.
    """
    found = digests(root, files)
    parts = (bytes(found[at : at + DIGEST]) for at in range(0, len(found), DIGEST))
    return [UNREADABLE if digest == NOT_READ else digest.hex() for digest in parts]


def digests(root: Path, files: Sequence[str]) -> bytearray:
    """The sha256 of files one after the other, `DIGEST` bytes each, or `NOT_READ`, in their order; see `hashes`."""
    groups: dict[str, list[int]] = {}
    for place, file in enumerate(files):
        groups.setdefault(file.rpartition("/")[0], []).append(place)
    found = bytearray(DIGEST * len(files))
    told, pending = False, 0
    with _index() as index, ThreadPoolExecutor(THREADS) as pool:
        for inner, places in groups.items():
            where = os.path.realpath(root / inner)
            known = index.known(where)
            new: dict[bytes, bytes] = {}
            missing: list[tuple[int, bytes, int]] = []
            for place, (mark, size, changed) in zip(places, _marks(root, [files[k] for k in places]), strict=True):
                digest = known.get(mark) if mark else None
                if digest is not None:
                    found[place * DIGEST : (place + 1) * DIGEST] = digest
                elif mark:
                    missing.append((place, mark, changed))
                    pending += size
            if pending > TELL_FROM and not told:
                told = True
                log.info(
                    "reading the files of %s once, to know them by their content; the next run remembers them", root
                )
            paths = [str(root / files[place]) for place, _, _ in missing]
            now = time.time_ns()
            for (place, mark, changed), digest in zip(missing, _all(pool, paths), strict=True):
                if digest is not None:
                    found[place * DIGEST : (place + 1) * DIGEST] = digest
                    if changed < now - SETTLED:
                        new[mark] = digest
            if new:
                index.keep(where, {**known, **new} if len(known) < 4 * len(places) else new)
    return found


def _all(pool: ThreadPoolExecutor, paths: Sequence[str]) -> Iterable[bytes | None]:
    """The sha256 of each file. Few files are cheaper without threads."""
    return map(_sha256, paths) if len(paths) < 32 else pool.map(_sha256, paths, chunksize=64)


def _sha256(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.digest()
    except OSError:
        return None


def _marks(root: Path, files: Sequence[str]) -> Iterator[tuple[bytes | None, int, int]]:
    """For each file: a short hash of its name and of all that tells a change, its size, and the time of the last change.
    None for what is no regular file."""
    start, look, regular = os.path.join(root, ""), os.stat, stat.S_ISREG  # once: there may be a million files
    for file in files:
        try:
            seen = look(start + file if file[:1] != "/" else file)
        except (OSError, ValueError):
            yield None, 0, 0
            continue
        if not regular(seen.st_mode):
            yield None, 0, 0
            continue
        mtime, ctime = seen.st_mtime_ns, seen.st_ctime_ns
        facts = f"({seen.st_size}, {mtime}, {ctime}, {seen.st_ino}, {seen.st_dev})"
        name = os.fsencode(file[file.rfind("/") + 1 :] + "\0" + facts)
        yield hashlib.blake2b(name, digest_size=MARK).digest(), seen.st_size, max(mtime, ctime)


class _Index:
    """The index on disk: for each folder one row with the marks and hashes of its files. None: there is no place for it."""

    def __init__(self, base: sqlite3.Connection | None) -> None:
        self._base = base

    def known(self, where: str) -> dict[bytes, bytes]:
        """What is remembered of the files of a folder: mark -> sha256."""
        if self._base is None:
            return {}
        try:
            row = self._base.execute("SELECT files FROM folders WHERE path = ?", (os.fsencode(where),)).fetchone()
        except sqlite3.Error:
            return {}
        data = row[0] if row and isinstance(row[0], bytes) else b""
        body, check = data[:-MARK], data[-MARK:]
        if not body or len(body) % (MARK + DIGEST) or _check(body) != check:
            return {}
        step = MARK + DIGEST
        return {body[at : at + MARK]: body[at + MARK : at + step] for at in range(0, len(body), step)}

    def keep(self, where: str, files: dict[bytes, bytes]) -> None:
        """Remember the files of a folder. Two processes may do so at once: one of them wins, and the other hashes again."""
        if self._base is None:
            return
        body = b"".join(mark + digest for mark, digest in files.items())
        try:
            with self._base:
                row = (os.fsencode(where), body + _check(body))
                self._base.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", row)
        except sqlite3.Error as error:
            log.debug("the index of files could not be written: %s", error)
            self._base = None


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=MARK, person=b"dap index").digest()


@contextmanager
def _index() -> Iterator[_Index]:
    """The index of the user. Where it cannot be opened, nothing is remembered and every file is hashed."""
    base = None
    for again in (False, True):
        try:
            file = folder() / "files.sqlite"
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if file.exists() and (again or file.stat().st_size > LARGEST):
                file.unlink()
            base = sqlite3.connect(file, timeout=10)
            base.execute("CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY, files BLOB) WITHOUT ROWID")
            base.execute("SELECT path FROM folders LIMIT 1").fetchone()
            break
        except sqlite3.OperationalError:  # no right to write, or another process holds it for long
            base = None
            break
        except (
            sqlite3.DatabaseError,
            UnicodeDecodeError,
        ):  # a damaged file is begun anew, once; its names are no text either
            base = None
        except (OSError, RuntimeError):
            break
    if base is None:
        yield _Index(None)
        return
    with closing(base):
        yield _Index(base)
