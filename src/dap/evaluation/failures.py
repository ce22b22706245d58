"""Trainings that fail while the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dap.base.disk import refusal
from dap.base.errors import DapError


class TrainingsFailed(DapError):
    """Trainings failed, and the message names each of them. The others are done and recorded."""


class Failures:
    """What failed so far, in sentences."""

    def __init__(self) -> None:
        self._told = list[str]()

    @contextmanager
    def noted(self, what: str = "", kind: type[DapError] = DapError) -> Iterator[None]:
        """Note a failure in the block, and go on after the block.

        An error of another kind is raised, and so is a disk that takes no more: all further work would meet it too.

        Args:
            what: a sentence that says what failed, before the one of the error that says why.
            kind: the errors that are noted.
        """
        try:
            yield
        except kind as error:
            if refusal(error) is not None:
                raise
            self._told.append(f"{what} {error}".lstrip())

    def check(self) -> None:
        """Raise `TrainingsFailed` if anything failed."""
        if self._told:
            raise TrainingsFailed(" ".join(self._told))
