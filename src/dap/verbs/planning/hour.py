"""Work that will take more than an hour says so, and how to do with less, as soon as its first pieces tell a rate."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from typing import Any

from dap.base.watch import Watcher

HOUR = 3600.0

PIECES, SECONDS = 2, 2.0
"""A rate is told by so many pieces and so many seconds, at least. A cell of a grid is long, so one of them is enough."""

LESS = {
    "images": "--budget 30m takes as much as fits half an hour, a smaller --ipc or fewer --steps take less",
    "work": "--budget 30m takes as much as fits half an hour, and dap methods NAME lists the options of a method",
    "epoch": "--epochs N trains for fewer epochs, and --protocol quick-hard is made for a laptop",
    "cells": "fewer --methods or --sets take less",
}
"""How to do with less, by what is told to a watcher."""


def spoken(seconds: float) -> str:
    """A time in words, such as "5 min", in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_words(seconds: float) -> str:
    """A time that was estimated, in words: at least a second, and from ten hours on in whole hours."""
    return spoken(max(seconds, 1)) if seconds < 36000 else f"{seconds / 3600:,.0f} h"


def sentence(what: str, seconds: float, less: str) -> str:
    """The sentence on work that takes more than an hour."""
    told = f"This will take about {in_words(seconds)} ({what}): {less}."
    return textwrap.fill(f"{told} Ctrl-C stops, and the same command goes on where it stopped.", 100)


class Hourglass(Watcher):
    """Tells another watcher all that it is told, and once a sentence when the work will take more than an hour.

    Args:
        watcher: who is told.
        less: how to do with less, by the name of a method of `Watcher`; `LESS` has the others.
    """

    def __init__(self, watcher: Watcher, less: Mapping[str, str] | None = None) -> None:
        self._watcher, self._less = watcher, {**LESS, **(less or {})}
        self._began: dict[tuple[str, str], tuple[float, int]] = {}
        self._told = False

    def told(self) -> None:
        """The sentence has been told by somebody else, who knew it earlier."""
        self._told = True

    def _look(self, kind: str, name: str, done: int, total: int) -> None:
        if done <= 0 and kind != "cells":
            return  # what is done once before the first piece is no part of the rate
        now = time.monotonic()
        if done >= total:  # the next work of this name, such as the training of another cell, has a rate of its own
            self._began.pop((kind, name), None)
            return
        began, first = self._began.setdefault((kind, name), (now, done))
        pieces = done - first
        if self._told or pieces < (1 if kind == "cells" else PIECES) or now - began < SECONDS:
            return
        left = (now - began) / pieces * (total - done)
        if left > HOUR:
            self._told = True
            self._watcher.note(sentence(f"{name}: {done:,} of {total:,} are done", left, self._less[kind]))

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        self._watcher.images(name, done, total, what)
        self._look("images", name, done, total)

    def work(self, what: str, done: int, total: int) -> None:
        self._watcher.work(what, done, total)
        self._look("work", what, done, total)

    def epoch(self, seed: int, done: int, total: int) -> None:
        self._watcher.epoch(seed, done, total)
        self._look("epoch", f"training, seed {seed}", done, total)

    def trial(self, name: str, trial: Any) -> None:
        self._watcher.trial(name, trial)

    def cells(self, done: int, total: int) -> None:
        self._watcher.cells(done, total)
        self._look("cells", "cells", done, total)

    def note(self, text: str) -> None:
        self._watcher.note(text)
