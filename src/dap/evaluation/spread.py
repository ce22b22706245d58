"""Means and spreads over sets and trainings, and differences between them with their intervals.

The unit of replication is the distilled set. The accuracy of a set is the mean over its trials. The mean and the sample
standard deviation (ddof = 1) are taken over these per-set means. The spread over trainings is another number: the standard
deviation of trials around the mean of their own set, pooled over all sets. Where there is one set, only this spread is known.

Sets of the same run seed share their noise, and trials of the same seed share their initial network. Where two or more seeds
are common, a difference to vanilla is therefore taken set by set, with Student's 95 % t interval. Else it has Welch's interval
(1947) over the per-set means. Neither interval is corrected for the number of comparisons. The p-value of the same test can be,
by `holm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev, variance

ROUNDING = 1e-9
"""A standard error below this is 0 but for rounding. Accuracies of n test images differ by 1/n or more."""


@dataclass(frozen=True)
class Stat:
    """Accuracies as fractions: the mean of each set, and their spread."""

    sets: tuple[float, ...]
    std_trials: float | None
    """Sample standard deviation of trials around their own set's mean, over all sets; None where no set has two."""
    seeds: tuple[object, ...] = ()
    """Run seeds of the sets, in their order."""

    @property
    def mean(self) -> float:
        """Mean of the per-set means."""
        return fmean(self.sets)

    @property
    def std_sets(self) -> float | None:
        """Sample standard deviation over the per-set means; None for a single set."""
        return stdev(self.sets) if len(self.sets) > 1 else None

    @property
    def std(self) -> float | None:
        """The standard deviation over sets where there are two or more, else over trials."""
        return self.std_trials if self.std_sets is None else self.std_sets


@dataclass(frozen=True)
class Difference:
    """The mean of a row minus the mean of vanilla, as fractions. The interval is None unless both have two sets or
    more, and these sets differ: where all gaps are equal, nothing says how far further sets would lie apart."""

    value: float
    interval: tuple[float, float] | None
    n: tuple[int, int]
    """The number of sets of the row, and the number of sets of vanilla."""
    paired: bool = False
    """Whether each set was compared with the vanilla set of the same run seed."""
    p: float | None = None
    """The two-sided p-value of no difference, by the test of the interval; None without an interval."""
    of: tuple[int, int] | None = None
    """The number of sets of the two rows, where some have no set of the same run seed beside them; they do not count here."""
    unlike: str = ""
    """In what, beside the method and its guidance, the sets of vanilla were made otherwise: their values, as in "steps 5"."""

    @property
    def shown(self) -> bool:
        """Whether the interval is known and excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def spread_of(scores: list[list[float]], seeds: tuple[object, ...]) -> Stat:
    """Means and spreads of scores. `scores` has one list for each set, with the scores of the set's trials. `seeds` are
    the run seeds of the sets."""
    spread = [(variance(of_set), len(of_set) - 1) for of_set in scores if len(of_set) > 1]
    freedom = sum(n for _, n in spread)
    within = math.sqrt(sum(value * n for value, n in spread) / freedom) if freedom else None
    return Stat(tuple(fmean(of_set) for of_set in scores), within, seeds)


def difference(row: Stat, vanilla: Stat) -> Difference:
    """The difference over the pairs of sets with one run seed, where there are two pairs or more; else `welch`."""
    mine, theirs = (dict(zip(stat.seeds, stat.sets, strict=False)) for stat in (row, vanilla))
    common = [seed for seed in mine if seed is not None and seed in theirs]
    unique = len(mine) == len(row.sets) and len(theirs) == len(vanilla.sets)
    if len(common) < 2 or not unique:
        return welch(row.sets, vanilla.sets)
    gaps = [mine[seed] - theirs[seed] for seed in common]
    n, sizes = len(gaps), (len(row.sets), len(vanilla.sets))
    found = _tested(fmean(gaps), stdev(gaps) / math.sqrt(n), n - 1, (n, n), paired=True)
    return found if sizes == (n, n) else replace(found, of=sizes)


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Difference of two means, with its 95 % interval by Welch's t for unequal variances (Welch 1947). Each set has one
    value in `a` or `b`."""
    value = fmean(a) - fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(value, None, (len(a), len(b)))
    parts = [stdev(sample) ** 2 / len(sample) for sample in (a, b)]
    total = sum(parts)
    squares = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (a, b), strict=True))
    return _tested(value, math.sqrt(total), total**2 / squares if squares else 1.0, (len(a), len(b)))


def _tested(value: float, error: float, freedom: float, n: tuple[int, int], paired: bool = False) -> Difference:
    """A difference with the 95 % interval and the p-value of Student's t, of its standard error and degrees of freedom."""
    if error < ROUNDING:  # the sets agree to the last image, which does not mean that the next ones would
        return Difference(value, None, n, paired)
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(freedom, 0.975)) * error
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Difference(value, (value - half, value + half), n, paired, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p-values of several tests, corrected for their number (Holm 1979). Below 5 %, a wrong finding among all of them has at
    most this probability, whatever their dependence. None stands for no test, and stays None."""
    tests = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p))
        corrected[i] = highest
    return corrected
