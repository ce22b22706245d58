"""Accuracy by class, and confusion: how often a network takes one class for another on the test set, summed over
trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dap.evaluation.report.cells import Cell, Column, named
from dap.evaluation.report.groups import Group
from dap.evaluation.report.records import Json
from dap.evaluation.report.summary import Row, Setting, collect
from dap.evaluation.report.tables import Table, plain_table
from dap.evaluation.report.text import setting_name

CLASSES = 20
"""The largest number of classes of each confusion on the page. The CSV has all classes."""
SHOWN = 24
"""The largest number of confusions on one page."""
WORST = 3
"""The number of pairs of classes that the note names in words."""


@dataclass(frozen=True)
class Confusion:
    """How often each label was predicted for each true label: `counts` (classes, classes), with a row for each true
    label. The counts are summed over all trials of a group under a setting."""

    group: Group
    setting: Setting
    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each count divided by the sum of its row, which is the number of test images of the true class. The shares of
        a class without test images are 0."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)

    @property
    def worst(self) -> str:
        """The pairs of classes that are confused most often, as a sentence."""
        shares = self.shares.copy()
        np.fill_diagonal(shares, 0)
        order = np.argsort(-shares, axis=None, kind="stable")[:WORST]
        pairs = [(int(i) // len(shares), int(i) % len(shares)) for i in order]
        told = [
            f"{self.names[a]} taken for {self.names[b]} ({100 * shares[a, b]:.1f} %)" for a, b in pairs if shares[a, b]
        ]
        return f"Most often: {', '.join(told)}." if told else "No test image was taken for another class."

    @property
    def heat(self) -> Table:
        """A table of the shares in per cent: a row for each true class, a column for each predicted class. At most
        `CLASSES` classes are shown."""
        names = self.names[:CLASSES]
        columns = (Column("true class", numeric=False), *map(Column, names))
        rows = [(named(name), *(self._cell(i, j) for j in range(len(names)))) for i, name in enumerate(names)]
        title = f"{self.group.label}, {_name(self.setting)}"
        return plain_table("confusion", title, columns, tuple(rows), self.worst)

    def _cell(self, i: int, j: int) -> Cell:
        share, n = float(self.shares[i, j]), int(self.counts[i].sum())
        told = "recognised" if i == j else f"taken for {self.names[j]}"
        hint = f"{self.names[i]} {told}: {100 * share:.1f} % ({int(self.counts[i, j])} of {n})"
        text = "" if share == 0 else "<1" if share < 0.01 else f"{100 * share:.0f}"
        # The colour follows the root of the share, because readers look for shares of a few per cent.
        return Cell(text, share, hint=hint, css=f"{'right' if i == j else 'wrong'} h{min(9, int(10 * share**0.5))}")


def confusions(groups: Sequence[Group], rows: Sequence[Row]) -> list[Confusion]:
    """One confusion for every group and setting. All trials there must have recorded a confusion over the same
    classes."""
    found = []
    for row in rows:
        if row.setting is None:
            continue
        trials = [trial for _, of_set in collect(row.group, row.setting) for trial in of_set]
        names = _names(trials[0], row.group) if trials else ()
        every = [_in_order(_counts(trial, len(names)), _names(trial, row.group), names) for trial in trials]
        counts = [one for one in every if one is not None]
        if counts and len(counts) == len(trials):
            found.append(Confusion(row.group, row.setting, names, np.sum(counts, axis=0)))
    return found


def _names(trial: Json, group: Group) -> tuple[str, ...]:
    """The classes of a trial, which records them where the test data have another order of classes than the set."""
    listed = trial.get("classes")
    return tuple(map(str, listed if isinstance(listed, list) else group.first.class_names))


def _in_order(counts: NDArray[np.int64] | None, names: Sequence[str], order: Sequence[str]) -> NDArray[np.int64] | None:
    """Counts of classes in this order; None where the classes are others."""
    if counts is None or sorted(names) != sorted(order) or len(set(names)) < len(names):
        return None
    places = [names.index(name) for name in order]
    return counts[np.ix_(places, places)]


def _counts(trial: Json, classes: int) -> NDArray[np.int64] | None:
    try:
        counts = np.array(trial.get("confusion"), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    whole = counts.shape == (classes, classes) and np.isfinite(counts).all() and (counts >= 0).all()
    return counts.astype(np.int64) if whole else None


def by_class(found: Sequence[Confusion]) -> list[Table]:
    """One table for every setting and list of classes: the accuracy of each class in per cent, with a row for each group and a
    column for each class. The order of a group's classes does not count. At most `CLASSES` classes are shown; the CSV has all."""
    tables = []
    for setting, classes in dict.fromkeys((one.setting, frozenset(one.names)) for one in found):
        here = [one for one in found if one.setting == setting and set(one.names) == classes]
        names = here[0].names
        columns = (Column("group", numeric=False), *(Column(name, field=_field(name)) for name in names[:CLASSES]))
        rows, data = [], []
        for one in here:
            shares = dict(zip(one.names, map(float, np.diag(one.shares)), strict=True))
            rows.append((named(one.group.label), *(Cell(f"{100 * shares[n]:.1f}", shares[n]) for n in names[:CLASSES])))
            data.append({"group": one.group.label, **{_field(n): shares[n] for n in names}})
        note = (
            f"The first {CLASSES} of {len(names):,} classes are shown. The CSV has all." if len(names) > CLASSES else ""
        )
        tables.append(replace(plain_table("classes", _name(setting), columns, tuple(rows), note), data=tuple(data)))
    return tables


def _field(name: str) -> str:
    """The column of a class in the CSV; a class may be called as another column."""
    return f"class {name}"


def _name(setting: Setting) -> str:
    """A setting in words. Confusions are of the last epoch, also where the protocol reports the best one."""
    return setting_name(setting) + (", last epoch" if setting.headline == "best" else "")


def long_form(found: Sequence[Confusion]) -> list[dict[str, object]]:
    """The lines of the CSV: one line for each count that is not 0, over all confusions."""
    return [
        {
            "group": one.group.label,
            "network": one.setting.network,
            "protocol": one.setting.protocol,
            "epochs": one.setting.epochs,
            "apart": one.setting.apart,
            "true": one.names[i],
            "predicted": one.names[j],
            "count": int(one.counts[i, j]),
            "share": float(one.shares[i, j]),
        }
        for one in found
        for i in range(len(one.names))
        for j in range(len(one.names))
        if one.counts[i, j]
    ]
