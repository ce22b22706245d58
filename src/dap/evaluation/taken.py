"""How measures were taken: which of them may be averaged, and which may be compared.

A number in `measures.json` depends on the features, and on the size of the images and the real images that they were taken of. A
set holds the measures that were taken last, so the seeds of one group may hold numbers of several kinds. What a file of an
earlier version does not say is not known, and so it differs from nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

ZERO_SHOT = "zero_shot_agreement"
"""The measure that comes from `zeroshot.json`."""
WORDS = {
    "features": "with different features",
    "network": "with features of different networks",
    "size": "at different sizes",
    "data": "against different real images",
    "version": "by different versions of dap",
    "backbone": "by different backbones",
    "times": "at different noise levels",
}
"""What two ways differ in, in the order in which it is said."""


class Measured(Protocol):
    """A set as a report reads it; see `report.records.SetRecord`."""

    @property
    def measures(self) -> Mapping[str, Any]: ...
    @property
    def zeroshot(self) -> Mapping[str, Any]: ...


class Measures(Protocol):
    """A group of sets; see `report.groups.Group`."""

    @property
    def label(self) -> str: ...
    @property
    def sets(self) -> Sequence[Measured]: ...


def way(one: Measured, measure: str = "") -> dict[str, str]:
    """What is known of how a measure of a set was taken. All measures but `ZERO_SHOT` are taken together."""
    if measure == ZERO_SHOT:
        known = {"backbone": one.zeroshot.get("backbone"), "times": one.zeroshot.get("times")}
    else:
        of = one.measures.get("of")
        known = {**(of if isinstance(of, Mapping) else {}), "features": one.measures.get("features")}
    return {name: _text(known[name]) for name in WORDS if known.get(name) not in (None, "")}


def differing(sets: Iterable[Measured], measure: str = "") -> dict[str, list[str]]:
    """What sets differ in by the way in which they were measured: names of `WORDS`, each with the values; {} for nothing."""
    found: dict[str, dict[str, None]] = {}
    for one in sets:
        for name, value in way(one, measure).items():
            found.setdefault(name, {})[value] = None
    return {name: sorted(found[name], key=_order) for name in WORDS if len(found.get(name, ())) > 1}


def said(apart: Mapping[str, Sequence[str]]) -> str:
    """How measures were taken, as in "at different sizes (16 px, 32 px)"; an empty text for {}."""
    parts = []
    for name, values in apart.items():
        shown = (
            [f"{one} px" if name == "size" else one for one in values]
            if name in ("features", "size", "backbone")
            else []
        )
        parts.append(WORDS[name] + (f" ({', '.join(shown)})" if shown else ""))
    return " and ".join(parts)


def ways(groups: Sequence[Measures]) -> list[str]:
    """Sentences on measures that are not averaged, or do not compare, because they were taken in several ways."""
    found = []
    for group in groups:
        if how := said(differing(group.sets)):
            advice = "dap evaluate by one protocol, on the same data, takes them alike"
            found.append(f"Measures of the sets of {group.label} were taken {how} and are not averaged; {advice}.")
    sets = [one for group in groups for one in group.sets]
    if len(groups) > 1 and (how := said(differing(sets))):
        found.append(f"Measures were taken {how} and do not compare.")
    if how := said(differing(sets, ZERO_SHOT)):
        found.append(f"Zero-shot agreement was taken {how} and does not compare.")
    return found


def measures_in(measures: Mapping[str, Any], zeroshot: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `measures.json`. The numbers of the user's own measures and of `zeroshot.json` are put among the
    others."""
    own = {name: value for one in own_measures(measures).values() for name, value in one["values"].items()}
    agreement = {ZERO_SHOT: zeroshot["agreement"]} if is_number(zeroshot.get("agreement")) else {}
    return {**own, **measures, **agreement}


def measures_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the measures that two records of the same images hold, those of the first one that was measured, and the agreement of
    zero-shot labels, which another file says, of one that has it."""
    first, second = (other, one) if other.keys() - {ZERO_SHOT} and not one.keys() - {ZERO_SHOT} else (one, other)
    return {**{name: value for name, value in second.items() if name == ZERO_SHOT}, **first}


def own_measures(measures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The results of the user's own measures, by their names (`file.py:Name`): numbers, directions and meanings."""
    own = measures.get("own")
    entries = own.items() if isinstance(own, Mapping) else ()
    return {str(n): one for n, one in entries if isinstance(one, Mapping) and isinstance(one.get("values"), Mapping)}


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite int or float (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _order(text: str) -> tuple[int, str]:
    return len(text) if text.isdecimal() else 0, text
