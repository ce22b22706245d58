"""What long work tells while it runs. The command line draws bars of it; by default nobody listens."""

from __future__ import annotations

from typing import Any


class Watcher:
    """Is told how work goes on. This one keeps silent; override what you want to hear of.

    Counts are of finished pieces, so the last call of a piece of work has `done == total`.
    """

    def images(self, name: str, done: int, total: int, what: str = "") -> None:
        """`done` of `total` images of the set `name` are there; `what` is the class of the last one."""

    def work(self, what: str, done: int, total: int) -> None:
        """Long work before the first image, such as training a network: its name, and how far it is."""

    def epoch(self, seed: int, done: int, total: int) -> None:
        """A training of this seed has finished `done` of `total` epochs."""

    def trial(self, name: str, trial: Any) -> None:
        """A network was trained on the set `name` and tested; `trial` is an `evaluation.training.trials.Trial`."""

    def cells(self, done: int, total: int) -> None:
        """`done` of `total` cells of a grid are made and judged."""

    def note(self, text: str) -> None:
        """A sentence the user should read, such as what was found out about the data."""
