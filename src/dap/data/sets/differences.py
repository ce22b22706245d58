"""The fields in which two records differ, such as the recipes of two sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


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
    before, after = ("nothing" if v.__class__ is object else json.dumps(v) for v in (old, new))
    return [f"{where}: {before} -> {after}"]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, whose keys are dotted fields. Lists stay as they are."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        fields |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return fields
