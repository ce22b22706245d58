"""What tests watch work with: a watcher whose methods are functions of a test, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dap.base.watch import Watcher


def hearing(**calls: Callable[..., Any]) -> Watcher:
    """A `Watcher` that calls these functions in place of its methods of the same names."""
    watcher = Watcher()
    vars(watcher).update(calls)
    return watcher


class Clock:
    """A clock that stands still unless somebody works. It stands in for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter
