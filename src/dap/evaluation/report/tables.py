"""A table as data: built once, then shown on the page, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dap.evaluation.report.expected import Claims
from dap.evaluation.report.summary import Row, flatten, varying
from dap.evaluation.report.wording import PENDING, grid, plain, seeds


@dataclass(frozen=True)
class Column:
    """A column's heading. `better` is "higher", "lower" or nothing; `field` its name in CSV, if another."""

    name: str
    numeric: bool = True
    better: str = ""
    hint: str = ""
    field: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell says, the value behind it for sorting and CSV, its spread, a smaller second line and a hover text."""

    text: str
    value: object = None
    std: float | None = None
    small: str = ""
    hint: str = ""
    drawing: Markup | str = ""
    css: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first column names the row. `key` is its part of file names."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown; columns in which no row says anything are left out."""
        body = [[f"{c.text} ({c.small})" if c.small else c.text for c in row] for row in self.rows]
        return grid([column.name for column in self.columns], body)


def cell(value: object) -> Cell:
    """A cell that says its value as it was set; a dash for nothing."""
    return Cell(plain(value), value)


def named(label: str) -> Cell:
    """The cell that names a row."""
    return Cell(label, label)


def comma_separated(tables: Sequence[Table]) -> str:
    """Tables of the same columns as one CSV; a title column tells them apart where there are several."""
    lines: list[Mapping[str, Any]] = []
    for one in tables:
        fields = [column.field or column.name for column in one.columns]
        with_std = {i for table in tables for row in table.rows for i, c in enumerate(row) if c.std is not None}
        for row in one.rows:
            line: dict[str, Any] = {"table": one.title} if len(tables) > 1 else {}
            for i, (field, found) in enumerate(zip(fields, row, strict=True)):
                line[field] = found.value
                line |= {f"{field}_std": found.std} if i in with_std else {}
            lines.append(line)
    return written(lines)


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    """Mappings as CSV under the union of their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def accuracies(rows: Sequence[Row], claims: Claims) -> str:
    """The rows as CSV, one line per group and setting; accuracies and differences are fractions."""
    fields = [f for f in varying([row.group.first for row in rows]) if f not in {"method", "ipc"}]
    lines = []
    for row in rows:
        line: dict[str, Any] = {"group": row.group.label, "method": row.method, "ipc": row.ipc, "scale": row.scale}
        line |= {"unit": row.unit, "layer": row.layer, "targets": row.targets, "seeds": seeds(row.group)}
        line |= {
            name: row.setting and getattr(row.setting, name) for name in ("network", "protocol", "epochs", "n_test")
        }
        line |= {"headline": row.headline or PENDING, "sets": row.n_sets, "trials": row.n_trials}
        for name, stat in (("last", row.last), ("best", row.best)):
            line |= {f"{name}_mean": stat and stat.mean, f"{name}_std_sets": stat and stat.std_sets}
            line |= {f"{name}_std_trials": stat and stat.std_trials}
        low, high = (row.difference and row.difference.interval) or (None, None)
        line |= {"vs_vanilla": row.difference and row.difference.value, "low_95": low, "high_95": high}
        line |= {"paired": row.difference and row.difference.paired}
        claim = claims.of(row)
        line |= dict(row.measures) | {"seconds_per_set": row.seconds, "peak_memory_gb": row.memory}
        line |= {"needs": " ".join(row.needs), "expected": claim and claim.text}
        line |= {"expected_source": claim and claim.source}
        recipe = flatten(row.group.first.recipe)
        lines.append(line | {f"recipe.{field}": recipe.get(field) for field in fields})
    return written(lines)
