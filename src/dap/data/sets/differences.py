"""The fields in which two records differ, such as the recipes of two sets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dap.base.describing.hashes import hash_of_long
from dap.base.files import expanded, same_place
from dap.base.parsing import shown
from dap.data.real.names import composed, some


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """One line for each field in which two nested dictionaries differ, as in "guidance.scale: 0.1 -> 0.2".

    `where` is the dotted name of the field that holds the two values; it is empty at the top.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        missing = object()
        return [
            line
            for key in keys
            for line in differences(old.get(key, missing), new.get(key, missing), f"{where}.{key}".lstrip("."))
        ]
    if old == new:
        return []
    steps = _steps(old), _steps(new)
    if steps[0] and steps[0] == steps[1]:
        pairs = zip(steps[0], old, new, strict=True)
        return [line for name, was, now in pairs for line in differences(was, now, f"{where}.{name}")]
    if steps[0] and steps[1]:
        return [f"{where}: {', '.join(steps[0])} -> {', '.join(steps[1])}"]
    lists = _long(old), _long(new)
    if lists[0] and lists[1] and (said := classes_apart(*lists, "the former", "the new")):
        return [f"{where}: {_small(said)}"]
    before, after = ("nothing" if v.__class__ is object else json.dumps(v) for v in (old, new))
    return [f"{where}: {before} -> {after}"]


CODE = "code "
"""How the names of hashes of code begin in inputs.json; the place of the code follows."""


def as_spelt(new: Any, old: Any) -> Any:
    """A record in which paths are spelt as in an old one, where both spellings lead to the same file or folder.

    Relative paths are those of the folder where `dap` runs now. A name of code, as file.py:Name, counts by its file.
    """
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        left = [key for key in old if key.startswith(CODE) and key not in new]
        keys = {key: next((one for one in left if _same(_place(key), _place(one))), key) for key in new}
        return {keys[key]: as_spelt(value, old[keys[key]]) if keys[key] in old else value for key, value in new.items()}
    return old if isinstance(new, str) and isinstance(old, str) and _same(new, old) else new


def _place(key: str) -> str:
    return key.removeprefix(CODE) if key.startswith(CODE) else ""


def _same(one: str, other: str) -> bool:
    """Whether two texts name the same place, the same thing in one file of code, or the same helper of one."""
    (before, path, name), (others, place, thing) = _around_path(one), _around_path(other)
    return (before, name) == (others, thing) and same_place(path, place)


def _around_path(text: str) -> tuple[str, str, str]:
    """A text as what stands before a path, the path, and what stands after it, as in "helper of ./file.py:Name"."""
    path, _, name = text.rpartition(":")
    path, name = (path, name) if path.endswith(".py") else (text, "")
    helper, of, place = path.rpartition(" of ")
    return (helper, place, name) if of and not os.path.exists(expanded(path)) else ("", path, name)


OBJECTS_RECORD = "objects_record"
"""The key in inputs.json that says of which version the record of objects is. A file of an earlier version has a smaller number
or none, and what it does not tell is not known."""

RECORD = 4
"""The version of the record of objects that is written. Version 3 tells less of code, of networks and of what an object has made
itself. Version 2 tells files of code, and arguments alone. Files without a number tell classes, files and plain values alone."""


def tells_less(inputs: Mapping[str, Any]) -> bool:
    """Whether the record of objects in inputs.json is of an earlier version."""
    version = inputs.get(OBJECTS_RECORD, 1)
    return isinstance(version, int) and version < RECORD


def as_told(new: Any, old: Any) -> Any:
    """A record of objects without what the record of an earlier version cannot tell of the same objects."""
    if isinstance(old, (list, str)) and isinstance(new, Mapping) and new == hash_of_long(old):
        return old  # earlier versions wrote long values out
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        told = {key: as_told(value, old[key]) for key, value in new.items() if key in old}
        # Earlier versions had hashes of other things here: of whole files or of the lines of a function, of code that is
        # installed or without the names of parameters, and of networks without all that decides their output.
        hashes = ("code", "text", "parts") if {"class", "function", "type"} & old.keys() else ()
        return told | {key: old[key] for key in hashes if key in old}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [as_told(*pair) for pair in zip(new, old, strict=True)]
    return new


def _long(value: Any) -> list[str]:
    """A list of so many texts that only its difference should be told; [] for any other value."""
    told = isinstance(value, list) and len(value) > 2 * MOST_NAMED and all(isinstance(one, str) for one in value)
    return value if told else []


def _steps(value: Any) -> list[str]:
    """The names of the steps of a protocol; [] for any other value."""
    told = isinstance(value, list) and all(isinstance(step, Mapping) and "op" in step for step in value)
    return [str(step["op"]) for step in value] if told else []


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, whose keys are dotted fields. Lists stay as they are."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        fields |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return fields


MOST_NAMED = 10
"""How many names a sentence about two lists of classes gives of each list."""


def classes_apart(mine: Sequence[str], theirs: Sequence[str], whose: str, others: str) -> str | None:
    """How two lists of classes differ, as a sentence that names at most ten classes of each list.

    The order does not count. Classes that are spelt alike in the two lists are named as such.

    Args:
        mine, theirs: the names.
        whose, others: what has these classes, such as "The set x" and "the test data".

    Returns:
        The sentence; None where the two lists have the same names.
    """
    here, there = (set(map(composed, names)) for names in (mine, theirs))
    only, lacking = sorted(here - there), sorted(there - here)
    if not only and not lacking:
        return None
    left = {spelling(name): name for name in lacking}
    close = []
    for name in only[:MOST_NAMED]:
        found = get_close_matches(spelling(name), left, n=1, cutoff=0.75)
        close += [f"{shown(name)} may be {shown(left[found[0]])}"] if found else []
    parts = []
    for names, has, other in ((only, whose, others), (lacking, others, whose)):
        if names:
            one = "class" if len(names) == 1 else "classes"
            parts.append(f"{has} has the {one} {some(map(shown, names), MOST_NAMED)}, which {_small(other)} has not")
    joined = "; ".join(parts)
    return f"{joined[:1].upper()}{joined[1:]}" + (f" ({', '.join(close)})" if close else "")


def _small(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"


def spelling(name: str) -> str:
    """A name as it is compared with close ones: composed characters, small letters, blanks for signs between words."""
    return " ".join(composed(name).casefold().replace("_", " ").replace("-", " ").split())
