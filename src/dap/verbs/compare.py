"""Many sets and their judgement: a grid of recipes, each cell of which resumes by itself."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dap.base.errors import DapError
from dap.base.files import check_folder
from dap.base.watch import Watcher
from dap.base.workers import share
from dap.cost import NOTE as COST
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.evaluation.judge import Judge
from dap.evaluation.training.trials import Trial
from dap.methods import find
from dap.recipe import Data, Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop


def grid(base: Mapping[str, Any], vary: Mapping[str, Sequence[Any]], sets: int) -> Iterator[tuple[str, Recipe]]:
    """A folder name and a recipe for every combination of the varied fields and `sets` run seeds.

    Args:
        base: values of a recipe, nested.
        vary: dotted field ("guidance.scale", "method") -> its values.
        sets: how many run seeds, from the base's seed on.
    """
    first = Recipe.parse(base).seed
    if "seed" in vary:
        raise DapError("The seed is varied by --sets, from --seed on; leave it out of --vary.")
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in chosen.items()) or "set"
        for seed in range(first, first + sets):
            nested: dict[str, Any] = {
                k: dict(v) if isinstance(v, Mapping) else v for k, v in base.items() if v is not None
            }
            for field, value in {**chosen, "seed": seed}.items():
                *parents, leaf = field.split(".")
                inside = nested
                for parent in parents:
                    inside = inside.setdefault(parent, {})
                inside[leaf] = value
            yield f"{name}/seed{seed}", Recipe.parse(nested)


def comparison(
    base: Mapping[str, Any],
    methods: Sequence[str],
    ipcs: Sequence[int],
    sets: int,
    options: Mapping[str, Any] | None = None,
) -> list[tuple[str, Recipe]]:
    """A folder name and a recipe for every method, ipc and set; each method gets what is its own and nothing else.

    Args:
        base: values of a recipe, nested. DAP's guidance goes to methods that have it, the classifier and the captions to those
            that need them.
        methods: names, or NAME@BACKBONE for another backbone than the base's.
        ipcs: images per class; () for the base's.
        sets: how many run seeds, from the base's seed on.
        options: "METHOD.NAME" -> value, the methods' own options.

    Raises:
        DapError: an option of a method that is not compared, or an unknown method.
    """
    given: dict[str, dict[str, Any]] = {}
    for name, value in (options or {}).items():
        owner, _, field = name.rpartition(".")
        if owner not in methods:
            raise DapError(
                f"--option takes METHOD.NAME=VALUE here, with a method of {', '.join(methods)}; not {name!r}."
            )
        given.setdefault(owner, {})[field] = value
    if base.get("options"):
        raise DapError("Options of a recipe belong to one method; here give them as --option METHOD.NAME=VALUE.")
    cells = []
    for method in methods:
        name, _, backbone = method.partition("@")
        made = find(name)
        apart = ("guidance", "own_guidance", "classifier", "captions")
        mine = {key: value for key, value in base.items() if key not in apart}
        mine |= {"guidance": base["guidance"]} if made.guidance is not None and base.get("guidance") else {}
        mine |= {"own_guidance": base["own_guidance"]} if made.steered and base.get("own_guidance") else {}
        mine |= {need: base[need] for need in ("classifier", "captions") if need in made.needs and base.get(need)}
        mine |= {"method": name, "options": given.get(method, {})}
        if backbone:
            mine["backbone"] = {**dict(base.get("backbone") or {}), "path": backbone}
        for ipc in ipcs or (Recipe.parse(base).ipc,):
            folder = f"method={quote(method, safe='@:')}_ipc={ipc}"
            cells += [(f"{folder}/{seed}", recipe) for seed, recipe in grid({**mine, "ipc": ipc}, {}, sets)]
    return [(name.replace("/set/", "/"), recipe) for name, recipe in cells]


def check(
    cells: Sequence[tuple[str, Recipe]],
    workshop: Workshop,
    judge_for: Callable[[Data], Judge] | None = None,
    out: Path | None = None,
) -> None:
    """Whether every cell can be made and judged, found out before the first one is; what is cheap to know first.

    Args:
        cells: as of `sweep`.
        workshop: likewise.
        judge_for: likewise; None: the sets are not judged.
        out: likewise; None: the folders are not looked at.

    Raises:
        DapError: one cannot, with what is wrong with it.
    """
    if out is not None:
        check_folder(out)
    for _, recipe in cells:
        workshop.asked(recipe)
    if judge_for is not None:
        for data in dict.fromkeys(recipe.data for _, recipe in cells):
            judge_for(data).check()
    for name, recipe in cells:
        method, task = workshop.task(recipe)
        method.prepare(task)
        if out is not None:
            DistilledSet.check_begun(out / name, task.source.class_names, task.recipe.values(), task.store.inputs)


def sweep(
    cells: Sequence[tuple[str, Recipe]],
    out: Path,
    workshop: Workshop,
    judge_for: Callable[[Data], Judge],
    *,
    watcher: Watcher | None = None,
    on_trial: Callable[[str, Trial], None] | None = None,
    on_epoch: Callable[[int, int, int], None] | None = None,
    command: str | None = None,
    subsample: Sequence[int] = (),
) -> list[Path]:
    """Distil and judge every cell; finished ones are kept, so the same call goes on after an interruption.

    Several processes may run the same call side by side, on one machine or on several that share the folder: each takes the
    next cell that nobody holds, and one left behind by a killed process is taken up by another.

    Args:
        cells: folder names and recipes, see `grid` and `comparison`.
        out: where the folders go.
        workshop: loaded backbones and data.
        judge_for: the judge of sets made from these data.
        watcher: is told of the images of each cell, and of long work before the first of them.
        on_trial: told of every training.
        on_epoch: told of every epoch of a training.
        command: the shell command to record.
        subsample: from each set also random draws of so many images a class, where it has more, are judged.

    Returns:
        The folders of all cells, and of what was drawn from them.

    Raises:
        DapError: every recipe is checked before the first one is run. A cell that fails later does not stop the others; the
            error then names it.
    """
    check(cells, workshop, judge_for, out)

    def do(name: str, recipe: Recipe) -> None:
        made = distill(recipe, out / name, workshop=workshop, watcher=watcher, name=name, command=command)
        told = None if on_trial is None else functools.partial(on_trial, name)
        judge = judge_for(workshop.task(recipe)[1].recipe.data)
        judge(made, on_trial=told, on_epoch=on_epoch)
        for n, folder in draws(name, recipe, subsample):
            if not (out / folder).is_dir():
                import_set(out / name, out / folder, ipc=n, pick="random", seed=recipe.seed)
            drawn = DistilledSet.open(out / folder)
            if drawn.noted(COST) is None:  # a draw costs what it was drawn from
                drawn.note(COST, made.noted(COST))
            told = None if on_trial is None else functools.partial(on_trial, folder)
            judge(drawn, on_trial=told, on_epoch=on_epoch)

    share([(name, functools.partial(do, name, recipe)) for name, recipe in cells], out)
    return folders(cells, out, subsample)


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """Sizes and folder names of what is drawn from a cell."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[tuple[str, Recipe]], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of what is drawn from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
