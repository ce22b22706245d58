"""A table as Markdown that lines up in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence

from dap.evaluation.report.cells import Block, flat
from dap.evaluation.report.text import DASH


def markdown(blocks: Sequence[Block]) -> str:
    """Each block under its title, with the meanings of its marks and the sources of its published values below."""
    parts = []
    for block in blocks:
        # A line of Markdown is copied without its heading, so that a cell says "(published)" under "published" too.
        columns = flat(block, repeat=True)
        body = list(zip(*(one.texts for one in columns), strict=True)) if block.rows else []
        parts += [block.title, grid([one.heading for one in columns], body)]
        parts += block.marks
        parts += [f"Source: {source}." for source in block.sources]
    return "\n\n".join(part for part in parts if part)


def grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are padded to one width; columns without a value are left out."""
    keep = [i for i in range(len(header)) if i == 0 or any(line[i] != DASH for line in body)]
    lines = [[_escaped(line[i]) for i in keep] for line in (header, *body)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(keep))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
