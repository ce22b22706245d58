"""From trials to numbers. A `Row` sums up a group of sets under one `Setting`.

`evaluation.origins` says when sets were made of the same things, and `evaluation.spread` how mean, spread and difference
to vanilla are computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dap.evaluation.origins import alike
from dap.evaluation.report.groups import Group, described, group_sets, varying
from dap.evaluation.report.records import MEASURES, VANILLA, Json, SetRecord, is_number
from dap.evaluation.spread import Difference, Stat, difference, spread_of
from dap.evaluation.training.trials import APART


@dataclass(frozen=True)
class Setting:
    """The facts that comparable accuracies share. `headline` is the score that the protocol reports: "last" or "best". `noun` is
    what networks are trained on: "image" or "clip". `apart` has the words that tell this setting from another one of the same
    names, such as "tested on photos"; see `evaluation.comparable`."""

    network: str
    protocol: str
    epochs: int | None
    n_test: int | None
    headline: str
    noun: str = "image"
    apart: str = ""


@dataclass(frozen=True)
class Row:
    """One group under one setting; `setting`, `last` and `best` are None for a group without a trial."""

    group: Group
    setting: Setting | None
    last: Stat | None
    best: Stat | None
    trials: tuple[int, ...]
    """How many trials each evaluated set has."""
    difference: Difference | None
    """To vanilla."""
    over_random: Difference | None
    """To as many random real images."""
    seconds: float | None
    """Mean seconds of making one set. Work that sets share counts in full for each set."""
    memory: float | None
    """Peak memory of making a set, in GB (10⁹ bytes)."""
    measures: Mapping[str, float | None]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.group.first.method

    @property
    def ipc(self) -> int:
        """Images per class."""
        return self.group.first.ipc

    @property
    def scale(self) -> float | None:
        """Guidance scale; None for methods without guidance."""
        scale = self.group.first.guidance("scale")
        return scale if is_number(scale) else None

    @property
    def unit(self) -> str:
        """The unit of the scale; empty where the recipe has none."""
        return str(self.group.first.guidance("unit") or "")

    @property
    def layer(self) -> object:
        """The tapped layer."""
        return self.group.first.guidance("layer")

    @property
    def targets(self) -> str | None:
        """Whether a class or each slot has its own targets; None for an unguided sample."""
        targets = self.group.first.guidance("targets")
        return None if self.group.first.unguided or targets is None else str(targets)

    @property
    def network(self) -> str | None:
        """The evaluated network."""
        return self.setting.network if self.setting else None

    @property
    def protocol(self) -> str | None:
        """The protocol's name."""
        return self.setting.protocol if self.setting else None

    @property
    def headline(self) -> str | None:
        """Which score the protocol reports: "last" or "best"."""
        return self.setting.headline if self.setting else None

    @property
    def score(self) -> Stat | None:
        """The headline score."""
        return self.best if self.headline == "best" else self.last

    @property
    def n_sets(self) -> int:
        """The number of evaluated sets."""
        return len(self.trials)

    @property
    def n_trials(self) -> int:
        """The number of trials over all evaluated sets."""
        return sum(self.trials)


def summarise(sets: Sequence[SetRecord]) -> list[Row]:
    """A row for each group and each setting it was tested under, in order of the settings. Untested groups come last."""
    groups = group_sets(sets)
    settings = list(dict.fromkeys(setting_of(trial, record.noun) for record in sets for trial in record.trials))
    rows = []
    for setting in settings:
        scored = [(group, collect(group, setting)) for group in groups]
        for group, trials in scored:
            if not trials:
                continue
            seeds, of_sets = tuple(seed for seed, _ in trials), [found for _, found in trials]
            last, best = (
                spread_of([[t[score] for t in each] for each in of_sets], seeds) for score in ("last", "best")
            )
            rows.append(_row(group, setting, last, best, tuple(map(len, of_sets))))
    rows = [_compared(row, rows) for row in rows]
    return rows + [_row(g, None, None, None, ()) for g in groups if not any(record.trials for record in g.sets)]


