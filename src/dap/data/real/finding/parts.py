"""The column of a table that says to which split each image belongs, such as `split` with the values train and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.splits import Split, split_of

PARTS = frozenset(
    (
        "split",
        "splits",
        "subset",
        "partition",
        "fold",
        "set",
        "phase",
        "usage",
        "dataset",
        "data_split",
        "dataset_split",
    )
)
"""What a column is called, in lower case, that says of each image to which split it belongs."""


def parting(rows: Sequence[tuple[int, Mapping[str, Any]]], file: Path) -> tuple[str, dict[str, Split]] | None:
    """The column that says to which split each row belongs, and the split that each of its values means; None where no column
    does.

    Args:
        rows: the rows of a table with the numbers of their lines.
        file: the table, for the message.

    Raises:
        DapError: some values of the column are words for splits, and others are not.
    """
    for column in dict.fromkeys(name for _, row in rows[:20] for name in row):
        if column.lower().strip().replace(" ", "_") not in PARTS:
            continue
        lines = {str(row.get(column)): number for number, row in reversed(rows)}
        said: dict[str, Split] = {value: split for value in lines if (split := split_of(value)) is not None}
        if not said:
            continue  # such as the numbers of folds
        if strange := [value for value in lines if value not in said]:
            value = min(strange, key=lambda one: lines[one])
            raise DapError(
                f"{shown(file)}, line {lines[value]}: column {column!r} says {', '.join(sorted(set(said.values())))} of other "
                f"images, and {shown(value)[:60]!r} of this one, which is no word for a split; write train, validation or test "
                "there"
            )
        return column, said
    return None
