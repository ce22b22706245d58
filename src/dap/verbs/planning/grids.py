"""`--dry-run` of the verbs that judge: what sets and trainings will take together. Nothing is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dap.base.watch import Watcher
from dap.data.real.counts import total_of
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.plan import Loaded
from dap.evaluation.report.records import load_set
from dap.recipe import Recipe
from dap.verbs.cells import Workshops
from dap.verbs.distill import open_workshop
from dap.verbs.evaluate import data_of
from dap.verbs.jobs import Grid
from dap.verbs.judges import loader
from dap.verbs.options import Judging, Machine, permitted
from dap.verbs.picking.budget import seconds_of
from dap.verbs.picking.picked import picked
from dap.verbs.planning.estimate import Estimate, of_set, of_trainings


@permitted
def planned_set(
    recipe: Recipe,
    out: Path,
    *,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    budget: str | float | None = None,
) -> list[Estimate]:
    """What `dap.distill` would take with these arguments. See `estimate.of_set`."""
    seconds = None if budget is None else seconds_of(budget)
    workshop = open_workshop(machine, watcher=watcher)
    pick = picked(recipe, workshop, Path(out), watcher, seconds, keep=False)
    return [of_set(pick.recipe, Path(out), workshop, watcher)]


@permitted
def planned_grid(cells: Grid, *, machine: Machine, watcher: Watcher = Watcher()) -> list[Estimate]:
    """What the sets of a grid and the trainings on them will take, a line for each kind of set. Draws of `--subsample`
    count as sets, whose trainings take as long as those of other sets of their size.

    Args:
        cells: the grid.
        machine: the grid's, which decides what code may run.
        watcher: is told of trials.

    Raises:
        DapError: a set could not be made or judged.
    """
    workshops = Workshops(cells, watcher)
    loaded_for = loader(cells.judging, machine, workshops.main)
    found, known = list[Estimate](), dict[Any, Any]()
    for kind in dict.fromkeys(Path(name).parent for name, _ in cells.cells):
        mine = [(name, recipe) for name, recipe in cells.cells if Path(name).parent == kind]
        called = unquote(str(kind))
        one = _alike([(cells.out / name, recipe) for name, recipe in mine], called, workshops, watcher)
        found.append(one)
        recipe = mine[0][1]
        loaded = loaded_for(recipe.data)
        ipcs = {recipe.ipc: [cells.out / name for name, _ in mine]}
        for n in (n for n in cells.subsample if n < recipe.ipc):
            ipcs[n] = [cells.out / f"{kind}_drawn={n}" / Path(name).name for name, _ in mine]
        for ipc, folders in ipcs.items():
            found.append(_trainings(f"{called}, trained on {ipc} a class", loaded, folders, ipc, known))
    return found


@permitted
def planned_judging(
    sets: Sequence[Path], *, judging: Judging, machine: Machine, data: str | None = None, watcher: Watcher = Watcher()
) -> list[Estimate]:
    """What the trainings of `dap evaluate` on these sets will take. Trainings that are recorded do not count."""
    workshop = open_workshop(machine, watcher=watcher)
    loaded_for, found = loader(judging, machine, workshop), list[Estimate]()
    for path in sets:
        made = DistilledSet.from_folder(path)
        loaded = loaded_for(data_of(made, data), False)
        ipc = max(1, len(made) // len(made.class_names))
        found.append(_trainings(str(path), loaded, [path], ipc))
    return found


def _alike(cells: Sequence[tuple[Path, Recipe]], name: str, workshops: Workshops, watcher: Watcher) -> Estimate:
    """What sets that differ in their seed alone will take: a trial of the first that is not done tells it of all."""
    each = list[Estimate]()
    known: Estimate | None = None
    for path, recipe in cells:
        if known is None or not known.left:
            known = of_set(recipe, path, workshops.of(recipe), watcher, name)
            each.append(known)
            continue
        there = len(load_set(path).images) if (path / "classes.json").is_file() else 0
        left = max(known.pieces - there, 0)
        part = left / known.left
        seconds = None if known.seconds is None else known.seconds * part
        each.append(replace(known, left=left, seconds=seconds, trial=0.0, disk=round(known.disk * part), units=0))
    sums: dict[str, Any] = {key: sum(getattr(one, key) for one in each) for key in ("pieces", "left", "disk", "trial")}
    seconds = [one.seconds for one in each if one.seconds is not None]
    total = sum(seconds) if len(seconds) == len(each) else None
    memory = max((one.memory_gb for one in each if one.memory_gb is not None), default=None)
    sets = f"{name}: {len(each)} sets" if len(each) > 1 else name
    return replace(each[-1], name=sets, seconds=total, units=0, memory_gb=memory, **sums)


def _trainings(
    name: str, loaded: Loaded, folders: Sequence[Path], ipc: int, known: dict[Any, Any] | None = None
) -> Estimate:
    """What the trainings on sets of one size will take."""
    plan = loaded.plan
    left = dict.fromkeys(plan.all_networks, 0)
    for folder in folders:
        trials = load_set(folder).trials if (folder / "classes.json").is_file() else ()
        done = {(one["protocol"], one["network"], one["seed"]) for one in trials}
        for net in left:
            left[net] += sum((plan.protocol.name, net, seed) not in done for seed in plan.seeds)
    classes = len(loaded.test.class_names)
    found = of_trainings(name, plan.protocol, left, (ipc * classes, total_of(loaded.test), classes), plan.device, known)
    return replace(found, pieces=len(folders) * len(left) * len(plan.seeds))
