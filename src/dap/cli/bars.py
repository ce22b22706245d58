"""The progress of long work, on standard error: bars in a terminal, and plain lines from time to time elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from dap.base.parsing import counted
from dap.base.watch import Watcher
from dap.verbs.planning.hour import spoken

EVERY = 5.0
"""Seconds between two lines if no terminal can show a bar."""

_open: list[Bars] = []


def watcher() -> Watcher:
    """`Bars` if standard error is a terminal that can move its cursor, else `Lines`."""
    return Bars() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


def close() -> None:
    """Remove all bars from the terminal."""
    while _open:
        _open.pop().stop()


def time_left(done: int, left: int, seconds: float) -> str:
    """The time that the rest of the work will take, in words. Empty if no piece is finished or no piece is left.

    Args:
        done: the number of pieces that were finished in `seconds`.
        left: the number of pieces that are not finished.
        seconds: the time that the finished pieces took.
    """
    if done <= 0 or left <= 0:
        return ""
    return f"about {spoken(seconds / done * left)} left"


def result(name: str, trial: Any) -> str:
    """One line on a finished training: the set, the network, the seed, the accuracy in percent and the seconds."""
    return f"{name}: {trial.network}, seed {trial.seed}: {trial.accuracy:.1%} ({trial.seconds:.0f} s)"


class _Pace:
    """The time at which work began, and the number of pieces that an interrupted run had already done then."""

    def __init__(self, done: int, clock: float) -> None:
        self.first, self.began, self.told = done, clock, False

    def left(self, done: int, total: int, clock: float) -> str:
        return time_left(done - self.first, total - done, clock - self.began)


class Bars(Watcher):
    """Draws a bar for all cells of a grid, and under it a bar for the work of this moment."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[about]}", markup=False, style="dim"),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._paces: dict[str, _Pace] = {}

    def stop(self) -> None:
        self._progress.stop()

    def _bar(self, name: str, done: int, total: int, about: str = "") -> None:
        """Draw one bar. A bar begins late, so that an error before the first image stands on a line of its own."""
        clock = time.monotonic()
        if name not in self._tasks:
            if self not in _open:
                _open.append(self)
                self._progress.start()
            self._tasks[name] = self._progress.add_task(name, total=total, left="", about=about)
            self._paces[name] = _Pace(done, clock)
        left = self._paces[name].left(done, total, clock)
        self._progress.update(self._tasks[name], completed=done, total=total, left=left, about=about)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(name))

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        self._bar(name, done, total, what)

    def work(self, what: str, done: int, total: int) -> None:
        self._bar(what, done, total)

    def epoch(self, seed: int, done: int, total: int) -> None:
        self._bar(f"training, seed {seed}", done, total, "epochs")

    def cells(self, done: int, total: int) -> None:
        self._bar("all cells", done, total)

    def trial(self, name: str, trial: Any) -> None:
        self.note(result(name, trial))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Lines(Watcher):
    """Writes plain lines: one for every result and, while long work goes on, one for its progress every few seconds.

    Args:
        every: the least number of seconds between two lines, before a line on progress. With infinity only results and
            notes are written.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every, self._last = every, time.monotonic()
        self._paces: dict[str, _Pace] = {}
        self._cells = ""

    def _line(self, name: str, done: int, total: int, unit: str) -> None:
        clock = time.monotonic()
        pace = self._paces.setdefault(name, _Pace(done, clock))
        if done >= total:
            del self._paces[name]
            if pace.told:  # no line on work that was short or done before
                self._write(f"{name}: {total} {unit}")
        elif done > pace.first and clock - self._last >= self._every:
            left, pace.told = pace.left(done, total, clock), True
            self._write(", ".join(part for part in (f"{name}: {done} of {total} {unit}", left, self._cells) if part))

    def _write(self, text: str) -> None:
        self._last = time.monotonic()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        self._line(name, done, total, "images")

    def work(self, what: str, done: int, total: int) -> None:
        self._line(what, done, total, "done")

    def epoch(self, seed: int, done: int, total: int) -> None:
        self._line(f"training, seed {seed}", done, total, "epochs")

    def cells(self, done: int, total: int) -> None:
        clock = time.monotonic()
        pace = self._paces.setdefault("", _Pace(done, clock))
        left = pace.left(done, total, clock)
        self._cells = f"{done} of {counted(total, 'cell')}" + (f", {left}" if left else "")
        if done > pace.first and clock - self._last >= self._every:
            self._write(self._cells)

    def trial(self, name: str, trial: Any) -> None:
        self.note(result(name, trial))

    def note(self, text: str) -> None:
        self._write(text)
