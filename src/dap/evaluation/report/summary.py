"""From trials to numbers. Sets that differ only in the seed form a `Group`. A `Row` sums up a group under one `Setting`.

`evaluation.origins` says when sets were made of the same things, and `evaluation.report.spread` how mean, spread and difference
to vanilla are computed.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from dap.base.parsing import shown
from dap.evaluation import taken
from dap.evaluation.origins import alike
from dap.evaluation.report.records import MEASURES, VANILLA, Json, SetRecord, is_number, with_repeat
from dap.evaluation.report.spread import Difference, Stat, difference, spread_of
from dap.evaluation.training.trials import APART

COLUMNS = ("method", "ipc", "guidance.scale", "guidance.unit", "guidance.targets")
"""Recipe fields that have a column in the table. A group's note names the other fields in which its method's groups differ."""


@dataclass(frozen=True)
class Group:
    """Sets whose recipes differ only in the seed, and that were made of the same data, weights and code."""

    key: str
    label: str
    """The method, and the fields in which groups of that method differ. No two groups of a report have the same label."""
    note: str
    """The part of the label that no column shows."""
    sets: tuple[SetRecord, ...]
    """The sets, each with other images. Sets of several seeds that hold the same images are one set, with the trials of all."""
    repeats: int = 0
    """How many further sets hold the same images as a set of `sets`, because the method ignores the seed."""

    @property
    def first(self) -> SetRecord:
        """The first set. Its recipe stands for the recipe of the group."""
        return self.sets[0]

    @property
    def seeds(self) -> tuple[object, ...]:
        """The run seeds, in the order of the sets."""
        return tuple(record.seed for record in self.sets)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method needs beside real images, as `dap methods` says: "backbone", "classifier", "captions"."""
        found = {str(need) for record in self.sets for need in record.cost.get("needs", ())}
        return tuple(sorted(found - {"training"}))

    def mean(self, values: Sequence[object]) -> float | None:
        """Mean of the numbers among `values`; None without any."""
        numbers = [float(value) for value in values if is_number(value)]
        return fmean(numbers) if numbers else None

    @property
    def averaged(self) -> bool:
        """Whether the sets were measured in one way, as far as it is known."""
        return not taken.differing(self.sets)

    def measure(self, name: str) -> tuple[float, ...]:
        """The measure of each set that has it; () where the sets were measured in several ways, whose mean says nothing."""
        measured = [s for s in self.sets if is_number(s.measures.get(name))]
        return () if taken.differing(measured, name) else tuple(float(s.measures[name]) for s in measured)


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


def recipe_key(record: SetRecord, *without: str) -> str:
    """The recipe as one string, without the seed and the named fields. A set without a recipe is a group of its own, and so are
    the sets of one recipe that were made of other bytes."""
    fields = record.fields or {"path": str(record.path)}
    return json.dumps({k: v for k, v in fields.items() if k not in {"seed", *without}}, sort_keys=True, default=str)


def varying(records: Sequence[SetRecord]) -> list[str]:
    """The fields of the recipes that are not equal in all records, without the seed, in order of first appearance."""
    recipes = [record.fields for record in records]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe if field != "seed")
    return [f for f in fields if len({json.dumps(recipe.get(f), default=str) for recipe in recipes}) > 1]


def spoken(field: str) -> str:
    """The name of a field in a report. `drawn_from` is not a field of a recipe: `records` adds it to sets drawn from
    larger sets."""
    return "drawn from" if field == "drawn_from" else field


def described(record: SetRecord, fields: Sequence[str]) -> str:
    """A record's values of these fields, as in "scale 0.05, layer 4". Fields that the record does not have are left out."""
    values = record.fields
    # A path has the name of the section that holds it: "backbone starter", not "path starter". A name with a blank is no field.
    leaves = [f if " " in f else f.removesuffix(".path").rpartition(".")[2] for f in fields]
    names = [spoken(leaf if leaves.count(leaf) == 1 else field) for leaf, field in zip(leaves, fields, strict=True)]
    pairs = [(name, values.get(field)) for name, field in zip(names, fields, strict=True)]
    texts = ((name, f"{value:g}" if is_number(value) else value) for name, value in pairs if value not in (None, ""))
    return ", ".join(f"{name} {text}" for name, text in texts)


def group_sets(sets: Sequence[SetRecord]) -> list[Group]:
    """Groups of the sets that differ only in the seed, in their recipe and in what they were made of: methods in order of
    appearance, each by ipc, scale and layer."""
    members: dict[str, list[SetRecord]] = {}
    for record in sets:
        members.setdefault(recipe_key(record), []).append(record)
    methods = list(dict.fromkeys(record.method for record in sets))
    groups = []
    for key, records in members.items():
        first = records[0]
        fields = varying([other[0] for other in members.values() if other[0].method == first.method])
        detail, note = (described(first, names) for names in (fields, [f for f in fields if f not in COLUMNS]))
        label = f"{first.title} ({detail})" if detail else first.title
        different = _different(records)
        groups.append(Group(key, label, note, different, len(records) - len(different)))
    groups = [replace(one, label=label, note=note) for one, label, note in _distinct(groups)]
    return sorted(groups, key=lambda g: (methods.index(g.first.method), g.first.ipc, *map(_rank, _swept(g))))


