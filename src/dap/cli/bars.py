"""How far long work is, on standard error: bars in a terminal, and now and then a plain line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from dap.base.watch import Watcher

EVERY = 5.0
"""Seconds between two lines where no terminal can show a bar."""

_open: list[Bars] = []


def watcher() -> Watcher:
    """Bars where standard error is a terminal that can move its cursor, else lines."""
    return Bars() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


def close() -> None:
    """Take all bars off the terminal."""
    while _open:
        _open.pop().stop()


def time_left(done: int, left: int, seconds: float) -> str:
    """How long `left` pieces of work will take if `done` of them took so many seconds; empty where nobody can know.

    Args:
        done: pieces that were finished in this time.
        left: pieces that are not finished.
        seconds: the time.
    """
    if done <= 0 or left <= 0:
        return ""
    rest = seconds / done * left
    if rest < 90:
        return f"about {rest:.0f} s left"
    return f"about {rest / 60:.0f} min left" if rest < 5400 else f"about {rest / 3600:.1f} h left"


def result(name: str, trial: Any) -> str:
    """A finished training in words."""
    return f"{name}: {trial.network}, seed {trial.seed}: {trial.accuracy:.1%} ({trial.seconds:.0f} s)"


class _Pace:
    """When work began, and how much was done by then, which an interrupted run had done before."""

    def __init__(self, done: int, clock: float) -> None:
        self.first, self.began, self.told = done, clock, False

    def left(self, done: int, total: int, clock: float) -> str:
        return time_left(done - self.first, total - done, clock - self.began)


class Bars(Watcher):
    """A bar for all cells of a grid, and under it one for the work of this moment."""

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
    """Plain lines: every result, and where the work goes on for long, every few seconds how far it is.

    Args:
        every: seconds between two lines about the same work; infinity writes results alone.
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
            if pace.told:  # work that was short, or done already, is no news
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
        self._cells = f"{done} of {total} cells" + (f", {left}" if left else "")
        if done > pace.first and clock - self._last >= self._every:
            self._write(self._cells)

    def trial(self, name: str, trial: Any) -> None:
        self.note(result(name, trial))

    def note(self, text: str) -> None:
        self._write(text)
