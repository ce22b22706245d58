"""What a run makes once and keeps: trained weights, trajectories, half-done optimisations.

A `Store` belongs to one distilled set, or is shared by many runs. Everything in it is keyed by all that it depends on, so it
can be deleted at any time: what is missing is made again, with the same bytes.
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

from dap.base.files import replacing, write_atomically

log = logging.getLogger("dap")

HELD_BYTES = 256 * 2**20
"""How much of what lies in a folder is kept in memory too. Weights may have gigabytes, and prototypes a thousand classes."""

SHARE = 0.1
"""Part of the time that writing checkpoints may take, where they are large."""


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints of long work: 60, or what the environment variable DAP_CHECKPOINT_SECONDS says."""
    return float(os.environ.get("DAP_CHECKPOINT_SECONDS", 60))


@dataclass
class Checkpoint:
    """Where a long piece of work is kept while it runs, so that a killed one goes on.

    Args:
        path: the file, replaced as a whole; None keeps nothing.
        key: of everything the work depends on; a file with another key is not used.
        every: seconds between two writes, for those who ask `due`.
    """

    path: Path | None
    key: str
    every: float = 60.0
    carried: float = field(default=0.0, init=False)
    """Seconds of work before this process, known after `read`."""
    _began: float = field(init=False, repr=False)
    _written: float = field(init=False, repr=False)
    _took: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._began = self._written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What was written last under this key; None if nothing was, or it cannot be read."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:  # damaged in whatever way: the work is then begun anew
            log.warning("%s cannot be read (%s); this work starts anew", self.path, type(error).__name__)
            return None
        if not isinstance(state, dict) or state.get("key") != self.key:
            return None
        self.carried = state.pop("spent", 0.0)
        return state

    @property
    def due(self) -> bool:
        """Whether `every` seconds have passed since the last write, or since the beginning; more where a write takes long."""
        wait = max(self.every, self._took / SHARE) if self.every else 0.0
        return self.path is not None and time.monotonic() - self._written >= wait

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state of tensors, numbers, names and nestings of them."""
        if self.path is None:
            return
        began = time.monotonic()
        with replacing(self.path) as file:
            torch.save({**state, "key": self.key, "spent": self.carried + began - self._began}, file)
        self._written = time.monotonic()
        self._took = self._written - began


class Store:
    """Named tensors that are made once.

    Args:
        folder: where they are kept; None keeps them in memory alone, as a check of a method does.
        inputs: what everything in it depends on besides its own key: fingerprints of data, weights and code.
        every: seconds between two checkpoints.
    """

    def __init__(
        self, folder: Path | None = None, inputs: Mapping[str, Any] | None = None, every: float = 60.0
    ) -> None:
        self.folder, self.inputs, self.every = folder, dict(inputs or {}), every
        self._held: dict[str, dict[str, Tensor]] = {}
        self._counted: set[str] = set()
        self._checkpoints: list[Checkpoint] = []
        self.used: dict[str, dict[str, Any]] = {}
        """What was asked for, by name: the seconds it took to make, over all keys, and whether this run made it."""
        self.waited = 0.0
        """Seconds in which another process made what was asked for here."""

    def get(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of this name and key, on the CPU; `make` is called if they are not there.

        Of several processes that want the same at once, one makes it and the others wait.

        Args:
            name: for people and for the file's name.
            key: everything it depends on beyond `inputs`, as JSON values.
            make: gives the tensors.
        """
        mark = f"{_file_name(name)}-{self._hash(name, key)}"
        if (held := self._held.get(mark)) is not None:
            return held
        asked = time.monotonic()
        with self._alone(mark):
            began, carried = time.monotonic(), self.carried
            self.waited += began - asked
            found = self._read(mark)
            if found is None:
                value = {part: tensor.detach().cpu().contiguous() for part, tensor in make().items()}
                seconds = time.monotonic() - began + self.carried - carried
                self._write(mark, value, seconds)
            else:
                value, seconds = found
        self._held[mark] = value
        while self.folder is not None and len(self._held) > 1 and self._bytes() > HELD_BYTES:
            del self._held[next(iter(self._held))]
        if mark not in self._counted:  # what was let go and is read again has been counted
            self._counted.add(mark)
            self._count(name, seconds, made=found is None)
        return value

    def _bytes(self) -> int:
        return sum(tensor.nbytes for value in self._held.values() for tensor in value.values())

    def _count(self, name: str, seconds: float, *, made: bool) -> None:
        entry = self.used.setdefault(name, {"seconds": 0.0, "made": made})
        if entry["made"] != made:  # the one is in the run's own seconds and the other is not
            said = f"{name} ({'made here' if made else 'made before'})"
            entry = self.used.setdefault(said, {"seconds": 0.0, "made": made})
        entry["seconds"] = round(entry["seconds"] + seconds, 2)

    def checkpoint(self, name: str, key: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint for work that takes long; `discard` it when what it leads to is kept."""
        mark = self._hash(name, key)
        path = None if self.folder is None else self.folder / f"{_file_name(name)}-{mark}.pt"
        made = Checkpoint(path, mark, self.every)
        self._checkpoints.append(made)
        return made

    @property
    def carried(self) -> float:
        """Seconds that killed runs had spent on the work that was gone on with here."""
        return sum(checkpoint.carried for checkpoint in self._checkpoints)

    @staticmethod
    def discard(checkpoint: Checkpoint) -> None:
        """Delete a checkpoint that is no longer needed."""
        if checkpoint.path is not None:
            checkpoint.path.unlink(missing_ok=True)

    def _hash(self, name: str, key: Mapping[str, Any]) -> str:
        said = json.dumps([name, self.inputs, dict(key)], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @contextmanager
    def _alone(self, mark: str) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{mark}.lock"):
            yield

    def _read(self, mark: str) -> tuple[dict[str, Tensor], float] | None:
        if self.folder is None:
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.folder / f"{mark}.safetensors"), framework="pt") as file:
                seconds = float((file.metadata() or {}).get("seconds", 0.0))
                return {name: file.get_tensor(name) for name in file.keys()}, seconds  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):  # absent, or cut short by a crash of the machine
            return None

    def _write(self, mark: str, value: dict[str, Tensor], seconds: float) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save

        write_atomically(self.folder / f"{mark}.safetensors", save(value, {"seconds": f"{seconds:.2f}"}))


def _file_name(name: str) -> str:
    """A name as a part of a file's; class names may hold what no file name does, and the hash beside it tells them apart."""
    return re.sub(r"[^\w ,.()'+-]", "_", name).encode()[:120].decode(errors="ignore")
