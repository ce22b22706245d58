"""Which methods are compared where nobody names them: those that can make sets of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dap.base.files import dump, write_atomically
from dap.base.watch import Watcher
from dap.data.real.finding.made import check_no_other
from dap.data.real.sources import EMBEDDED
from dap.data.sets.notes import whole_note
from dap.recipe import BackboneChoice, Recipe
from dap.verbs.distill import open_workshop
from dap.verbs.judges import judging_plan
from dap.verbs.options import Judging, Machine
from dap.verbs.picking.budget import rounded
from dap.verbs.picking.deciding import BATCH, ENOUGH, LEAST, USUAL, check_enough, rate_of_dm
from dap.verbs.picking.fitting import looked_at
from dap.verbs.picking.picked import BY, OPEN
from dap.verbs.picking.words import left_out, wrapped
from dap.verbs.settling import NOTE

METHODS = ("random", "vanilla", "dap", "auto")
"""The methods that are compared on a backbone."""

OPTIONS = {"dm.iterations": "options.iterations", "dm.real_batch": "options.real_batch"}
"""Options of `dap compare`, and the fields of a set's recipe that they are."""


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Attributes:
        base: the nested values of the recipe that all cells share.
        methods: the names of the methods.
        options: the methods' own options, "METHOD.NAME" -> value.
    """

    base: Mapping[str, Any]
    methods: tuple[str, ...] = METHODS
    options: Mapping[str, Any] = field(default_factory=dict)


def methods_for(
    base: Mapping[str, Any],
    ipcs: tuple[int, ...],
    out: Path,
    *,
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    keep: bool = True,
) -> Compared:
    """The methods that suit the images of a recipe. What was chosen before for the folder `out` stays.

    Args:
        base: the nested values of a recipe.
        ipcs: numbers of images per class. (): that of the recipe.
        out: the folder of the comparison.
        judging: how the sets will be judged. What is wrong with it is told before the images are read.
        machine: where the work runs.
        watcher: is told what is left out, and why.
        keep: whether the choice is kept in `out`.

    Raises:
        DapError: the images cannot be read, a class has too few, the folder is that of a set, or the protocol or a network is
            unknown.
    """
    check_no_other(out)
    recipe = Recipe.parse(base)
    parts = [part for part in OPEN if part not in ("method", "options", "captions")]
    if recipe.data.path == EMBEDDED or any(base.get(part) for part in parts):
        return Compared(base)
    workshop = open_workshop(machine, watcher=watcher)
    judging_plan(judging, machine, workshop)
    backbones = looked_at(recipe.data, workshop)
    if backbones and backbones[-1].fits:
        path = backbones[-1].path
        return Compared(base if path == BackboneChoice().path else {**base, "backbone": {"path": path}})
    check_enough(workshop.whole(recipe.data), max(ipcs or (recipe.ipc,)))
    earlier = {one["field"]: one["value"] for one in whole_note(out, NOTE).get("choices", [])} if out.is_dir() else {}
    took = 0.0
    if not earlier:
        largest = recipe.model_copy(update={"ipc": max(ipcs or (recipe.ipc,))})
        rate, _ = rate_of_dm(largest, workshop)
        iterations = min(rounded(rate.pieces(USUAL)), ENOUGH) if rate else 0
        took = rate.seconds(iterations) if rate else 0.0
        if iterations >= LEAST:
            earlier = {"options.iterations": iterations, "options.real_batch": BATCH}
        if keep and earlier:
            line = {"by": BY, "images": 0, "seconds": 0.0, "key": "compare", "scores": {"seconds": [round(took, 1)]}}
            choices = [
                {**line, "field": name, "value": value, "candidates": [str(value)]} for name, value in earlier.items()
            ]
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / NOTE, dump({"choices": choices}))
    options = {option: int(earlier[name]) for option, name in OPTIONS.items() if name in earlier}
    classical = ("random", *(("herding", "rded") if recipe.classifier else ()), *(("dm",) if options else ()))
    watcher.note(wrapped(left_out(backbones, classical, options.get("dm.iterations"), took, recipe.data.path)))
    return Compared(base, classical, options)
