"""The rows of a table, whatever kind of file it is: .csv, .tsv, .txt, .jsonl or .parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dap.base.documents import read_lines, read_text, regular
from dap.base.errors import DapError
from dap.base.parsing import counted, shown

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
LARGEST = 512 * 2**20
"""How many bytes a table may have: some ten million rows."""

Rows = list[tuple[int, dict[str, Any]]]
"""The rows of a table with the numbers of their lines."""


def rows_of(file: Path) -> Rows:
    """The rows of a table with the numbers of their lines.

    Raises:
        DapError: the table is damaged.
    """
    ending = file.suffix.lower()
    if ending == ".jsonl":
        found: Rows = []
        for line in read_lines(file, dict[str, Any]):
            if line.problem is not None or line.value is None:
                raise DapError(str(line.problem))
            found.append((line.number, line.value))
        return found
    if ending == ".parquet":
        from dap.data.real.parquet import plain_rows

        return list(enumerate(plain_rows(regular(file)), 1))
    return list(_separated(file))


def lines_of(file: Path) -> Rows:
    """The lines of a text as rows of one column, for a list of files whose names hold blanks. Raises `DapError` as `rows_of`."""
    lines = enumerate(read_text(file, LARGEST).splitlines(), 1)
    return [(number, {"line": line.strip()}) for number, line in lines if line.strip()]


def _separated(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(file, LARGEST)
    first = text[:10_000].split("\n", 1)[0]
    mark = max("\t;,", key=first.count) if any(sign in first for sign in "\t;,") else " "
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        heading = [name.strip() for name in next(lines, [])]
        if len(set(heading)) < len(heading):  # values and no names
            row, heading = heading, [f"column {place}" for place in range(1, len(heading) + 1)]
            yield 1, dict(zip(heading, row, strict=True))
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(heading):
                raise DapError(
                    f"{shown(file)}, line {lines.line_num}: there are {counted(len(cells), 'column')}, and the first line has "
                    f"{len(heading)}; put commas inside a text between quotes"
                )
            yield lines.line_num, dict(zip(heading, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise DapError(f"{shown(file)}, line {lines.line_num}: this is no table of values ({error})") from error
