"""The user code that a recipe names, by its hashes. Sets keep them, and a workshop knows by them that code has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dap.base.registry import code_of
from dap.data.sets.differences import CODE
from dap.recipe import Recipe
from dap.resolved import Resolved


def code_of_classifier(name: str | None) -> dict[str, str]:
    """The sha256 of the user code that a classifier's name names, by its place; empty for a name that names none."""
    return {} if name is None or name.startswith("torchvision:") else code_of(name)


def code_of_recipe(recipe: Recipe | Resolved, objects: Collection[str] = ()) -> dict[str, str]:
    """The sha256 of each file or module of user code that the recipe names as `file.py:Name` or `package.module:Name`.

    Args:
        recipe: the recipe.
        objects: the fields of the recipe in whose place objects were given, see `Objects.sections`. No code is loaded by the
            names of their classes, because `Objects.described` says what they are.
    """
    values: Mapping[str, Any] = recipe.values() if isinstance(recipe, Resolved) else recipe.model_dump()
    named = [] if "method" in objects else [values["method"]]
    for section, leaf in (("guidance", "kernel"), ("refine", "kernel"), ("backbone", "path"), ("own_guidance", "path")):
        if section not in objects:
            named.append((values.get(section) or {}).get(leaf))
    named += (values.get("options") or {}).values()  # an option may name code, such as a network to match in
    found: dict[str, str] = {}
    for text in named:
        if isinstance(text, str) and not text.startswith(("torchvision:", "timm:")):
            found |= code_of(text)
    return {f"{CODE}{where}": digest for where, digest in found.items()}
