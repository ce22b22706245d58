"""Differences to vanilla and to random real images, in words and with the marks of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dap.evaluation.report.summary import Row
from dap.evaluation.report.text import count, interval, signed
from dap.evaluation.spread import Difference, holm


def footnotes(rows: Sequence[Row], against: Against, places: Iterable[int]) -> list[str]:
    """Sentences on differences that are not over all sets of the two rows, or to sets that were made otherwise.

    Args:
        rows: all rows.
        against: their differences.
        places: the positions of the rows that the sentences are about.
    """
    told: dict[str, list[str]] = {}
    for i in places:
        one = against.differences[i]
        if one and (one.of or one.unlike):
            rest = f"{against.other} sets" + (f" with {one.unlike}" if one.unlike else "")
            rest += f", over the {one.n[0]} of {one.of[0]} and {one.of[1]} sets that share a seed" if one.of else ""
            told.setdefault(rest, []).append(rows[i].group.label)
    return [f"{', '.join(dict.fromkeys(labels))}: compared with {rest}." for rest, labels in told.items()]


STAR = "*"
"""The mark on a difference that survives Holm's correction."""


def survived(corrected: float | None) -> bool:
    """Whether a p-value that `spread.holm` corrected is below 5 %."""
    return corrected is not None and corrected < 0.05


def starred(corrected: Sequence[float | None], other: str = "vanilla") -> str:
    """The sentence on the stars of a column, from the corrected p-values of all its differences. Empty for less than two
    tests.

    Args:
        corrected: the p-values of the column in all blocks of the table.
        other: what the rows are compared with.
    """
    n = sum(p is not None for p in corrected)
    if n < 2:
        return ""
    over = f"Holm’s correction over {_all(n)} comparisons with {other}"
    if not any(map(survived, corrected)):
        return f"No difference survives {over} at 5\u00a0%."
    return f"{STAR}: the difference survives {over} at 5\u00a0%."


def _all(n: int) -> str:
    """How many comparisons there are in all, as a word of a sentence."""
    return "both" if n == 2 else f"all {n}"


@dataclass(frozen=True)
class Against:
    """The differences of all rows of a table to one kind of set, and which of them survive Holm's correction.

    Attributes:
        other: "vanilla" or "random".
        differences: of each row.
        corrected: the p-value of each row, corrected for all differences in `differences`.
    """

    other: str
    differences: tuple[Difference | None, ...]
    corrected: tuple[float | None, ...]

    @staticmethod
    def of(rows: Sequence[Row], other: str) -> Against:
        """The differences of these rows to "vanilla" or "random"."""
        found = tuple(difference_to(row, other) for row in rows)
        return Against(other, found, tuple(holm([one.p if one else None for one in found])))

    def survives(self, i: int) -> bool:
        """Whether the difference of row i keeps its star. A single comparison needs no correction, and has none."""
        return self.tests > 1 and survived(self.corrected[i])

    @property
    def tests(self) -> int:
        """The number of differences that have a p-value."""
        return sum(p is not None for p in self.corrected)

    def doubted(self, row: Row) -> str:
        """What must be said of a difference whose interval is without 0 and that the correction does not leave; else ""."""
        difference = difference_to(row, self.other)
        alike = (i for i, one in enumerate(self.differences) if one is difference)
        if difference is None or not difference.shown or self.tests < 2 or any(map(self.survives, alike)):
            return ""
        return f", which does not survive Holm’s correction over {_all(self.tests)} comparisons"

    def concerns(self, places: Iterable[int]) -> bool:
        """Whether the sentence on stars says something of these rows: a difference has a star or lacks one."""
        shown = (difference.shown for i in places if (difference := self.differences[i]))
        return self.tests > 1 and any(shown)

    @property
    def stars(self) -> str:
        """The sentence on the stars of this column."""
        return starred(self.corrected, self.other)


def compared(name: str, difference: Difference, other: str = "vanilla") -> str:
    """A difference to vanilla or another kind of set in words, with interval and n: "no difference shown" where the interval
    includes 0."""
    n, m = difference.n
    sets = f"n = {n} sets each" if n == m else f"n = {n} and {m} sets"
    sets = f"n = {n} sets of the same seeds" if difference.paired else sets
    sets += f", of {difference.of[0]} and {difference.of[1]} sets" if difference.of else ""
    other += f" with {difference.unlike}" if difference.unlike else ""
    points = signed(difference.value)
    if difference.interval is None and min(n, m) > 1:
        equal = "gaps" if difference.paired else "accuracies of each"
        return f"{name}: {points} points against {other} ({sets}, and the {equal} are equal, so no spread is known)"
    if difference.interval is None:
        sets = "one set each" if n == m else f"{count(n, 'set')} against {m}"
        return f"{name}: {points} points against {other} ({sets}, so no spread is known and this may be chance)"
    where = f"95 % interval {interval(difference)}, {sets}"
    if not difference.shown:
        return f"no difference shown between {name} and {other} ({points} points, {where})"
    side = f"{points} points over" if difference.value > 0 else f"{points.lstrip('−')} points under"
    return f"{name} is {side} {other} ({where})"


def difference_to(row: Row, other: str) -> Difference | None:
    """The difference of a row to "vanilla" or "random"; None where there is none."""
    return row.difference if other == "vanilla" else row.over_random
