"""What making a set costs: seconds, peak memory and needs. The set keeps the figures in its `cost.json`."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dap.base.files import dump, write_atomically
from dap.base.store import Store
from dap.data.sets.distilled import WORK, DistilledSet
from dap.data.sets.notes import whole_note

NOTE = "cost.json"

PARTS = f"{WORK}/cost"
"""The folder of the costs of processes that make a set together. `add_up` adds them to the cost of the set."""

EVERY = 1.0
"""The least number of seconds between two writes of the cost. If a run is killed, the cost lacks at most this much time, and the
time of the unit that was being made."""

CPU = torch.device("cpu")


class Meter:
    """Counts the cost of a set from the moment the meter is made, and adds the cost of earlier sittings.

    Args:
        made: the set.
        needs: the needs of the set's method.
        store: the place where the method keeps what it makes once.
        device: the device of the work. The peak memory of a set is that of this GPU or, on a CPU, that of the process.
        part: the name of this process among those that make the set together; "": it makes the set alone.
    """

    def __init__(
        self, made: DistilledSet, needs: Iterable[str], store: Store, device: torch.device = CPU, part: str = ""
    ) -> None:
        self.made, self.needs, self.store, self.device = made, sorted(needs), store, device
        self.name = f"{PARTS}/{part}.json" if part else NOTE
        self.before: dict[str, Any] = {"seconds": 0, "images": 0} | (made.noted(self.name) or {})
        self.began = self.written = time.monotonic()
        self.images = 0
        forget_peak_memory(device)

    def add(self, images: int) -> None:
        """Count images that were made just now."""
        self.images += images
        if time.monotonic() - self.written >= EVERY:
            self.write()

    def write(self) -> None:
        """Write the cost. Nothing is written if no image was made, because looking at a finished set costs nothing."""
        if not self.images:
            return
        self.written = time.monotonic()
        # A killed sitting may have spent time on work that goes on here. The checkpoint of that work knows the time, and
        # the killed sitting wrote no cost for it. While this process waited, another one made what both need; the seconds of
        # that work are in `used`.
        here = self.written - self.began - self.store.waited + self.store.carried
        seconds = self.before["seconds"] + here
        cost = {
            "seconds": round(seconds, 4),  # four digits, because a tiny set takes less than a hundredth of a second
            "images": self.before["images"] + self.images,
            "peak_memory_gb": max(self.before.get("peak_memory_gb") or 0, peak_memory_gb(self.device)),
            "needs": self.needs,
            # What an earlier sitting made for this set keeps the seconds that it took then.
            "prepared": {**self.store.used, **self.before.get("prepared", {})},
        }
        self.made.note(self.name, cost)


def add_up(folder: Path, without: Collection[str] = (), prepared: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add the costs of processes that made a set together to the cost of the set, and remove them.

    The seconds are the sum over all processes, and the peak memory is that of the largest one.

    Args:
        folder: the folder of the set.
        without: the names of processes that still work.
        prepared: what was made once before these processes began, as `Store.used` says it.
    """
    total: dict[str, Any] = {"seconds": 0, "images": 0} | whole_note(folder, NOTE)
    parts = [file for file in sorted((folder / PARTS).glob("*.json")) if file.stem not in without]
    for file in parts:
        one = whole_note(folder, f"{PARTS}/{file.name}")
        total["seconds"] = round(total["seconds"] + one.get("seconds", 0), 4)
        total["images"] += one.get("images", 0)
        total["peak_memory_gb"] = max(total.get("peak_memory_gb") or 0, one.get("peak_memory_gb") or 0)
        total["needs"] = one.get("needs", total.get("needs", []))
        total["prepared"] = _both(total.get("prepared", {}), one.get("prepared", {}))
    if parts or prepared:
        total["prepared"] = _both(total.get("prepared", {}), prepared)
        write_atomically(folder / NOTE, dump(total))
    for file in parts:
        file.unlink(missing_ok=True)


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two processes say of things that are made once. The process that made a thing knows its time."""
    return {**one, **{name: value for name, value in other.items() if name not in one or value.get("made")}}


def forget_peak_memory(device: torch.device = CPU) -> None:
    """Let `peak_memory_gb` count from now on. Only CUDA and Linux can do this; elsewhere the peak is that of the process.

    Args:
        device: the GPU whose peak is forgotten; a CPU has only the peak of the process.
    """
    if device.type == "cuda" and torch.cuda.is_initialized():  # before that, nothing was allocated on any GPU
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb(device: torch.device = CPU) -> float:
    """Peak memory since `forget_peak_memory`, in GB (10⁹ bytes).

    Args:
        device: a GPU gives what this process allocated on it. A CPU, or a GPU on which nothing was allocated, gives the
            resident memory of the process.
    """
    if device.type == "cuda" and (allocated := torch.cuda.max_memory_allocated(device)):
        return round(allocated / 1e9, 2)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return round(int(peak) * 1024 / 1e9, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)
