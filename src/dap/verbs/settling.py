"""Choices that a recipe leaves to `auto` are made on real images, before the recipe is resolved and anything is sampled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dap.backbones.base import Card
from dap.base.claims import CLAIMS
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.base.store import Store
from dap.base.watch import Watcher
from dap.choosing.features import TooFew
from dap.choosing.layers import CRITERION, TIMES, compared, curve
from dap.choosing.region import ROOM, ROUNDS, Region, largest, log_errors
from dap.data.sets.distilled import WORK
from dap.data.sets.notes import whole_note
from dap.methods.base import Method, Task, Unit
from dap.recipe import AUTO, BackboneChoice, Recipe, overlaid
from dap.resolved import Resolved, ResolvedGuidance, ResolvedRefinement
from dap.workshop import Workshop

NOTE = "chosen.json"
"""The file of a set with the choices that were made for it, and their curves."""

VERSION = 1
"""Counts up when a choice is made in another way, so that what was kept is made anew."""

CLASSES, SLOTS = 2, 6
"""Trial samples: of how many classes, and how many of each."""

TRIED = 0.05
"""The scale of a recipe while its own is open."""


@dataclass(frozen=True)
class Settled:
    """A recipe without open choices.

    Attributes:
        recipe: the recipe, whose choices have values.
        choices: what was chosen, as `NOTE` keeps it; empty where nothing was open.
        used: what the choices cost, as `Store.used` says it.
    """

    recipe: Recipe
    choices: tuple[dict[str, Any], ...] = ()
    used: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def asked(recipe: Recipe, method: Method, card: Card | None = None) -> dict[str, bool]:
    """The choices that are left to real images, in their order, and whether nobody asked for them.

    Args:
        recipe: the recipe. A user, or the defaults of the method, leave a field to `auto`.
        method: the method of the recipe.
        card: the card of the backbone, or None for a method without one. If its layer is only guessed, a layer that nobody names
            is chosen too.
    """
    mine = recipe.model_dump(exclude_unset=True)
    found = dict[str, bool]()
    for section, defaults in (("guidance", method.guidance), ("refine", method.refinement)):
        given = {name: value for name, value in (mine.get(section) or {}).items() if value is not None}
        values = {**(defaults or {}), **given}
        own, strength = ("layer", "scale") if section == "guidance" else ("layers", "steps")
        # A guidance of no strength and a refinement of no steps look at no layer.
        guessed = defaults is not None and card is not None and card.guessed and values.get(strength) != 0
        for name in ("layer", "layers", "scale"):
            unsaid = guessed and name == own and values.get(name) is None
            if unsaid or _is_auto(values.get(name)):
                found[f"{section}.{name}"] = unsaid
    return found


def settled(
    recipe: Recipe, workshop: Workshop, out: Path, watcher: Watcher, grid: Path | None = None, keep: bool = True
) -> Settled:
    """Make the choices that a recipe leaves open. What was chosen before on the same data and weights is not chosen again.

    Args:
        recipe: the recipe.
        workshop: loads the data and the backbone.
        out: the folder of the set, in which an earlier run may have kept its choices.
        watcher: is told of the work, and what was chosen and why.
        grid: the folder of the grid that the set is a part of. Its cells share their choices.
        keep: whether new choices may be kept in `out` for a run after a kill; a dry run writes nothing there.

    Raises:
        DapError: something is wrong with the recipe, the data or the backbone, or they are too few for a choice.
    """
    method, _ = workshop.asked(recipe)
    compares = "backbone" in method.needs and (method.guidance is not None or method.refinement is not None)
    card = workshop.backbone(recipe.backbone or BackboneChoice()).card if compares else None
    fields = asked(recipe, method, card)
    if not fields:
        return Settled(recipe)
    guided = {**(method.guidance or {}), **(recipe.guidance.model_dump(exclude_unset=True) if recipe.guidance else {})}
    if "guidance.scale" in fields and guided.get("unit") == "paper":
        raise DapError("scale: auto is found in units of the sampler's own step; give unit: step, or a scale.")
    layer = card.layer if card else None
    opened = {"guidance.layer": layer, "guidance.scale": TRIED, "refine.layers": layer and (layer,)}
    for field in fields:
        recipe = _with(recipe, field, opened[field])
    choices, store = list[dict[str, Any]](), None
    for field in fields:  # a scale is found for the layer that was chosen
        _, task = workshop.task(recipe)
        if store is None:
            own = out / WORK if keep else None
            folder = workshop.cache or (grid / CLAIMS if grid else own)
            prompts = task.backbone.card.prompts
            store = Store(folder, {**task.store.inputs, **prompts}, cache=workshop.cache)
        if field == "guidance.scale":
            key, make = _scale(field, method, task, watcher)
        else:
            key, make = _layer(field, task, watcher, unsaid=fields[field])
        mark = hashlib.sha256(json.dumps([store.inputs, field, key], sort_keys=True, default=str).encode()).hexdigest()
        earlier = (whole_note(out, NOTE) if out.is_dir() else {}).get("choices", [])
        choice = next((one for one in earlier if one["key"] == mark), None)
        if choice is None:
            choice = {**kept(store, f"choice of {field}", key, make), "key": mark}
            for text in filter(None, (_told(choice, task, unsaid=fields[field]), choice["warning"])):
                if text not in workshop.told:  # once, where many sets of one comparison have the same choice
                    workshop.told.add(text)
                    watcher.note(text)
        choices.append(choice)
        value = choice["value"]
        recipe = _with(recipe, field, (value,) if field == "refine.layers" else value)
    return Settled(recipe, tuple(choices), store.used if store else {})


def _is_auto(value: Any) -> bool:
    return value == AUTO or (isinstance(value, (list, tuple)) and list(value) == [AUTO])


def _with(recipe: Recipe, field: str, value: Any) -> Recipe:
    """The recipe with a value for a field that was open. A scale is always in steps."""
    section, _, name = field.partition(".")
    values = {f"{section}.{name}": value, **({"guidance.unit": "step"} if field == "guidance.scale" else {})}
    keyword = {"refine.layers": "refine_layers", "guidance.layer": "layer", "guidance.scale": "scale"}
    said = {keyword.get(where, "unit"): one for where, one in values.items()}
    return Recipe.parse(overlaid(recipe.model_dump(exclude_unset=True), said))


def kept(store: Store, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A choice from the store, which keeps it as the bytes of its JSON."""

    def compute() -> dict[str, torch.Tensor]:
        return {"json": torch.frombuffer(bytearray(json.dumps(make()).encode()), dtype=torch.uint8)}

    return json.loads(bytes(store.get(name, key, compute)["json"].tolist()))