def _distinct(groups: Sequence[Group]) -> Iterator[tuple[Group, str, str]]:
    """Each group with a label and a note of its own. Sets that others made may be in folders of one name: the parts of their
    paths that differ tell them apart."""
    alike = defaultdict[str, list[Group]](list)
    for group in groups:
        alike[group.label].append(group)
    for group in groups:
        same = alike[group.label]
        if len(same) < 2:
            yield group, group.label, group.note
            continue
        parents = [one.first.path.resolve().parent.parts for one in same]
        levels = enumerate(zip(*parents, strict=False))
        shared = next((i for i, parts in levels if len(set(parts)) > 1), min(map(len, parents)))
        mine = group.first.path.resolve().parent.parts[shared:]
        where = shown("/".join(mine)) or str(same.index(group) + 1)
        yield group, f"{group.label} ({where})", ", ".join(filter(None, (group.note, where)))


def _different(records: Sequence[SetRecord]) -> tuple[SetRecord, ...]:
    """The sets with other images than those before them. The trials of the others are added to those of the set they repeat."""
    found: dict[object, SetRecord] = {}
    for record in records:
        images = tuple((image["label"], image.get("sha256")) for image in record.images)
        known = bool(images) and all(isinstance(sha256, str) for _, sha256 in images)
        same = images if known else record.path
        found[same] = with_repeat(found[same], record) if same in found else record
    return tuple(found.values())


def _swept(group: Group) -> tuple[object, object]:
    return group.first.guidance("scale"), group.first.guidance("layer")


def _rank(value: object) -> tuple[float, str]:
    return (float(value), "") if is_number(value) else (-1.0 if value is None else math.inf, str(value))


def summarise(sets: Sequence[SetRecord]) -> list[Row]:
    """A row for each group and each setting it was tested under, in order of the settings. Untested groups come last."""
    groups = group_sets(sets)
    settings = list(dict.fromkeys(_setting(trial, record.noun) for record in sets for trial in record.trials))
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


def _setting(trial: Json, noun: str) -> Setting:
    headline = "best" if trial.get("headline") == "best" else "last"
    epochs, n_test = (trial[key] if isinstance(trial.get(key), int) else None for key in ("epochs", "n_test"))
    return Setting(trial["network"], trial["protocol"], epochs, n_test, headline, noun, trial.get(APART, ""))


def collect(group: Group, setting: Setting) -> list[tuple[object, list[Json]]]:
    """The run seed and the trials of each set under a setting. Of trials with one seed the last one counts."""
    found = []
    for record in group.sets:
        trials = {
            json.dumps(t.get("seed", i)): t for i, t in enumerate(record.trials) if _setting(t, record.noun) == setting
        }
        found += [(record.seed, list(trials.values()))] if trials else []
    return found


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its differences to vanilla and to random real images, where there are such rows beside it."""

    def to(other: Row | None) -> Difference | None:
        if other is None or other.group is row.group or row.score is None or other.score is None:
            return None
        return difference(row.score, other.score)

    return replace(row, difference=to(reference(row, rows)), over_random=to(reference(row, rows, random=True)))


def reference(row: Row, rows: Sequence[Row], *, random: bool = False) -> Row | None:
    """The vanilla row that `row` is compared with, or the row of random real images. It has the same setting, ipc, data and
    backbone; of several rows, the one with the most similar recipe is taken."""
    record = row.group.first

    def fits(other: Row) -> bool:
        comparable = all(alike(record, other.group.first, part) for part in ("data", "backbone"))
        kind = other.group.first.random if random else other.group.first.unguided
        return kind and other.setting == row.setting and other.ipc == row.ipc and comparable

    def distance(other: Row) -> tuple[bool, int]:
        shared = [f for f in varying([record, other.group.first]) if f != "method" and not f.startswith("guidance.")]
        return other.method not in VANILLA, len(shared)

    return min(filter(fits, rows), key=distance, default=None)


def sweeps(groups: Sequence[Group], field: str) -> list[list[Group]]:
    """Groups that differ only in one field, such as "guidance.scale" or "ipc", where the field has three values or more."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        if group.first.value(field) is not None:
            # Under repulsion the block is the whole class, so that the block changes with the ipc.
            alike = recipe_key(group.first, field, *(["block"] if field == "ipc" else []))
            families.setdefault(alike, []).append(group)
    return [sorted(f, key=lambda g: _rank(g.first.value(field))) for f in families.values() if len(f) >= 3]
