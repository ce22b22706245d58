"""What making a set costs: seconds, peak memory, needs; kept in its `cost.json`."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dap.base.store import Store
from dap.data.sets.distilled import DistilledSet

NOTE = "cost.json"

EVERY = 1.0
"""Seconds between two writes, at least; so much of a killed run's time goes uncounted at most, beside its unit under way."""


class Meter:
    """Counts from its beginning on, and writes what a set has cost so far, over all sittings.

    Args:
        made: the set.
        needs: of its method.
        store: where its method keeps what is made once.
    """

    def __init__(self, made: DistilledSet, needs: Iterable[str], store: Store) -> None:
        self.made, self.needs, self.store = made, sorted(needs), store
        self.before: dict[str, Any] = made.noted(NOTE) or {"seconds": 0, "images": 0}
        self.began = self.written = time.monotonic()
        self.images = 0
        forget_peak_memory()

    def add(self, images: int) -> None:
        """Count images that were made just now."""
        self.images += images
        if time.monotonic() - self.written >= EVERY:
            self.write()

    def write(self) -> None:
        """Write the cost; nothing if no image was made, since looking at a finished set is no part of it."""
        if not self.images:
            return
        self.written = time.monotonic()
        # What a killed sitting spent on work that goes on here is in the checkpoint; it wrote no cost of its own for that.
        # What another process made while this one waited is in `used`, with its own seconds.
        here = self.written - self.began - self.store.waited + self.store.carried
        seconds = self.before["seconds"] + here
        cost = {
            "seconds": round(seconds, 4),  # of tiny sets too, which a hundredth would say cost nothing
            "images": self.before["images"] + self.images,
            "peak_memory_gb": max(self.before.get("peak_memory_gb", 0), peak_memory_gb()),
            "needs": self.needs,
            # What an earlier sitting made for this set stays its own.
            "prepared": {**self.store.used, **self.before.get("prepared", {})},
        }
        self.made.note(NOTE, cost)


def forget_peak_memory() -> None:
    """Let `peak_memory_gb` count from now on, where the system can: on a GPU and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Peak memory of this process since `forget_peak_memory`, in GB (10⁹ bytes): the GPU's if it is in use, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return round(int(peak) * 1024 / 1e9, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)
