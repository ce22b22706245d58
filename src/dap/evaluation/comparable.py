"""Which trials may be compared. The names of a network and of a protocol do not say all that an accuracy depends on.

Trials of one protocol may have been tested on other images, trained with the labels of another teacher, or trained by a protocol
of one's own that was edited since, be it between sets of several sizes, for which it has other values. `marks` finds the words
that tell such trials apart. Trials with other words stand in other blocks of a report, so nothing is compared across them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dap.base.parsing import shown
from dap.data.sets.differences import flatten
from dap.evaluation.current import hash_of
from dap.evaluation.origins import UNKNOWN, digits

BASE = ("protocol", "epochs", "n_test", "headline")
"""The fields of a trial that a report shows. Networks are compared with each other, so the network is not among them."""
OF_LABELS = tuple(f"labels.{name}" for name in ("teacher", "fingerprint", "of", "origin"))
ELSEWHERE = frozenset({"source", "name", "network", "unsettled", *OF_LABELS})
"""Fields of a recorded protocol that are told elsewhere, or that each set has of its own."""
LOOKS = ("looks", "look_from")
"""Fields that change no training. They decide which look is the best one."""
TESTED = "tested on "
"""How the words begin that tell trials on several test sets apart."""
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
    told = [", ".join(filter(None, words)) for words in said]
    rest = iter([", ".join(filter(None, words)) for words in zip(told, _edits(places, told), strict=True)])
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
    hashes = [str(trial.get("tested") or _of_classes(record)) for record, trial in places]
    for group in groups:
        distinct = list(dict.fromkeys(hashes[i] for i in group))
        if len(distinct) < 2:
            continue
        # A set may be tested on other data than it was made of, so its recipe does not say the name.
        named = [(hashes[i], shown(str(places[i][1].get("data") or ""))) for i in group]
        names = {one: next((name for other, name in named if other == one and name), "") for one in distinct}
        unrecorded = len({hashes[i] for i in group if not places[i][1].get("tested")})
        orders = {places[i][0].class_names for i in group}
        turned = len(orders) > 1 and len({frozenset(order) for order in orders}) == 1
        for i in group:
            one, name = hashes[i], names[hashes[i]]
            recorded = bool(places[i][1].get("tested"))
            alone = recorded and name and list(names.values()).count(name) == 1
            which = (
                name
                if alone
                else f"{name or 'images'} ({digits(one, distinct)})"
                if recorded
                else "images that are not recorded"
            )
            which += f" ({one})" if not recorded and unrecorded > 1 else ""
            first = f", whose first class is {shown(places[i][0].class_names[0])}" if turned else ""
            words[i] = f"{TESTED}{which}{first}"
    return words


def _of_classes(record: Judged) -> str:
    """The classes of a set whose trials do not record their test images. Images of other classes are other ones in any case."""
    names = sorted(record.class_names)
    return (
        f"of {', '.join(map(shown, names))}"
        if len(names) <= SHOWN
        else f"of {len(names):,} classes, {hash_of(names)[:6]}"
    )


@dataclass
class _Whose:
    """Whose labels a training has: the name, what they are labels of ("views" or "images"), and what made them. The last two are
    empty where they are not known."""

    name: str
    of: str
    origin: str


def _teachers(places: Sequence[Place], groups: Sequence[Sequence[int]]) -> list[str]:
    """Words on who gave the labels, where trials of one protocol have several."""
    words = [""] * len(places)
    whose = _whose(places)
    for group in groups:
        distinct = {(whose[i].name, whose[i].of, whose[i].origin) for i in group}
        if len(distinct) < 2:
            continue
        for i in group:
            one = whose[i]
            origins = {origin for name, of, origin in distinct if (name, of) == (one.name, one.of)}
            kinds = {of for name, of, _ in distinct if name == one.name}
            said = f"{'image ' * (one.of == 'images' and len(kinds) > 1)}labels by {one.name}"
            said += (
                f" ({digits(one.origin, origins) or UNKNOWN})"
                if len(origins) > 1 or (not one.of and len(kinds) > 1)
                else ""
            )
            words[i] = "hard labels" if one.name == "hard" else said
    return words


def _whose(places: Sequence[Place]) -> list[_Whose]:
    """Whose labels each trial has. What a trial does not say is that of the other trials of the same name, if these agree."""
    found, marks = list[_Whose](), list[str]()
    judged = defaultdict[tuple[str, str], set[object]](set)
    for place in places:
        facts = _facts(place)
        labels = facts.get("labels") if isinstance(facts, Mapping) else None
        said = [
            str(labels.get(n) or "") if isinstance(labels, Mapping) else "" for n in ("of", "origin", "fingerprint")
        ]
        found.append(_Whose(str(place[1].get("labels") or "hard"), *said[:2]))
        marks.append(said[2])
        judged[found[-1].name, said[2]].add(place[1].get("judged"))
    for one, mark in zip(found, marks, strict=True):
        # Versions before this one wrote a fingerprint alone. That of a classifier is the same for many sets, and that of the
        # labels of the images of one set is its own.
        known = any(other.of == "views" and (other.name, other.origin) == (one.name, mark) for other in found)
        if mark and not one.of and (known or len(judged[one.name, mark]) > 1):
            one.of, one.origin = "views", mark
    agreed = {
        (one.name, one.of): {
            other.origin for other in found if other.origin and (other.name, other.of) == (one.name, one.of)
        }
        for one in found
    }
    for one in found:
        full = {(other.of, other.origin) for other in found if other.name == one.name and other.of}
        if not one.of and len(full) == 1:
            ((one.of, one.origin),) = full
        elif one.of and not one.origin and len(agreed[one.name, one.of]) == 1:
            (one.origin,) = agreed[one.name, one.of]
    return found


def _fields(places: Sequence[Place]) -> list[str]:
    """Words on the fields of the recorded protocols, where those of one name, for as many images and classes, differ."""
    words = [""] * len(places)
    keys = [(*[trial.get(n) for n in (*BASE, "network")], one.ipc, len(one.class_names)) for one, trial in places]
    for group in _grouped(keys):
        facts = {i: found for i in group if (found := _compared(places[i]))}
        values = defaultdict[str, set[str]](set)
        for found in facts.values():
            for field, value in found.items():
                values[field].add(value)
        differing = [field for field, found in values.items() if len(found) > 1]
        for i, found in facts.items():
            said = [f"{field} {_brief(found[field])}" for field in differing if field in found]
            more = [f"and others ({hash_of(said)[:6]})"] if len(said) > SHOWN else []
            words[i] = ", ".join([*said[:SHOWN], *more])
    return words


def _compared(place: Place) -> dict[str, str]:
    """The fields of the protocol of a trial that decide its score and are told nowhere else; {} where they are not known."""
    recorded = _facts(place)
    facts = dict(recorded) if isinstance(recorded, Mapping) else {}
    if not facts:
        return {}
    if isinstance(facts.get("labels"), str):
        facts["labels"] = {"kind": facts["labels"]}  # as versions long before this one wrote it
    # The weights themselves are those of a set. A protocol without this field has none.
    found = flatten(facts) | {"weights": str(facts.get("weights") or "none").partition(" ")[0]}
    left = {*ELSEWHERE, *(LOOKS if place[1].get("headline") != "best" else ())}
    left |= {"labels.kind"} if found.get("labels.kind") == "hard" else set()  # the words on labels say it
    return {field: _text(value) for field, value in found.items() if not left & {field, field.partition(".")[0]}}


def _edits(places: Sequence[Place], words: Sequence[str]) -> list[str]:
    """Words on protocols of one name that were edited between sets of several sizes: the fields of these sets differ anyway."""
    edits = [""] * len(places)
    written = [str(facts.get("unsettled") or "") if isinstance(facts := _facts(one), Mapping) else "" for one in places]
    for group in _grouped(
        [(*[trial.get(n) for n in BASE], said) for (_, trial), said in zip(places, words, strict=True)]
    ):
        distinct = {written[i] for i in group} - {""}
        for i in group if len(distinct) > 1 else ():
            edits[i] = f"edited protocol ({digits(written[i], distinct)})" if written[i] else ""
    return edits


def _facts(place: Place) -> object:
    return place[0].protocols.get(str(place[1].get("by")))


def _brief(text: str) -> str:
    """A value as a reader can bear it; of a long one six digits of its hash."""
    return text if len(text) <= LONGEST else hash_of(text)[:6]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
