"""Which columns of a table hold the files and the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.named import Named
from dap.data.real.finding.rows import Rows

FILES = [
    "file_name",
    "filename",
    "file",
    "image",
    "image_name",
    "imagename",
    "image_path",
    "imagepath",
    "img",
    "img_name",
    "img_path",
    "path",
    "filepath",
    "file_path",
    "image_id",
    "imageid",
    "id",
    "name",
    "fname",
]
LABELS = [
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "classname",
    "label_name",
    "category",
    "category_name",
    "target",
    "breed",
    "species",
    "diagnosis",
    "fine_label",
    "variety",
    "type",
    "level",
]
EXPLICIT = frozenset(LABELS[:9])
"""What a column is called that holds labels and nothing else."""

CERTAIN = frozenset(FILES[:14])
"""What a column is called that holds files and nothing else. An id or a name may be that of a row, or of what the image shows."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table hold.

    Attributes:
        rows: the rows; a first line that is no heading is one.
        files: the column of files.
        labels: the column of labels; None where there is none.
        others: all columns that may hold labels.
        names: all columns.
    """

    rows: Rows
    files: str
    labels: str | None
    others: list[str]
    names: list[str]

    @property
    def lacking(self) -> str:
        """A clause on what lacks where there is no column of labels."""
        names = ", ".join(map(shown, self.names[:12]))
        bare = self.names[0].startswith("column 1")
        first = "write a first line that names the columns, and " if bare else ""
        return f"has no column of labels among {names}; {first}call the right one 'label'"


def columns_of(file: Path, rows: Rows, there: Named, parting: str | None) -> Columns | None:
    """What the columns of a table hold; None where none of them names images of the folder.

    Args:
        file: the table, for the message.
        rows: its rows.
        there: the images of the folder.
        parting: the column that says the split, which holds neither files nor labels; None where there is none.

    Raises:
        DapError: two columns name different images in a row, and nothing says which of them counts.
    """
    if not there.count:
        return None
    sample = [row for _, row in rows[:20]]
    columns = [name for name in dict.fromkeys(name for row in sample for name in row) if name != parting]
    files = _files_column(file, rows, there, columns)
    if files is None:
        return None
    bare = columns[0].startswith("column 1") or there.find(files) is not None  # there is no heading
    if there.find(files) is not None:
        rows = [(1, dict(zip(columns, columns, strict=True))), *rows]  # without `parting`, which has a heading
    named = [column for wanted in LABELS for column in columns if column.lower() == wanted and column != files]
    others = [column for column in columns if column != files]
    if bare and len(others) > 1:
        others = [c for c in others if not all(re.fullmatch(r"-?[\d.]+", str(row.get(c))) for row in sample)]
    sole = others[0] if len(others) == 1 else None
    return Columns(rows, files, named[0] if named else sole, others, columns)


def _files_column(file: Path, rows: Rows, there: Named, columns: Sequence[str]) -> str | None:
    """The column that names the images. Names with their endings count more than all others, as a number may be that of a row;
    then the name of the column decides."""
    score = {
        name: (
            sum(there.ends(row.get(name)) for _, row in rows[:20]),
            sum(there.find(row.get(name)) is not None for _, row in rows[:20]),
        )
        for name in columns
    }
    best = max(score.values(), default=(0, 0))
    if not best[1]:
        return None
    usual = {name: place for place, name in enumerate(FILES)}
    called = {column: column.lower().strip().replace(" ", "_") for column in columns}
    alike = sorted((c for c in columns if score[c] == best), key=lambda c: usual.get(called[c], len(usual)))
    chosen, *rivals = [c for c in alike if called[c] in CERTAIN] or alike
    for number, row in rows if called[chosen] != FILES[0] else ():
        mine = there.find(row.get(chosen))
        for rival in rivals:
            other = there.find(row.get(rival))
            if mine is not None and other is not None and mine != other:
                raise DapError(
                    f"{shown(file)}, line {number}: column {chosen!r} names the image {shown(mine)}, and column {rival!r} names "
                    f"{shown(other)}. Call the one whose images the labels are of {FILES[0]!r}"
                )
    return chosen
