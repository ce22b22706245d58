"""Tables as comma-separated values (CSV), with the numbers behind the cells and not their texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dap.evaluation.report.cells import Block


def lines_of(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """A mapping from the columns' fields to values for each row; a spread has the field's name with `_std` after it."""
    with_std = {i for block in blocks for row in block.rows for i, one in enumerate(row) if one.std is not None}
    lines = []
    for block in blocks:
        fields = [column.field or column.name for column in block.columns]
        for row in block.rows:
            line: dict[str, Any] = {}
            for i, (field, found) in enumerate(zip(fields, row, strict=True)):
                line[field] = found.value
                line |= {f"{field}_std": found.std} if i in with_std else {}
            lines.append(line)
    return lines


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    """Mappings as CSV under the union of their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
