"""What a terminal shows while work is going on, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from tqdm import tqdm


class Bars:
    """A progress bar for images, one for the epochs of a training, and a line for each result."""

    open: ClassVar[list[Any]] = []

    def images(self, name: str) -> Callable[[int, int, str], None]:
        bar: Any = None

        def told(done: int, total: int, what: str) -> None:
            nonlocal bar  # begun late, so that an error before the first image stands on a line of its own
            if bar is None:
                bar = tqdm(desc=name, unit="image", leave=False, dynamic_ncols=True, total=total)
                self.open.append(bar)
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)
            if done == total:
                bar.close()
                self.open.remove(bar)

        return told

    def epoch(self, seed: int, done: int, total: int) -> None:
        if done == 1:
            bar = tqdm(desc=f"training, seed {seed}", unit="epoch", leave=False, dynamic_ncols=True, total=total)
            self.open.append(bar)
        self.open[-1].update(1)
        if done == total:
            self.open.pop().close()

    def trial(self, name: str, trial: Any) -> None:
        tqdm.write(
            f"{name}: {trial.network}, seed {trial.seed}: {trial.accuracy:.1%} ({trial.seconds:.0f} s)", sys.stderr
        )
