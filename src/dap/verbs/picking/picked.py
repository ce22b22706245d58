"""A recipe whose method is left open gets one that suits the folder; one with a budget gets as much work as fits it.

The choice is made once. `chosen.json` in the folder of the set keeps it, and the recipe of the set holds its values. So a resumed
run chooses nothing anew, and the same values given by hand make the same set.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.store import Store
from dap.base.watch import Watcher
from dap.data.real.counts import total_of
from dap.data.sets.beginning import check_stated
from dap.data.sets.distilled import WORK
from dap.data.sets.notes import whole_note
from dap.recipe import Recipe
from dap.verbs.picking.budget import fitted, with_value
from dap.verbs.picking.deciding import Decision, decided
from dap.verbs.picking.words import again, on_budget, wrapped
from dap.verbs.settling import NOTE, kept, settled
from dap.workshop import Workshop

BY = "the classes and the time"
"""By what such a choice is made, as `chosen.json` says it."""

VERSION = 1
"""Counts up when a choice is made in another way."""

OPEN = ("method", "options", "captions", "backbone", "sampling", "guidance", "own_guidance", "refine")
"""Parts of a recipe that say what the method is, or that only some methods have. If one of them is given, the method is the one
that is given, or `auto`."""


@dataclass(frozen=True)
class Picked:
    """A recipe with a method.

    Attributes:
        recipe: the recipe.
        choices: what was chosen, as `chosen.json` keeps it; empty where nothing was open.
    """

    recipe: Recipe
    choices: tuple[dict[str, Any], ...] = ()


def is_open(recipe: Recipe, workshop: Workshop) -> bool:
    """Whether a recipe leaves its method to the tool."""
    objects = workshop.objects
    given = recipe.model_dump(exclude_unset=True)
    named = any(given.get(part) for part in OPEN)
    return not named and objects.method is None and objects.backbone is None and objects.guidance is None


def check_given(out: Path, recipe: Recipe, workshop: Workshop, budget: float | None = None) -> None:
    """Check, before any work, that what a recipe gives does not contradict that of the set which is in the folder already.

    Args:
        out: the folder.
        recipe: the recipe.
        workshop: holds the objects of the recipe. Nothing is loaded.
        budget: as for `picked`. It may change how many steps are taken.

    Raises:
        DapError: it does. The message names the fields.
    """
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    given: dict[str, Any] = {"ipc": recipe.ipc, "seed": recipe.seed}
    given["data"] = {
        name: value
        for name, value in recipe.data.model_dump(mode="json").items()
        if value is not None or name == "classes"
    }
    if not is_open(recipe, workshop):
        given["method"] = recipe.method
    # Other fields of these sections are words, which may be settled otherwise than they are given.
    given["backbone"] = {k: v for k, v in values.get("backbone", {}).items() if k in ("path", "revision", "dtype")}
    for section in ("guidance", "refine", *(("sampling",) if budget is None else ())):
        given[section] = {k: v for k, v in values.get(section, {}).items() if isinstance(v, int | float)}
    check_stated(out, given)


def picked(
    recipe: Recipe, workshop: Workshop, out: Path, watcher: Watcher, budget: float | None = None, keep: bool = True
) -> Picked:
    """Choose the method of a recipe that names none, and how much work fits a budget. What was chosen before stays.

    Args:
        recipe: the recipe.
        workshop: loads the data and backbones.
        out: the folder of the set, in which an earlier run may have kept its choice.
        watcher: is told what was chosen and why.
        budget: seconds that the set may take. None: where the method is chosen, some ten minutes; else no bound.
        keep: whether the choice may be kept in `out` for other processes that make the same set, and for a run after a kill.

    Raises:
        DapError: something is wrong with the recipe or the data, or no budget can be kept for the method.
    """
    earlier = [one for one in (whole_note(out, NOTE) if out.is_dir() else {}).get("choices", []) if one["by"] == BY]
    choosing = is_open(recipe, workshop)
    if not choosing and budget is None:
        return Picked(recipe, tuple(earlier))
    if recipe.data.frames is not None:
        raise DapError(
            "Neither a method nor a budget is chosen for clips; give --method random, or --method dap and a video --backbone, "
            "and no --budget."
        )
    # A default that is written out, such as --seed 0, asks for the same set.
    values = recipe.model_dump(exclude_unset=True, exclude_defaults=True, mode="json")
    values.pop("ipc", None)  # a set may grow
    key = {"version": VERSION, "recipe": values, "classes": workshop.whole(recipe.data).class_names}
    mark = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    found = [one for one in earlier if one["key"] == mark]
    if found:
        watcher.note(wrapped(again(found, budget)))
        return Picked(_with(recipe, found), tuple(found))

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        decision = (
            decided(recipe, workshop, budget)
            if choosing
            else _fitted(recipe, workshop, out, watcher, budget or 0.0, keep)
        )
        return {"choices": _noted(decision, workshop, recipe, time.perf_counter() - began), "told": decision.told}

    store = Store(out / WORK) if keep and _is_ours(out) else Store()
    made = kept(store, "choice of the method", key, make)
    if made["told"]:
        watcher.note(wrapped(made["told"]))
    choices = [{**one, "key": mark} for one in made["choices"]]
    return Picked(_with(recipe, choices), tuple(choices))


def _fitted(recipe: Recipe, workshop: Workshop, out: Path, watcher: Watcher, budget: float, keep: bool) -> Decision:
    """The work of a method that the user named, cut to a budget."""
    whole = settled(recipe, workshop, out, watcher, keep=keep).recipe
    found = fitted(whole, workshop, budget)
    values: dict[str, Any] = {} if found is None else {found.field: found.value}
    return Decision(values, {}, budget, on_budget(recipe, found, budget))


def _noted(decision: Decision, workshop: Workshop, recipe: Recipe, seconds: float) -> list[dict[str, Any]]:
    """What was chosen, as `notes.Choice` has it."""
    images = total_of(workshop.whole(recipe.data))
    considered = decision.seconds
    lines = list[dict[str, Any]]()
    for name, value in decision.values.items():
        others = {str(other) for key, other in decision.values.items() if key != name}
        methods = {one: took for one, took in considered.items() if one not in others}
        mine = methods if name == "method" and methods else {str(value): considered.get(str(value))}
        lines.append(
            {
                "field": name,
                "value": value,
                "by": BY,
                "candidates": list(mine),
                "scores": {"seconds": [None if one is None else round(min(one, 1e6), 1) for one in mine.values()]},
                "limit": round(min(decision.budget, 1e6), 1) if decision.budget else None,
                "images": images,
                "seconds": round(seconds, 1),
                "warning": decision.told or None,
            }
        )
        decision = Decision(decision.values, decision.seconds, decision.budget, "")  # the reason is said once
    return lines


def _with(recipe: Recipe, choices: Sequence[Mapping[str, Any]]) -> Recipe:
    for one in choices:
        field, value = one["field"], one["value"]
        if "." in field:
            recipe = with_value(recipe, field, int(value) if isinstance(value, float) else value)
        else:
            recipe = Recipe.parse({**recipe.model_dump(exclude_unset=True), field: value})
    return recipe


def _is_ours(out: Path) -> bool:
    """Whether a folder is one in which a set may begin or go on, so that unfinished work may be kept there."""
    if not out.exists():
        return True
    names = {file.name for file in out.iterdir()} if out.is_dir() else {""}
    return not names or bool(names & {"recipe.json", WORK})
