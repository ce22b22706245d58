"""A budget of time: how it is written, and a recipe whose work is cut until it fits."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import brief
from dap.methods.base import Method, Task, plan
from dap.methods.matching.base import Matching
from dap.recipe import Recipe
from dap.verbs.planning.rates import Rate, of_crops, of_iterations
from dap.verbs.planning.trials import Trials
from dap.workshop import Workshop

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
"""The seconds of each unit of time."""

LONGEST = 365 * 86400
"""The longest budget, in seconds."""


def seconds_of(budget: str | float) -> float:
    """The seconds of a budget such as "90s", "10m", "1h" or "1.5h"; a number is one of seconds.

    Raises:
        DapError: it is no time above 0, or one of more than a year.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|min|h|d)?", str(budget).strip())
    seconds = float(found[1]) * UNITS[found[2] or "s"] if found else 0.0
    if not found or (isinstance(budget, str) and not found[2]) or not 0 < seconds <= LONGEST:
        raise DapError(f"--budget takes a time such as 90s, 10m or 1h, not {brief(str(budget))}.")
    return seconds


def written(seconds: float) -> str:
    """A number of seconds as a budget is written: "90s", "10m", "1h"."""
    for unit in ("h", "m"):
        if seconds >= UNITS[unit] and seconds % UNITS[unit] == 0:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{seconds:g}s"


@dataclass(frozen=True)
class Fitted:
    """What a budget settles.

    Attributes:
        field: the dotted name of the field of the recipe.
        value: its value, at most that of the recipe.
        usual: the value that the recipe has without a budget.
        seconds: what the whole set takes with this value, by the trial.
        enough: whether the set fits the budget. If not, the value is the least that makes sense.
    """

    field: str
    value: int
    usual: int
    seconds: float
    enough: bool


def fitted(recipe: Recipe, workshop: Workshop, seconds: float) -> Fitted | None:
    """How much of a method's work fits a budget, by a time test on this machine.

    Args:
        recipe: the recipe, without choices that are left to `auto`.
        workshop: loads what the recipe names.
        seconds: the budget.

    Returns:
        What the budget settles; None where the user has set the only field that it could settle.

    Raises:
        DapError: no budget can be kept for the method. The message says what else there is.
    """
    method, task = workshop.task(recipe)
    if method.bounded is None or ("training" in method.needs and not isinstance(method, Matching)):
        if method.needs <= {"classifier"}:
            return None  # real images are picked in one pass over them
        raise DapError(
            f"No budget can be kept for {recipe.method}: what it trains before its first image has no trial. Leave out --budget, "
            f"and give less work with --option; dap methods {recipe.method} lists the options."
        )
    field, least = method.bounded
    if _is_given(recipe, field):
        return None
    usual, rate = _usual(task, field), rate_of(method, task, field)
    least = min(least, usual)
    value = min(max(rate.pieces(seconds), least), usual)
    return Fitted(field, value, usual, rate.seconds(value), rate.seconds(value) <= seconds)


def rate_of(method: Method, task: Task, field: str) -> Rate:
    """The seconds of a whole set, as a line in the field that a budget settles."""
    if isinstance(method, Matching):
        return of_iterations(method, task)
    if field == "options.images":
        return of_crops(method, task)
    units = plan(len(task.source.class_names), task.recipe.ipc, task.recipe.block)
    with tempfile.TemporaryDirectory(prefix="dap-trial-") as folder:
        found = Trials(method, task, Path(folder)).paces(units)
    return found.line("refining" if field == "refine.steps" else "sampling")


def with_value(recipe: Recipe, field: str, value: int) -> Recipe:
    """The recipe with another value of a field, such as "options.iterations"."""
    values = recipe.model_dump(exclude_unset=True)
    section, _, name = field.partition(".")
    inside: Mapping[str, Any] = values.get(section) or {}
    return Recipe.parse({**values, section: {**inside, name: value}})


def _is_given(recipe: Recipe, field: str) -> bool:
    section, _, name = field.partition(".")
    inside = recipe.model_dump(exclude_unset=True).get(section) or {}
    return inside.get(name) is not None


def _usual(task: Task, field: str) -> int:
    """The value of a field in the resolved recipe."""
    section, _, name = field.partition(".")
    if section == "options":
        return int(getattr(task.options, name))
    return int(getattr(getattr(task.recipe, section), name))


def rounded(value: int) -> int:
    """A number of steps with two digits that count, never more: a measured rate has no more."""
    if value < 100:
        return value
    digits = 10 ** (int(math.log10(value)) - 1)
    return value // digits * digits