def _row(group: Group, setting: Setting | None, last: Stat | None, best: Stat | None, trials: tuple[int, ...]) -> Row:
    measures = {name: group.mean(group.measure(name)) for name in MEASURES}
    costs = [record.cost for record in group.sets]
    peaks = [cost["peak_memory_gb"] for cost in costs if is_number(cost.get("peak_memory_gb"))]
    seconds = group.mean([full_seconds(cost) for cost in costs])
    return Row(group, setting, last, best, trials, None, None, seconds, max(peaks, default=None), measures)


def full_seconds(cost: Json) -> float | None:
    """Seconds of making this set alone. Shared work that an earlier set did counts as if this set had done it."""
    if not is_number(cost.get("seconds")):
        return None
    prepared = cost.get("prepared")
    parts = prepared.values() if isinstance(prepared, Mapping) else ()
    return cost["seconds"] + sum(part["seconds"] for part in parts if not part.get("made"))


def setting_of(trial: Json, noun: str) -> Setting:
    """The setting of a trial of a set whose pieces are called `noun`."""
    headline = "best" if trial.get("headline") == "best" else "last"
    epochs, n_test = (trial[key] if isinstance(trial.get(key), int) else None for key in ("epochs", "n_test"))
    return Setting(trial["network"], trial["protocol"], epochs, n_test, headline, noun, trial.get(APART, ""))


def collect(group: Group, setting: Setting) -> list[tuple[object, list[Json]]]:
    """The run seed and the trials of each set under a setting. Sets of one run seed count as one set, whatever made their images
    differ, because they share all draws."""
    found: dict[object, tuple[object, list[Json]]] = {}
    for record in group.sets:
        if trials := trials_of(record, setting):
            found.setdefault(record.path if record.seed is None else record.seed, (record.seed, []))[1].extend(trials)
    return list(found.values())


def trials_of(record: SetRecord, setting: Setting) -> list[Json]:
    """The trials of a set under a setting. Of those with one seed the last one counts; one without a seed counts by itself."""
    found = {}
    for i, one in enumerate(record.trials):
        if setting_of(one, record.noun) == setting:
            found[("line", i) if one.get("seed") is None else json.dumps(one["seed"])] = one
    return list(found.values())


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its differences to vanilla and to random real images, where there are such rows beside it."""

    def to(other: Row | None) -> Difference | None:
        if other is None or other.group is row.group or row.score is None or other.score is None:
            return None
        return replace(difference(row.score, other.score), unlike=unlike(row, other))

    return replace(row, difference=to(reference(row, rows)), over_random=to(reference(row, rows, random=True)))


def reference(row: Row, rows: Sequence[Row], *, random: bool = False) -> Row | None:
    """The vanilla row that `row` is compared with, or the row of random real images. It has the same setting, ipc, data and
    backbone; of several rows, the one with the most similar recipe is taken."""
    record = row.group.first

    def fits(other: Row) -> bool:
        comparable = all(alike(record, other.group.first, part) for part in ("data", "backbone"))
        kind = other.group.first.random if random else other.group.first.unguided
        return kind and other.setting == row.setting and other.ipc == row.ipc and comparable

    def distance(other: Row) -> tuple[bool, int, int]:
        apart = [f for f in varying([record, other.group.first]) if f != "method" and not f.startswith("guidance.")]
        return other.method not in VANILLA, len(_unlike(row, other)), len(apart)

    return min(filter(fits, rows), key=distance, default=None)


def unlike(row: Row, other: Row) -> str:
    """In what the sets of another row were made otherwise, beside their method and its guidance, in its own values: "steps 5"."""
    return described(other.group.first, _unlike(row, other))


def _unlike(row: Row, other: Row) -> list[str]:
    """The fields that both recipes have, with other values, and that belong to no method alone. The batch decides no more than
    the last bits of an image."""
    mine, theirs = row.group.first.fields, other.group.first.fields
    common = ("sampling.", "backbone.", "data.", "drawn_from")
    fields = [
        f for f in varying([row.group.first, other.group.first]) if f.startswith(common) and not f.endswith("path")
    ]
    return [f for f in fields if f == "drawn_from" or None not in (mine.get(f), theirs.get(f))]
