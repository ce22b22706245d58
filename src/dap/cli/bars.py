"""What a terminal shows while work is going on, on standard error."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from tqdm import tqdm

from dap.base.watch import Watcher


class Bars(Watcher):
    """A progress bar for images, one for the epochs of a training, and a line for each result."""

    open: ClassVar[list[Any]] = []
    _training: Any = None

    def __init__(self) -> None:
        self._work: dict[str, Any] = {}
        self._images: dict[str, Any] = {}

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        bar = self._images.get(name)
        if bar is None:  # begun late, so that an error before the first image stands on a line of its own
            bar = self._images[name] = tqdm(desc=name, unit="image", leave=False, dynamic_ncols=True, total=total)
            self.open.append(bar)
        bar.set_postfix_str(what, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            self.open.remove(bar)
            del self._images[name]

    def work(self, what: str, done: int, total: int) -> None:
        """A bar for long work before the first image."""
        bar = self._work.get(what)
        if bar is None:
            bar = self._work[what] = tqdm(
                desc=what, leave=False, dynamic_ncols=True, total=total, initial=max(0, done - 1)
            )
            self.open.append(bar)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            self.open.remove(bar)
            del self._work[what]

    def epoch(self, seed: int, done: int, total: int) -> None:
        if self._training is None:  # after an interruption it does not begin with the first epoch
            what = {"desc": f"training, seed {seed}", "unit": "epoch", "initial": done - 1, "total": total}
            self._training = tqdm(**what, leave=False, dynamic_ncols=True)
            self.open.append(self._training)
        self._training.update(1)
        if done == total:
            self._training.close()
            self.open.remove(self._training)
            self._training = None

    def trial(self, name: str, trial: Any) -> None:
        tqdm.write(
            f"{name}: {trial.network}, seed {trial.seed}: {trial.accuracy:.1%} ({trial.seconds:.0f} s)", sys.stderr
        )


class Lines(Bars):
    """Results alone, a line each: for one of several processes that share a terminal."""

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        if done == total:
            sys.stderr.write(f"{name}: {total} images\n")

    def work(self, what: str, done: int, total: int) -> None:
        if done == total:
            sys.stderr.write(f"{what}: done\n")

    def epoch(self, seed: int, done: int, total: int) -> None:
        del seed, done, total