Choice = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""Everything that a choice depends on beside the data and the weights, and the function that makes it."""


def _layer(field: str, task: Task, watcher: Watcher, *, unsaid: bool) -> Choice:
    """The choice of a layer. One that nobody asked for (`unsaid`) is the card's where the images are too few for a choice."""
    options: ResolvedGuidance | ResolvedRefinement = (
        task.recipe.guidance if field == "guidance.layer" else task.recipe.refine
    )
    times = tuple(options.times[:4]) if isinstance(options, ResolvedRefinement) else TIMES
    pool: Literal["mean", "2x2", "4x4"] = options.pool if options.pool in ("mean", "2x2") else "4x4"
    key = {"version": VERSION, "by": CRITERION, "times": times, "pool": pool, "normalise": options.normalise}
    key |= {"layers": compared(task.backbone), "classes": task.source.class_names}
    if unsaid:  # then too few images are no error
        key["unsaid"] = True

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        how: dict[str, Any] = {"times": times, "pool": pool, "normalise": options.normalise, "tell": watcher.work}
        try:
            found = curve(task.backbone, task.source, ("probe", CRITERION), **how)
        except TooFew as error:
            if not unsaid:
                raise
            return _middle(field, task.backbone.card, error)
        best, weak, warning = found.best(), found.weak(), None
        if weak is not None:
            warning = (
                f"Warning: the features of {task.backbone.card.name} hardly tell these classes apart: a probe on its best layer "
                f"is right on {weak:.0%} of {found.held} held-out images, and a guess on {found.chance:.0%}. Guidance and "
                "refinement by such features know little of the classes; take a --backbone that was trained on such images."
            )
        return {
            "field": field,
            "value": best,
            "by": CRITERION,
            "candidates": list(found.layers),
            "scores": {name: [_number(one) for one in row] for name, row in found.scores.items()},
            "images": found.images,
            "seconds": round(time.perf_counter() - began, 1),
            "warning": warning,
        }

    return key, make


