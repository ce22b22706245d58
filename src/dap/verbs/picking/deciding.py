"""Which method suits a folder: one of a backbone that knows it, else the best of those that need none and fit the time.

The numbers behind the order are in docs/choosing.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.data.real.base import Source
from dap.data.real.counts import counts_of, total_of
from dap.data.real.stored.budget import memory_budget
from dap.recipe import BackboneChoice, Recipe
from dap.verbs.picking import words
from dap.verbs.picking.budget import Fitted, fitted, rounded
from dap.verbs.picking.fitting import Looked, looked_at
from dap.verbs.planning.rates import Rate, of_iterations
from dap.verbs.planning.roughly import seconds_of_set
from dap.workshop import Workshop

USUAL = 600.0
"""Seconds of a set where no budget is given."""

LEAST, ENOUGH = 10, 100
"""Iterations of `dm`: fewer than the first were not tried; more than the second are taken only if a budget asks for them.
Chosen on validation images, see docs/choosing.md."""

PAPER = 20_000
"""The iterations of the paper of `dm`, which no budget exceeds."""

BATCH = 64
"""Real images of each class in an iteration of `dm`. The paper takes 256, which costs more; see docs/choosing.md."""

MEMORY = 0.5
"""The part of the memory for images that `dm`, which keeps all of them, may take."""


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        values: the values of fields of the recipe by dotted name, such as "method" and "options.iterations".
        seconds: the methods that were considered, and what each takes; None where it cannot be used or was not measured. For a
            field other than the method, what its value takes.
        budget: the seconds that the set may take; 0 where nothing bounds it.
        told: a paragraph with the reason, the time and what gives more.
    """

    values: Mapping[str, Any]
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    budget: float = 0.0
    told: str = ""


def decided(recipe: Recipe, workshop: Workshop, budget: float | None) -> Decision:
    """The method for a recipe that names none.

    Args:
        recipe: the recipe.
        workshop: loads the data and backbones.
        budget: the seconds that the set may take. None: see `USUAL`.

    Raises:
        DapError: the data cannot be read, or a class has too few images.
    """
    whole = workshop.whole(recipe.data)
    backbones = looked_at(recipe.data, workshop)
    if backbones and backbones[-1].fits:
        found = _of_backbone(recipe, workshop, backbones[-1], budget)
        if found is not None:
            return found
    check_enough(whole, recipe.ipc)
    return without_backbone(recipe, workshop, budget, backbones)


def check_enough(source: Source, ipc: int) -> None:
    """Check that every class has as many images as the set is to have.

    Raises:
        DapError: a class has fewer. The message says how many the set may have.
    """
    counts = dict(zip(source.class_names, counts_of(source), strict=True))
    name = min(counts, key=lambda one: counts[one])
    if counts[name] < ipc:
        raise DapError(
            f"Class {name!r} has {counted(counts[name], 'image')}, and a set of {ipc} per class needs as many of each "
            f"class. Give --ipc {counts[name]} or less, or leave the class out with --classes."
        )


def _of_backbone(recipe: Recipe, workshop: Workshop, one: Looked, budget: float | None) -> Decision | None:
    """The method `auto` on a backbone that suits the images; None where it does not fit the budget."""
    values: dict[str, Any] = {"method": "auto"}
    if one.path != BackboneChoice().path:
        values["backbone.path"] = one.path
    chosen = Recipe.parse(words.nested(recipe.model_dump(exclude_unset=True), values))
    steps: Fitted | None = None
    if budget is not None:
        steps = fitted(chosen, workshop, budget)
        if steps is not None and not steps.enough:
            return None
        if steps is not None and steps.value < steps.usual:
            values[steps.field] = steps.value
    seconds = steps.seconds if steps else seconds_of_set(workshop.task(chosen)[1])
    return Decision(values, {"auto": seconds}, budget or 0.0, words.of_backbone(one, steps, seconds, recipe.ipc))


def without_backbone(
    recipe: Recipe, workshop: Workshop, budget: float | None, backbones: list[Looked] | None = None
) -> Decision:
    """The best method that needs no backbone, within the time.

    Args:
        recipe, workshop, budget: as for `decided`.
        backbones: those that were looked at, for the reason.
    """
    seconds = budget or USUAL
    reason = words.no_backbone(backbones or [])
    rate, why = rate_of_dm(recipe, workshop)
    most = PAPER if budget is not None else ENOUGH
    iterations = min(rounded(rate.pieces(seconds)), most) if rate else 0
    picks = "herding" if recipe.classifier else "random"
    if rate is not None and iterations >= LEAST and not recipe.classifier:
        values: dict[str, Any] = {"method": "dm", "options.iterations": iterations, "options.real_batch": BATCH}
        took = rate.seconds(iterations)
        considered = {"dm": took, str(iterations): took, "random": None}
        told = words.of_dm(reason, iterations, took, budget, capped=iterations == most, data=recipe.data.path)
        return Decision(values, considered, seconds, told)
    if rate is not None and not recipe.classifier:
        least = words.time_of(rate.seconds(LEAST))
        why = f"dm would need {least} for {LEAST} iterations, and fewer were not tried"
    told = words.of_real(reason, picks, why, data=recipe.data.path)
    return Decision({"method": picks}, {picks: None}, seconds, told)


def rate_of_dm(recipe: Recipe, workshop: Workshop) -> tuple[Rate | None, str]:
    """The rate of `dm` on these images; or None, and why it cannot be used."""
    whole = workshop.whole(recipe.data)
    side = recipe.data.size or whole.side() or 0
    if total_of(whole) * 3 * side * side > MEMORY * memory_budget():
        return None, "dm keeps all images in memory, which is too small for them"
    values = recipe.model_dump(exclude_unset=True)
    values |= {"method": "dm", "options": {"iterations": LEAST, "real_batch": BATCH}}
    values.pop("classifier", None)
    return of_iterations(*workshop.task(Recipe.parse(values))), ""
