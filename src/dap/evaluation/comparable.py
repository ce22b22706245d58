"""Which trials may be compared. The names of a network and of a protocol do not say all that an accuracy depends on.

Trials of one protocol may have been tested on other images, trained with the labels of another teacher, or trained by a protocol
of one's own that was edited since. `marks` finds the words that tell such trials apart. Trials with other words stand in other
blocks of a report, so nothing is compared across them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from dap.data.sets.differences import flatten
from dap.evaluation.current import hash_of

BASE = ("protocol", "epochs", "n_test", "headline")
"""The fields of a trial that a report shows. Networks are compared with each other, so the network is not among them."""
OF_A_SET = ("weights", "labels", "source", "name", "network", "looks", "look_from")
"""Fields of a recorded protocol that are told elsewhere, or that each set has of its own. Looks change no training."""
SHOWN = 3
"""How many fields of a protocol are named."""
LONGEST = 40
"""The most characters of a value that is shown as it is."""


class Judged(Protocol):
    """A set as a report reads it; see `report.records.SetRecord`."""

    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def ipc(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def trials(self) -> tuple[Mapping[str, Any], ...]: ...
    @property
    def protocols(self) -> Mapping[str, Any]: ...


def marks(sets: Sequence[Judged]) -> list[list[str]]:
    """For each trial of each set, the words that tell it apart from trials of the same protocol; "" where there are none."""
    places = [(record, trial) for record in sets for trial in record.trials]
    groups = _grouped([tuple(trial.get(name) for name in BASE) for _, trial in places])
    said = zip(_tests(places, groups), _teachers(places, groups), _fields(places), strict=True)
    rest = iter([", ".join(filter(None, words)) for words in said])
    return [[next(rest) for _ in record.trials] for record in sets]


Place = tuple[Judged, Mapping[str, Any]]


def _grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    found = defaultdict[Hashable, list[int]](list)
    for i, key in enumerate(keys):
        found[key].append(i)
    return list(found.values())


def _tests(places: Sequence[Place], groups: Sequence[Sequence[int]]) -> list[str]:
    """Words on the test images, where trials of one protocol have several."""
    words = [""] * len(places)
    hashes = [str(trial.get("tested") or "") for _, trial in places]
    for group in groups:
        distinct = list(dict.fromkeys(hashes[i] for i in group))
        if len(distinct) < 2:
            continue
        names = {
            one: next((n for i in group if hashes[i] == one if (n := _data(places[i][0]))), "") for one in distinct
        }
        for i in group:
            one, name = hashes[i], names[hashes[i]]
            alone = name and list(names.values()).count(name) == 1
            which = (
                name if alone else f"{name or 'other images'} ({one[:6]})" if one else "images that are not recorded"
            )
            words[i] = f"tested on {which}"
    return words


def _data(record: Judged) -> str:
    """The last part of the path of the data that a set is made of; empty where it does not say them."""
    return PurePath(str(flatten(record.recipe).get("data.path") or "")).name


def _teachers(places: Sequence[Place], groups: Sequence[Sequence[int]]) -> list[str]:
    """Words on who gave the labels, where trials of one protocol have several."""
    words = [""] * len(places)
    facts = [_labels(place) for place in places]
    judged = defaultdict[tuple[str, str], set[object]](set)
    for (_, trial), found in zip(places, facts, strict=True):
        judged[found].add(trial.get("judged"))
    # A classifier gives labels to many sets. Labels of the images of one set have a fingerprint of their own.
    whose = [(name, mark if len(judged[name, mark]) > 1 else "") for name, mark in facts]
    for group in groups:
        distinct = {whose[i] for i in group}
        if len(distinct) < 2:
            continue
        names = [name for name, _ in distinct]
        for i in group:
            name, mark = whose[i]
            words[i] = f"labels by {name}" + (f" ({mark[:6]})" if mark and names.count(name) > 1 else "")
            words[i] = "hard labels" if name == "hard" else words[i]
    return words


def _labels(place: Place) -> tuple[str, str]:
    facts = _facts(place)
    labels = facts.get("labels") if isinstance(facts, Mapping) else None
    mark = labels.get("fingerprint") if isinstance(labels, Mapping) else None
    return str(place[1].get("labels") or "hard"), str(mark or "")


def _fields(places: Sequence[Place]) -> list[str]:
    """Words on the fields of the recorded protocols, where those of one name, for as many images and classes, differ."""
    words = [""] * len(places)
    keys = [(*[trial.get(n) for n in (*BASE, "network")], one.ipc, len(one.class_names)) for one, trial in places]
    for group in _grouped(keys):
        facts = {i: flatten(found) for i in group if isinstance(found := _facts(places[i]), Mapping)}
        values = defaultdict[str, set[str]](set)
        for found in facts.values():
            for field, value in found.items():
                if field.partition(".")[0] not in OF_A_SET:
                    values[field].add(_text(value))
        differing = [field for field, found in values.items() if len(found) > 1]
        for i, found in facts.items():
            said = [f"{field} {_brief(_text(found[field]))}" for field in differing if field in found]
            more = [f"and others ({hash_of(said)[:6]})"] if len(said) > SHOWN else []
            words[i] = ", ".join([*said[:SHOWN], *more])
    return words


def _facts(place: Place) -> object:
    return place[0].protocols.get(str(place[1].get("by")))


def _brief(text: str) -> str:
    """A value as a reader can bear it; of a long one six digits of its hash."""
    return text if len(text) <= LONGEST else hash_of(text)[:6]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
