"""What a table consists of: columns, cells, and blocks of rows. The renderings read these and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from dap.evaluation.report.text import DASH, plain


@dataclass(frozen=True)
class Column:
    """A column's heading, and how the renderings treat the column.

    Attributes:
        name: the heading.
        numeric: whether the cells are numbers, which stand to the right.
        better: "higher" or "lower" where one direction is better, else empty.
        hint: what the column means, shown on hover.
        field: its name in CSV, if another.
        below: the heading of the cells' second lines where these have a column of their own (in Markdown, LaTeX and a
            terminal); empty where a second line is put into brackets there.
        beside: whether the second line stands in the first one, after a blank, as a unit does.
        short: the heading in a terminal, with line breaks; default: the name.
        names: whether the column helps to name the row; the first column always does. Where a terminal splits a table, such
            columns are repeated.
        spare: how soon a narrow terminal leaves the column out. Columns of the largest number go first, and together; one
            of 0 never goes; those of None go one at a time from the right after all others.
        apart: whether a narrow terminal moves the column into a table below instead.
        drawn: whether the column holds drawings, which only a page can show.
        css: class of the heading on the page.
    """

    name: str
    numeric: bool = True
    better: str = ""
    hint: str = ""
    field: str = ""
    below: str = ""
    beside: bool = False
    short: str = ""
    names: bool = False
    spare: int | None = None
    apart: bool = False
    drawn: bool = False
    css: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell says, the value behind it for sorting and CSV, its spread, a smaller second line and a hover text.

    `css` is the cell's class on the page. Two classes mean something elsewhere too: "shown" is a difference whose interval
    excludes 0, and "unsure" one whose interval includes 0.
    """

    text: str
    value: object = None
    std: float | None = None
    small: str = ""
    hint: str = ""
    drawing: Markup | str = ""
    css: str = ""


@dataclass(frozen=True)
class Block:
    """Rows of cells under columns; the first column names the row.

    Attributes:
        title: what the rows have in common; empty where a table has one block.
        columns: the headings.
        rows: as many cells each as there are columns.
        sources: where the published values among the cells come from.
        notes: sentences below the rows, on the page alone.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flat:
    """A column of one line a cell, for renderings without second lines: its heading, its texts and their classes."""

    column: Column
    heading: str
    short: str
    texts: tuple[str, ...]
    css: tuple[str, ...]


def cell(value: object) -> Cell:
    """A cell that says its value as it was set; a dash for nothing."""
    return Cell(plain(value), value)


def named(label: str) -> Cell:
    """The cell that names a row."""
    return Cell(label, label)


def flat(block: Block, *, repeat: bool = False) -> list[Flat]:
    """The block's columns with one line a cell; those without a value, the first one aside, are left out.

    Args:
        block: the rows.
        repeat: whether a second line that only repeats the heading of its column is kept.
    """
    return [one for i, one in enumerate(_flattened(block, repeat)) if i == 0 or any(text != DASH for text in one.texts)]


def _flattened(block: Block, repeat: bool) -> Iterator[Flat]:
    for i, column in enumerate(block.columns):
        cells = [row[i] for row in block.rows]
        css = tuple(one.css for one in cells)
        if column.drawn:
            continue
        short = column.short or column.name
        if column.below:
            yield Flat(column, column.name, short, tuple(one.text for one in cells), css)
            smalls = tuple(one.small or DASH for one in cells)
            unsure = tuple("unsure" if "unsure" in names.split() else "" for names in css)
            yield Flat(column, column.below, "\n".join(column.below.rsplit(" ", 1)), smalls, unsure)
        else:
            texts = tuple(_joined(one, column, repeat) for one in cells)
            yield Flat(column, column.name, short, texts, css)


def _joined(one: Cell, column: Column, repeat: bool) -> str:
    if not one.small or (one.small == column.name and not repeat):
        return one.text
    return f"{one.text} {one.small}" if column.beside else f"{one.text} ({one.small})"