def _middle(field: str, card: Card, why: TooFew) -> dict[str, Any]:
    """The layer of a card that only guesses it, where the images are too few to compare layers."""
    warning = f"The card of {card.name} names no layer, so its middle one, {card.layer}, is taken. {why}"
    scores = {"middle": [None]}
    choice = {"field": field, "value": card.layer, "by": "middle", "candidates": [card.layer], "scores": scores}
    return {**choice, "images": 0, "seconds": 0.0, "warning": warning}


def _scale(field: str, method: Method, task: Task, watcher: Watcher) -> Choice:
    names, recipe = task.source.class_names, task.recipe
    labels = [round(k * (len(names) - 1) / max(CLASSES - 1, 1)) for k in range(min(CLASSES, len(names)))]
    few = min(SLOTS, *(task.source.count(label) for label in range(len(names))))
    own = _trial(recipe, 0.0, max(recipe.ipc, few))
    values = own.values()
    values["refine"] = None  # it comes after the guidance
    key = {"version": VERSION, "room": ROOM, "rounds": ROUNDS, "labels": labels, "slots": few, "recipe": values}

    def trial(scale: float) -> list[torch.Tensor]:
        make = method.prepare(replace(task, recipe=_trial(recipe, scale, own.ipc)))
        made = [make(Unit(label, tuple(range(few)))) for label in labels]
        found = list[torch.Tensor]()
        for label, one in zip(labels, made, strict=True):
            z = task.backbone.encode(one.images.to(task.backbone.device)) if one.latents is None else one.latents
            found.append(log_errors(task.backbone, z, names[label]).cpu())
        return found

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        region = largest(trial, tell=lambda done, total: watcher.work("trials of the scale", done, total))
        return {
            "field": field,
            "value": region.scale,
            "by": "trust region",
            "candidates": [f"{one:g}" for one in region.tried],
            "scores": {"change of the log error": [_number(one) for one in region.changes]},
            "limit": round(region.room, 4),
            "images": region.images,
            "seconds": round(time.perf_counter() - began, 1),
            "warning": _outside(region),
        }

    return key, make


def _trial(recipe: Resolved, scale: float, ipc: int) -> Resolved:
    """The resolved recipe of trial samples: with this scale, without a refinement, and with the run seed 0."""
    assert recipe.run is not None and recipe.run.guidance is not None
    guidance = recipe.run.guidance.model_copy(update={"scale": scale})
    refine = recipe.run.refine and recipe.run.refine.model_copy(update={"steps": 0})
    run = recipe.run.model_copy(update={"guidance": guidance, "refine": refine})
    return recipe.model_copy(update={"run": run, "ipc": ipc, "block": max(ipc, recipe.block), "seed": 0})


def _outside(region: Region) -> str | None:
    if region.scale > 0:
        return None
    return (
        f"Warning: even a push of {region.tried[0]:g} steps moves the denoiser's error on trial samples by more than "
        f"{region.room:.2f} in its log, so scale: auto is 0 and the images are sampled without guidance; give a --scale."
    )


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _told(choice: Mapping[str, Any], task: Task, *, unsaid: bool) -> str | None:
    """What was chosen, by what, out of what and at which cost, in a sentence. None if nothing was compared."""
    (name, row) = list(choice["scores"].items())[-1]
    if not choice["images"]:
        return None
    each = ", ".join(
        f"{shown(one)} {'–' if score is None else f'{score:.3f}'}"
        for one, score in zip(choice["candidates"], row, strict=True)
    )
    limit = f", at most {choice['limit']:.3f} allowed" if "limit" in choice else ""
    of = "trial samples" if choice["field"] == "guidance.scale" else "real training images"
    flag = {"guidance.layer": "--layer", "refine.layers": "--refine-layers"}.get(choice["field"])
    why = f"; the card of {task.backbone.card.name} names no layer; {flag} names another" if unsaid else ""
    return (
        f"{choice['field']} of {task.recipe.method} is {shown(str(choice['value']))}, chosen by the criterion {name} "
        f"({each}{limit}) in {choice['seconds']:.0f} s on {choice['images']} {of}{why}"
    )
