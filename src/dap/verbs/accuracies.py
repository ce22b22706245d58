"""The table of accuracies of sets on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from dap.evaluation.report.expected import Claims
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import Row, summarise
from dap.evaluation.report.tables import accuracies as comma_separated
from dap.evaluation.report.terminal import terminal
from dap.evaluation.report.wording import table
from dap.published import published


def accuracies(sets: Sequence[Path]) -> Any:
    """The accuracies of these sets, beside what is published for them.

    Raises:
        DapError: a file of a set cannot be read.
    """
    return _Table(summarise(load(sets)), Claims(published=published))


class _Table:
    """Stands in for `evaluation.report.tables.Table` until that one holds the accuracies."""

    def __init__(self, rows: list[Row], claims: Claims) -> None:
        self.rows, self.claims = rows, claims

    def markdown(self) -> str:
        return table(self.rows, self.claims)

    def csv(self) -> str:
        return comma_separated(self.rows, self.claims)

    def terminal(self, width: int) -> str:
        return terminal(self.rows, self.claims, width)

    def html(self) -> str:
        return f"<pre>{escape(terminal(self.rows, self.claims, 160))}</pre>"
