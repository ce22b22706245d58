"""A watcher whose methods are functions of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dap.base.watch import Watcher


def hearing(**calls: Callable[..., Any]) -> Watcher:
    """A `Watcher` that calls these functions in place of its methods of the same names."""
    watcher = Watcher()
    vars(watcher).update(calls)
    return watcher
