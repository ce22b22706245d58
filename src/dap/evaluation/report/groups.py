"""Groups: the sets of a report that differ only in the seed.

`evaluation.origins` says when sets were made of the same things.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from dap.base.parsing import shown
from dap.evaluation import taken
from dap.evaluation.report.records import SetRecord, is_number, with_repeat

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


def sweeps(groups: Sequence[Group], field: str) -> list[list[Group]]:
    """Groups that differ only in one field, such as "guidance.scale" or "ipc", where the field has three values or more."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        if group.first.value(field) is not None:
            # Under repulsion the block is the whole class, so that the block changes with the ipc.
            alike = recipe_key(group.first, field, *(["block"] if field == "ipc" else []))
            families.setdefault(alike, []).append(group)
    return [sorted(f, key=lambda g: _rank(g.first.value(field))) for f in families.values() if len(f) >= 3]
