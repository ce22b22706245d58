"""What was chosen, and why, in words."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dap.base.parsing import counted
from dap.recipe import Recipe
from dap.verbs.planning.hour import in_words

if TYPE_CHECKING:
    from dap.verbs.picking.budget import Fitted
    from dap.verbs.picking.fitting import Looked

WIDTH = 100
"""Characters of a line."""

MANY = 50
"""Images per class from which picked real images were more accurate than `auto` on Fashion-MNIST; see docs/choosing.md."""


def wrapped(text: str) -> str:
    """A paragraph in lines of `WIDTH`. A long path is not broken."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def time_of(seconds: float) -> str:
    """A time in words, such as "about 5 min"."""
    return in_words(seconds) if seconds < 90 else f"about {in_words(seconds)}"


def nested(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of a recipe with more values, by dotted names."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for name, value in more.items():
        section, _, leaf = name.rpartition(".")
        if section:
            found[section] = {**(found.get(section) or {}), leaf: value}
        else:
            found[leaf] = value
    return found


def no_backbone(backbones: Sequence[Looked]) -> str:
    """Why no backbone is taken."""
    if backbones and backbones[-1].fits:
        return f"{backbones[-1].path} {backbones[-1].why}, but does not fit the budget"
    told = "; ".join(f"{one.path} {one.why}" for one in backbones[:3])
    more = f"; and {len(backbones) - 3} more do not either" if len(backbones) > 3 else ""
    return f"no diffusion model on this machine suits these images ({told}{more})"


def own_backbone(data: str) -> str:
    """How to get a backbone for a folder."""
    return (
        f"For auto and all other methods of a diffusion model, train one on your images (dap train-backbone --data "
        f"{shlex.quote(data)} --out DIR), then add --backbone DIR."
    )


def of_backbone(one: Looked, steps: Fitted | None, seconds: float, ipc: int) -> str:
    """The reason for `auto` on a backbone, and from `MANY` images per class on where it was not the best."""
    cut = f" with {steps.value} steps of refinement" if steps else ""
    return (
        f"Method auto{cut} on the diffusion model {one.path}: it {one.why}. The set will take {time_of(seconds)}, by a look at "
        "one pass. Another --method is always obeyed; dap methods lists them." + (_many(ipc) if ipc >= MANY else "")
    )


def _many(ipc: int) -> str:
    return (
        f" With {counted(ipc, 'image')} per class, real images may do better: on Fashion-MNIST, those that herding picks "
        "were more accurate "
        f"than auto from {MANY} per class on (docs/choosing.md). Where a set may hold real images, try --method herding."
    )


def of_dm(reason: str, iterations: int, seconds: float, budget: float | None, *, capped: bool, data: str) -> str:
    """The reason for `dm`."""
    longer = "" if budget is not None and capped else "A longer --budget (such as 1h) takes more iterations. "
    return (
        f"Method dm with {counted(iterations, 'iteration')}, which will take {time_of(seconds)} by a short time test: {reason}. "
        "Of the four methods without a diffusion model that were tried on one folder, dm had the highest mean accuracy "
        f"(docs/choosing.md). {longer}{own_backbone(data)}"
    )


def of_real(reason: str, method: str, why: str, *, data: str) -> str:
    """The reason for picking real images."""
    if method == "herding":
        head = "Method herding, which picks real images by the features of the classifier that you gave, in seconds"
    else:
        head = "Method random, which picks real images in seconds"
    why = f", and {why}" if why else ""
    better = "" if method == "herding" else "A longer --budget makes dm possible. "
    return f"{head}: {reason}{why}. {better}{own_backbone(data)}"


def left_out(
    backbones: Sequence[Looked], methods: Sequence[str], iterations: int | None, seconds: float, data: str
) -> str:
    """Why methods of a backbone are not compared, and what is."""
    dm = f"dm with {counted(iterations, 'iteration')}" if iterations else ""
    if dm and seconds:
        dm += f" ({time_of(seconds)} a set)"
    names = ", ".join(dm if name == "dm" else name for name in methods)
    more = (
        "" if "herding" in methods else "Herding and rded join with --classifier FILE, which dap train-teacher makes. "
    )
    return (
        f"Compared are {names}. Methods that sample a diffusion model are left out: {no_backbone(backbones)}. {more}"
        f"{own_backbone(data)} --methods names what is compared."
    )


def on_budget(recipe: Recipe, found: Fitted | None, budget: float) -> str:
    """What a budget settled of a method that the user named."""
    if found is None:
        return ""
    name = found.field.rpartition(".")[2] if found.field.startswith("options.") else found.field.replace(".", " ")
    if not found.enough:
        return (
            f"{recipe.method} does not fit {time_of(budget)}: with {found.value:,} of {name}, the least that makes sense, it "
            f"takes {time_of(found.seconds)}. It is made with these all the same."
        )
    how = "as it is without a budget" if found.value >= found.usual else f"of {found.usual:,} without a budget"
    return f"{recipe.method} with {found.value:,} of {name}, {how}: {time_of(found.seconds)} by a short time test."


def again(choices: Sequence[Mapping[str, Any]], budget: float | None) -> str:
    """What was chosen when the set began."""
    told = ", ".join(f"{one['field'].rpartition('.')[2]} {_plain(one['value'])}" for one in choices)
    limit = choices[0].get("limit")
    other = budget is not None and limit is not None and abs(budget - limit) > 0.5
    more = "; another --budget needs another --out" if other else ""
    return f"As chosen when this set began: {told}{more}."


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
