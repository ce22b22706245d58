"""What is published for a set: the expected values of the shipped recipe it was made by."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dap import shipped
from dap.cli.recipe_flags import flag_of
from dap.recipe import Recipe
from dap.shipped import Expected

FREE = frozenset({"seed", "block", "data.path", "backbone.revision", "backbone.dtype"})
"""Fields that do not decide whether a set is the one that a recipe describes."""


def published(recipe: Mapping[str, Any], command: str) -> Expected | None:
    """What the shipped recipe that made a set expects of it; None for a set of no shipped recipe.

    A set is of a shipped recipe where every value that this one states or takes by default is the set's own. What it
    leaves to the backbone's card or the method (a layer, a scale) is so unless the command says otherwise.

    Args:
        recipe: of the set, with every open choice made, as `recipe.json` holds it.
        command: the shell command that made the set, as `command.txt` holds it.
    """
    return next((claim for values, claim in _claims() if _describes(values, recipe, command)), None)


@functools.cache
def _claims() -> list[tuple[dict[str, Any], Expected]]:
    """The raw values of each shipped recipe that expects something, and what it expects."""
    found = []
    for name in shipped.names():
        if not name.startswith("smoke/"):
            values = shipped.read(name)
            expected = shipped.expected_of(values, name)
            values.pop("expected", None)
            found += [(values, expected)] if expected and expected.values else []
    return found


def _describes(values: dict[str, Any], recipe: Mapping[str, Any], command: str) -> bool:
    stated = _flat(values)
    wanted, made = _flat(Recipe.parse(values).model_dump(mode="json")), _flat(recipe)
    if (
        values.get("method") != "dap"
    ):  # other methods have defaults of their own for the guidance, so only what is stated counts
        wanted = {k: v for k, v in wanted.items() if not k.startswith("guidance.") or k in stated}
    if wanted.get("data.classes") != made.get("data.classes"):
        return False
    free = FREE - ({"data.path"} if wanted.get("data.classes") is None else set())
    for field, value in made.items():
        want = wanted.get(field)
        if field in free:
            continue
        if want in (None, ""):
            if _overridden(field, command):
                return False
        elif want != value and not (field == "backbone.path" and PurePath(str(want)).name == PurePath(str(value)).name):
            return False
    return all(field in made for field, want in stated.items() if field not in free and want is not None)


def _overridden(field: str, command: str) -> bool:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    flag = flag_of(field)
    return any(word == f"--{flag}" or word.startswith((f"--{flag}=", f"{flag}=")) for word in words)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        fields |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return fields
