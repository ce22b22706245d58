"""Trials of versions whose names of protocols depend on the order of `--set`, which count whatever that order was.

Nothing is written anew: the lines stay as they are, and readers call their protocols by the one name that they have now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dap.evaluation.current import hash_of
from dap.protocol_names import WRITTEN, ordered

Line = Mapping[str, Any]


def key_of_protocol(facts: Mapping[str, Any], name: str | None = None) -> str:
    """The key "by" of a protocol: a hash of all facts of it, its name among them.

    Args:
        facts: what `Protocol.facts` gives, and whose labels they are; or a note of them, which says more.
        name: the name; by that of a trial of an earlier version it is the key of this trial, unless more than the order differs.
            Default: that of the facts, with its fields in their one order.
    """
    said = {field: value for field, value in facts.items() if field != "unsettled"}
    return hash_of({**said, "name": ordered(str(facts.get("name"))) if name is None else name})


def renamed(trials: Iterable[Line], protocols: Mapping[str, Any]) -> tuple[list[Line], dict[str, Any]]:
    """Trials under the name and the key that their protocols have now, and the protocols by these keys.

    Args:
        trials: the lines of `trials.jsonl`. A line whose name changes gets a field `WRITTEN`.
        protocols: `protocols.json`.
    """
    keys, known = dict[str, str](), dict[str, Any]()
    for key, facts in protocols.items():
        name = facts.get("name") if isinstance(facts, Mapping) else None
        if isinstance(name, str) and ordered(name) != name:
            keys[key] = key_of_protocol(facts)
            known.setdefault(keys[key], {**facts, "name": ordered(name)})
        else:
            known[key] = facts
    found = list[Line]()
    for line in trials:
        name = ordered(line["protocol"])
        was = {"protocol": line["protocol"], "by": line.get("by")}
        more = {"protocol": name, "by": keys.get(str(line.get("by")), line.get("by")), WRITTEN: was}
        found.append(line if name == line["protocol"] else {**line, **more})
    return found, known


def as_written(trials: Iterable[Line]) -> list[Line]:
    """The same trials under the names and keys of their files."""
    return [{**line, **line[WRITTEN]} if WRITTEN in line else line for line in trials]


def once(trials: Sequence[Line], protocols: Mapping[str, Any]) -> list[Line]:
    """The trials without those that were made a second time because of another order. They are equal to the first ones.

    Args:
        trials, protocols: what `renamed` gives.
    """
    first, kept = dict[tuple[Any, ...], Line](), list[Line]()
    for line in trials:
        same = ("protocol", "network", "seed", "judged", "tested", "headline", "labels")
        other = first.setdefault(tuple(line.get(name) for name in same), line)
        names = [one.get(WRITTEN, one)["protocol"] for one in (line, other)]
        facts = [protocols.get(str(one.get("by"))) for one in (line, other)]
        if names[0] == names[1] or (None not in facts and facts[0] != facts[1]):
            kept.append(line)
    return kept
