"""The accuracy table as a terminal of some width shows it: headings of two lines, and what does not fit left to the report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from dap.evaluation.report.expected import Claims
from dap.evaluation.report.records import MEASURES
from dap.evaluation.report.summary import Row
from dap.evaluation.report.wording import DASH, cells, figure, setting_name

NAME = 16
"""Characters of the column of names that are left at least; longer names are broken into lines."""


@dataclass(frozen=True)
class Shown:
    """A column: its heading, its cells, and how soon it is left out where there is no room; 0 is never."""

    heading: str
    texts: tuple[str, ...]
    spare: int = 0

    @property
    def width(self) -> int:
        """Of the longest line."""
        return max(len(line) for text in (self.heading, *self.texts) for line in text.split("\n"))


def terminal(rows: Sequence[Row], claims: Claims, width: int) -> str:
    """One block for each setting, accuracies in per cent, at most `width` characters wide where that can be.

    Columns in which no row says anything are left out, then of the others the least telling ones, until the rest fits;
    what a set costs comes below in a block of its own where it does not fit.
    """
    blocks = [_block(rows_of, claims, width) for rows_of in _by_setting(rows)]
    parts = [part for title, table, _, _ in blocks for part in (title, table)]
    if any(apart for _, _, apart, _ in blocks):
        groups = list({row.group.key: row for row in rows}.values())
        parts += ["Cost of a set", _drawn([*_first(groups), *_costs(groups)], width)]
    left = dict.fromkeys(name for _, _, _, names in blocks for name in names)
    missing = f"Not shown for want of width, but in the report: {', '.join(left)}."
    parts += [textwrap.fill(missing, max(width, NAME))] if left else []
    return "\n\n".join(parts) + "\n"


def _by_setting(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.setting == setting] for setting in dict.fromkeys(row.setting for row in rows)]


def _block(rows: Sequence[Row], claims: Claims, width: int) -> tuple[str, str, bool, list[str]]:
    """Title and table of a setting, whether the cost found no room in it, and the names of what was left out."""
    setting = rows[0].setting
    score = f"accuracy\n({setting.headline}), %" if setting else "accuracy\n%"
    headings = ["scale", "targets", score, "±\ntrainings", "vs\nvanilla", "95 %\ninterval", "sets ×\ntrials"]
    texts = list(zip(*(cells(row)[2:] for row in rows), strict=True))
    told = [Shown(heading, column) for heading, column in zip(headings, texts, strict=True)]
    # Scale and targets are left out only where no two rows need them to be told apart.
    alike = len({tuple(cells(row)[:2]) for row in rows}) < len(rows)
    told[:2] = [Shown(one.heading, one.texts, 0 if alike else spare) for one, spare in zip(told, (3, 4), strict=False)]
    told += [
        Shown(
            name.replace("representativeness", "representa-\ntiveness"),
            tuple(figure(r.measures[name]) for r in rows),
            5,
        )
        for name in MEASURES
    ]
    found = [claims.of(row) for row in rows]
    told.append(
        Shown(
            "published" if all(one is None or one.source for one in found) else "expected",
            tuple(one.text if one else DASH for one in found),
            1,
        )
    )
    first, costs = _first(rows), _costs(rows)
    told = [one for one in told if any(text != DASH for text in one.texts)]
    left: list[str] = []
    together = True
    while told and not _fits([*first, *told, *(costs if together else [])], width):
        least = max(told, key=lambda one: one.spare)
        if together and least.spare <= 2:
            together = False
            continue
        if least.spare == 0:
            break
        # Measures go together.
        left += [one.heading.replace("-\n", "") for one in told if one.spare == least.spare]
        told = [one for one in told if one.spare != least.spare]
    table = _drawn([*first, *told, *(costs if together else [])], width)
    return setting_name(setting), table, not together, left


def _first(rows: Sequence[Row]) -> list[Shown]:
    names, sizes = zip(*(cells(row)[:2] for row in rows), strict=True)
    return [Shown("method", names), Shown("ipc", sizes)]


def _costs(rows: Sequence[Row]) -> list[Shown]:
    texts = [(figure(row.seconds), figure(row.memory), ", ".join(row.needs) or DASH) for row in rows]
    told = [
        Shown(heading, column)
        for heading, column in zip(("s per\nset", "peak\nGB", "needs"), zip(*texts, strict=True), strict=True)
    ]
    return [one for one in told if any(text != DASH for text in one.texts)]


def _fits(columns: Sequence[Shown], width: int) -> bool:
    names, *others = columns
    return sum(one.width + 2 for one in others) + min(names.width, NAME) <= width


def _drawn(columns: Sequence[Shown], width: int) -> str:
    """Columns beside each other, two blanks apart; the first one, of names, is broken into lines where it is too long."""
    names, *others = columns
    room = max(NAME, width - sum(one.width + 2 for one in others))
    broken = [textwrap.wrap(text, room) or [""] for text in names.texts]
    first = max(len(line) for line in ("method", *(line for lines in broken for line in lines)))
    height = max(one.heading.count("\n") for one in columns) + 1

    def line(name: str, texts: Sequence[str]) -> str:
        beside = "".join(f"  {text:>{one.width}}" for text, one in zip(texts, others, strict=True))
        return f"{name:{first}}{beside}".rstrip()

    heads = [["", *one.heading.split("\n")][-height:] for one in columns]
    heads = [[""] * (height - len(lines)) + lines for lines in heads]
    drawn = [line(heads[0][i], [lines[i] for lines in heads[1:]]) for i in range(height)]
    drawn.append("-" * (first + sum(one.width + 2 for one in others)))
    for i, lines in enumerate(broken):
        drawn.append(line(lines[0], [one.texts[i] for one in others]))
        drawn += lines[1:]
    return "\n".join(drawn)
