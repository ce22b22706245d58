"""The parts of a table: columns, cells, and blocks of rows. The renderings of a table read these parts and nothing
else."""

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
        numeric: whether the cells are numbers. Numbers are aligned to the right.
        better: "higher" or "lower" where one direction is better, else empty.
        hint: the meaning of the column, which the page shows on hover.
        field: the name of the column in CSV, where this name differs from the heading.
        below: the heading of the cells' second lines. Markdown, LaTeX and a terminal then show these lines as a column
            of their own. Where `below` is empty, they put the second line into brackets.
        beside: whether Markdown, LaTeX and a terminal append the second line to the first line after a blank, as a
            unit.
        short: the heading in a terminal, with line breaks; default: the name.
        names: whether the column helps to name the row; the first column always does. Where a terminal splits a table, such
            columns are repeated.
        spare: how soon a narrow terminal leaves the column out. Columns with the largest number are left out first, all
            together. A column with 0 is never left out. Columns with None are left out last, one at a time from the
            right.
        apart: whether a narrow terminal moves the column into a table below instead.
        drawn: whether the column holds drawings, which only a page can show.
        css: the CSS class of the heading on the page.
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
    """One cell: its text, its value for sorting and for CSV, its spread, a smaller second line, a hover text and a
    drawing.

    `css` is the CSS class of the cell on the page. Two classes have a meaning in the other renderings too: "shown"
    marks a difference whose interval excludes 0, and "unsure" marks a difference whose interval includes 0.
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
        title: the words for what the rows have in common; empty where a table has one block.
        columns: the columns with their headings.
        rows: the rows. Each row has one cell for each column.
        sources: the sources of the published values among the cells.
        notes: sentences below the rows. Only the page shows these sentences.
        marks: the meanings of marks on the cells, one sentence each. The page has them in the note of the table instead.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flat:
    """A column whose cells have one line each, for renderings that cannot show second lines. `texts` and `css` are the
    texts of the cells and their CSS classes."""

    column: Column
    heading: str
    short: str
    texts: tuple[str, ...]
    css: tuple[str, ...]


def cell(value: object) -> Cell:
    """A cell that shows a recipe's value as the value was set, or a dash where there is no value."""
    return Cell(plain(value), value)


def named(label: str) -> Cell:
    """The cell that names a row."""
    return Cell(label, label)


def flat(block: Block, *, repeat: bool = False) -> list[Flat]:
    """The columns of a block, with one line for each cell. A column without any value is left out unless it is the
    first.

    Args:
        block: the rows and columns.
        repeat: whether to keep a second line that only repeats the heading of its column.
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
