"""A store keeps tensors that a run makes once: trained weights, trajectories, unfinished optimisations.

A `Store` belongs to one distilled set, or many runs share it. The key of an entry names everything that the entry depends
on. So a store can be deleted at any time: the next run makes the missing entries again, with the same bytes.

Each file says what it holds, and has a checksum of it. A file that is cut, changed or exchanged with another one is not
used: a warning names it, and what it should hold is made again. The same holds for files of versions before checksums.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.base.alone import held
from dap.base.cache import keep_small, touch
from dap.base.checksums import digest_of
from dap.base.errors import DapError
from dap.base.files import replacing, write_atomically
from dap.base.parsing import shown

log = logging.getLogger("dap")

HELD_BYTES = 256 * 2**20
"""Bytes of a folder's entries that are kept in memory too. There is a bound because weights can have gigabytes."""

SHARE = 0.1
"""The largest part of the running time that writing large checkpoints may take."""


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints of long work: 60, or what the environment variable DAP_CHECKPOINT_SECONDS says."""
    return float(os.environ.get("DAP_CHECKPOINT_SECONDS", 60))


@dataclass
class Checkpoint:
    """The file that holds the state of long work, so that work which was killed can go on.

    Args:
        path: the file, which each write replaces as a whole; None keeps nothing.
        key: a hash of everything the work depends on; a file with another key is ignored.
        every: seconds between two writes, for callers that ask `due`.
    """

    path: Path | None
    key: str
    every: float = 60.0
    carried: float = field(default=0.0, init=False)
    """Seconds that earlier processes spent on this work; known after `read`."""
    _began: float = field(init=False, repr=False)
    _written: float = field(init=False, repr=False)
    _took: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._began = self._written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state that was written last under this key; None where there is none or the file cannot be read."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            told = state.pop("sha256", None) if isinstance(state, dict) else None
            whole = told is not None and told == digest_of(state)
        except Exception as error:  # a damaged file raises many kinds of errors; the work then starts anew
            log.warning("%s cannot be read (%s); this work starts anew", shown(self.path), type(error).__name__)
            return None
        if not isinstance(state, dict) or state.get("key") != self.key:
            log.warning("%s holds other work; this work starts anew", shown(self.path))
            return None
        if not whole or not isinstance(state.get("spent"), float):
            log.warning("%s does not match its checksum; this work starts anew", shown(self.path))
            return None
        self.carried = state.pop("spent")
        return state

    @property
    def due(self) -> bool:
        """Whether the next write is due: `every` seconds after the last one, and later where a write takes long."""
        wait = max(self.every, self._took / SHARE) if self.every else 0.0
        return self.path is not None and time.monotonic() - self._written >= wait

    def write(self, state: dict[str, Any]) -> None:
        """Write a state: tensors, numbers, texts, and lists and mappings of these."""
        if self.path is None:
            return
        began = time.monotonic()
        with replacing(self.path) as file:
            whole = {**state, "key": self.key, "spent": self.carried + began - self._began}
            torch.save({**whole, "sha256": digest_of(whole)}, file)
        self._written = time.monotonic()
        self._took = self._written - began


class Store:
    """Named tensors that are made once.

    Args:
        folder: the folder of the files; None keeps the tensors in memory alone.
        inputs: what all entries depend on beside their own keys: fingerprints of data, weights and code.
        every: seconds between two checkpoints.
        hold: how many bytes of what lies in the folder may stay in memory too. 0 holds nothing; None: `HELD_BYTES`.
        cache: the shared cache in which `folder` lies. Its size is kept below a limit, see `base.cache`. None: the folder
            belongs to one set and has no limit.
    """

    def __init__(
        self,
        folder: Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        every: float = 60.0,
        hold: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.folder, self.inputs, self.every, self.cache = folder, dict(inputs or {}), every, cache
        self.hold = HELD_BYTES if hold is None else hold
        self._held: dict[str, dict[str, Tensor]] = {}
        self._counted: set[str] = set()
        self._checkpoints: list[Checkpoint] = []
        self.used: dict[str, dict[str, Any]] = {}
        """For each name that was asked for: the seconds it took to make, over all keys, and whether this run made it."""
        self.waited = 0.0
        """Seconds in which this process waited for another one that made the same entry."""

    def get(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of this name and key, on the CPU; `make` is called where the store does not have them.

        Where several processes ask for the same entry, one of them makes it and the others wait.

        Args:
            name: a name for people, which is also part of the file's name.
            key: everything the entry depends on beside `inputs`, as JSON values.
            make: computes the tensors.
        """
        of = self._said(name, key)
        mark = f"{_file_name(name)}-{_hash(of)}"
        if (held := self._held.get(mark)) is not None:
            return held
        asked = time.monotonic()
        with self._alone(mark):
            began, carried = time.monotonic(), self.carried
            self.waited += began - asked
            found = self._read(mark, of)
            if found is None:
                value = {part: tensor.detach().cpu().contiguous() for part, tensor in make().items()}
                seconds = time.monotonic() - began + self.carried - carried
                self._write(mark, value, seconds, of)
            else:
                value, seconds = found
        self._held[mark] = value
        least = 1 if self.hold else 0  # the newest stays even if it alone is too large
        while self.folder is not None and len(self._held) > least and self._bytes() > self.hold:
            del self._held[next(iter(self._held))]
        if mark not in self._counted:  # an entry that left the memory and is read again was counted before
            self._counted.add(mark)
            self._count(name, seconds, made=found is None)
        return value

    def _bytes(self) -> int:
        return sum(tensor.nbytes for value in self._held.values() for tensor in value.values())

    def _count(self, name: str, seconds: float, *, made: bool) -> None:
        entry = self.used.setdefault(name, {"seconds": 0.0, "made": made})
        if entry["made"] != made:  # the run's own seconds hold the time of one of them and not of the other
            said = f"{name} ({'made here' if made else 'made before'})"
            entry = self.used.setdefault(said, {"seconds": 0.0, "made": made})
        entry["seconds"] = round(entry["seconds"] + seconds, 2)

    def checkpoint(self, name: str, key: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint for long work. Call `discard` when the result of the work is kept."""
        mark = _hash(self._said(name, key))
        path = None if self.folder is None else self.folder / f"{_file_name(name)}-{mark}.pt"
        made = Checkpoint(path, mark, self.every)
        self._checkpoints.append(made)
        return made

    @property
    def carried(self) -> float:
        """Seconds that killed runs spent on the work that this run continued."""
        return sum(checkpoint.carried for checkpoint in self._checkpoints)

    @staticmethod
    def discard(checkpoint: Checkpoint) -> None:
        """Delete the file of a checkpoint whose work is finished."""
        if checkpoint.path is not None:
            checkpoint.path.unlink(missing_ok=True)

    def _said(self, name: str, key: Mapping[str, Any]) -> str:
        """What an entry is of: its name and everything that it depends on, as one text."""
        return json.dumps([name, self.inputs, dict(key)], sort_keys=True, default=str)

    @contextmanager
    def _alone(self, mark: str) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder / f".{mark}.lock"):
            yield

    def _read(self, mark: str, of: str) -> tuple[dict[str, Tensor], float] | None:
        if self.folder is None:
            return None
        file = self.folder / f"{mark}.safetensors"
        if not file.is_file():
            return None
        try:
            return _entry(file, of)
        except DapError as error:
            log.warning("%s %s; it is made again", shown(file), error)
            return None

    def _write(self, mark: str, value: dict[str, Tensor], seconds: float, of: str) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save

        about = {"seconds": f"{seconds:.2f}", "of": of}
        data = save(value, {**about, "sha256": digest_of([about, dict(sorted(value.items()))])})
        write_atomically(self.folder / f"{mark}.safetensors", data)
        if self.cache is not None:
            keep_small(self.cache, len(data))


def _entry(file: Path, of: str) -> tuple[dict[str, Tensor], float]:
    """The tensors of an entry, and the seconds that they took.

    Raises:
        DapError: the file does not hold what it should; the message says why and goes on from the file's name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            about = dict(opened.metadata() or {})
            value = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:  # a crash of the machine cut it short
        raise DapError(f"cannot be read ({type(error).__name__})") from error
    said = about.pop("sha256", None)
    if said is None:
        raise DapError("has no checksum, as files of earlier versions")
    if said != digest_of([{name: about.get(name) for name in ("seconds", "of")}, dict(sorted(value.items()))]):
        raise DapError("does not match its checksum")
    if about["of"] != of:
        raise DapError("is of something else")
    touch(file)
    return value, float(about["seconds"])


def _hash(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _file_name(name: str) -> str:
    """A name as part of a file name. Characters that file names cannot hold are replaced; the hash tells names apart."""
    return re.sub(r"[^\w ,.()'+-]", "_", name).encode()[:120].decode(errors="ignore")
