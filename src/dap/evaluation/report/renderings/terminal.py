"""A table in a terminal of some width: what does not fit is left to the report, and the text says what that is."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from dap.evaluation.report.cells import Block, Flat, flat

NAME = 16
"""The column of names has at least this many characters; longer names are broken into lines."""

GAP = 2
"""Blanks between two columns."""

STYLES = {"main": "bold", "shown": "bold", "unsure": "dim", "pending": "dim"}
"""From a cell's class on the page to a style of the terminal."""


def terminal(blocks: Sequence[Block], width: int, *, colour: bool | None = None, cost: str = "Cost of a set") -> str:
    """The blocks below each other, at most `width` characters wide where that is possible.

    Columns in which no row says anything are left out, then the least telling ones of the others (`Column.spare`), until the
    rest fits. Columns that may stand apart, such as the cost of a set, then come once in a table below.

    Args:
        blocks: the rows.
        width: of the terminal, in characters.
        colour: whether bold and dim text is marked by escape sequences; default: where standard output is a terminal that
            can show it and the environment variable NO_COLOR is not set.
        cost: the title of the table of columns that stand apart.
    """
    colour = _colourful() if colour is None else colour
    parts: list[str] = []
    left: dict[str, None] = {}
    apart: list[list[Flat]] = []
    marks = dict.fromkeys(mark for block in blocks for mark in block.marks)
    for block in blocks:
        columns, without, moved = fitting(flat(block), width)
        parts += [_titled(block.title, width, colour), _drawn(columns, width, colour)]
        left |= dict.fromkeys(without)
        apart += [moved] if moved else []
    if apart:
        parts += [_titled(cost, width, colour), _drawn(_merged(apart), width, colour)]
    parts += [textwrap.fill(mark, max(width, NAME)) for mark in marks]
    missing = f"Not shown for want of width, but in the report: {', '.join(left)}."
    parts += [textwrap.fill(missing, max(width, NAME))] if left else []
    return "\n\n".join(part for part in parts if part) + "\n"


def fitting(columns: Sequence[Flat], width: int) -> tuple[list[Flat], list[str], list[Flat]]:
    """The columns that fit, the names of those that were left out, and those that go into a table below with their names."""
    told, left, moved = list(columns), [], False

    def kept() -> list[Flat]:
        return [one for one in told if not (moved and one.column.apart)]

    while not _fits(kept(), width):
        spare = max((one.column.spare or 0 for one in told), default=0)
        if spare <= 2 and not moved and any(one.column.apart for one in told):
            moved = True
        elif spare:
            left += [one.heading for one in told if one.column.spare == spare]
            told = [one for one in told if one.column.spare != spare]
        elif rest := [one for one in kept()[1:] if one.column.spare is None and not one.column.names]:
            left.insert(0, rest[-1].heading)
            told.remove(rest[-1])
        else:
            break
    names = [one for i, one in enumerate(told) if i == 0 or one.column.names]
    return kept(), left, [*names, *(one for one in told if one.column.apart)] if moved else []


def _merged(tables: Sequence[Sequence[Flat]]) -> list[Flat]:
    """Rows of several tables in one, each row once; a column that one of them lacks has no text in its rows."""
    headings: dict[str, Flat] = {one.heading: one for columns in tables for one in columns}
    rows: dict[tuple[str, ...], None] = {}
    for columns in tables:
        found = {one.heading: one.texts for one in columns}
        count = len(columns[0].texts)
        rows |= dict.fromkeys(tuple(found[h][i] if h in found else "" for h in headings) for i in range(count))
    texts = zip(*rows, strict=True)
    return [
        Flat(one.column, one.heading, one.short, tuple(column), ("",) * len(rows))
        for one, column in zip(headings.values(), texts, strict=True)
    ]


def _width(one: Flat) -> int:
    """Of the longest line, in characters of the terminal, of which some scripts take two."""
    from rich.cells import cell_len

    return max(cell_len(line) for text in (one.short, *map(_printable, one.texts)) for line in text.split("\n"))


def _fits(columns: Sequence[Flat], width: int) -> bool:
    names, *others = columns
    return sum(_width(one) + GAP for one in others) + min(_width(names), NAME) <= width


def _drawn(columns: Sequence[Flat], width: int, colour: bool) -> str:
    """Columns side by side, their headings above a rule; a name that is too long for its column is broken into lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names, *others = columns
    beside = sum(_width(one) + GAP for one in others)
    room = max(NAME, width - beside)
    # One blank is the padding of a cell, the other is the edge between two columns.
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    height = max(one.short.count("\n") for one in columns)
    heads = [Text("\n" * (height - one.short.count("\n")) + one.short) for one in columns]
    drawn.add_column(heads[0], max_width=room, overflow="fold")
    for one, head in zip(others, heads[1:], strict=True):
        side = "right" if one.column.numeric else "left"
        drawn.add_column(head, justify=side, no_wrap=True, min_width=_width(one))
    for i in range(len(names.texts)):
        drawn.add_row(*(Text(_printable(one.texts[i]), style=_style(one.css[i])) for one in columns))
    # What cannot be made narrower than the terminal runs over its edge and is not cut.
    return _shown(drawn, max(width, room + beside), colour)


def _shown(what: Any, width: int, colour: bool) -> str:
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, no_color=not colour, color_system="standard" if colour else None
    )
    console.print(what)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))


def _titled(text: str, width: int, colour: bool) -> str:
    from rich.text import Text

    return (
        _shown(Text(_printable(text), style="bold", no_wrap=True, overflow="ignore"), width, colour) if colour else text
    )


def _style(css: str) -> str:
    return " ".join(STYLES[name] for name in css.split() if name in STYLES)


def _printable(text: str) -> str:
    """The text without control characters, with which a set's name could write anywhere on the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _colourful() -> bool:
    """Whether standard output is a terminal that shows styles and nobody forbade them; rich knows the terminals."""
    from rich.console import Console

    console = Console()
    return console.is_terminal and console.color_system is not None and not console.no_color
