"""`--dry-run` of the verbs that judge: what sets and trainings will take together. Nothing is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dap.base.files import in_use
from dap.base.watch import Watcher
from dap.data.real.counts import total_of
from dap.evaluation.judge import check_links, images_key
from dap.evaluation.plan import Loaded
from dap.evaluation.report.records import load_set
from dap.recipe import Recipe
from dap.verbs.cells import Workshops, check_data, check_finished, draws
from dap.verbs.distill import open_workshop
from dap.verbs.evaluate import open_set, readied
from dap.verbs.jobs import Grid
from dap.verbs.judges import loader
from dap.verbs.options import Judging, Machine, permitted
from dap.verbs.picking.budget import seconds_of
from dap.verbs.picking.picked import check_given, picked
from dap.verbs.placing import check_results, places, real_of
from dap.verbs.planning.estimate import Estimate, checked, of_set, of_trainings
from dap.verbs.planning.status import images_there


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
    check_given(Path(out), recipe, workshop, seconds)
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
    check_data(cells.cells, loaded_for, cells.out, fetch=False)
    for name, recipe in cells.cells:
        for folder in (name, *(drawn for _, drawn in draws(name, recipe, cells.subsample))):
            check_finished(cells.out / folder, loaded_for(recipe.data), fetch=False)
    found, known = list[Estimate](), dict[Any, Any]()
    with workshops.used():
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
                recorded = [_recorded([folder]) for folder in folders]
                found.append(_trainings(f"{called}, trained on {ipc} a class", loaded, recorded, ipc, known))
    return found


@permitted
def planned_judging(
    sets: Sequence[Path],
    *,
    judging: Judging,
    machine: Machine,
    data: str | None = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    out: Path | None = None,
    watcher: Watcher = Watcher(),
) -> list[Estimate]:
    """What the trainings of `dap.evaluate` with these arguments will take. Trainings that are recorded do not count.

    Raises:
        DapError: a set could not be judged; the message is that of `dap.evaluate`.
    """
    workshop = open_workshop(machine, watcher=watcher)
    opened = [open_set(path, classes) for path in sets]
    ready = readied(opened, loader(judging, machine, workshop), data, max_bad_fraction, split, fetch=False)
    check_results(opened, out, real_of(data, split))
    found = list[Estimate]()
    for path, made, loaded, results in zip(sets, opened, ready, places(opened, out), strict=True):
        check_links(results)
        ipc, judged = max(1, len(made) // len(made.class_names)), images_key(made, loaded)
        found.append(_trainings(str(path), loaded, [_recorded([results, made.path], judged)], ipc))
    return found


def _alike(cells: Sequence[tuple[Path, Recipe]], name: str, workshops: Workshops, watcher: Watcher) -> Estimate:
    """What sets that differ in their seed alone will take: a time test of the first that is not done tells it of all."""
    each = list[Estimate]()
    known: Estimate | None = None
    for path, recipe in cells:
        if known is None or not known.left:
            known = of_set(recipe, path, workshops.of(recipe), watcher, name)
            each.append(known)
            continue
        if in_use(path) and not known.downloads:
            checked(recipe, path, workshops.of(recipe), watcher)
        there = len(images_there(load_set(path))) if (path / "classes.json").is_file() else 0
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


Trained = set[tuple[str, str, int | None]]
"""The protocol, network and seed of each training on one set that is recorded. A file of others may say no seed."""


def _recorded(folders: Sequence[Path], judged: str | None = None) -> Trained:
    """The trainings that are recorded in these folders; with `judged` those alone that are of images of this hash."""
    trials = [
        one
        for folder in dict.fromkeys(folders)
        if (folder / "classes.json").is_file()
        for one in load_set(folder).trials
    ]
    return {(one["protocol"], one["network"], one.get("seed")) for one in trials if judged in (None, one.get("judged"))}


def _trainings(
    name: str, loaded: Loaded, recorded: Sequence[Trained], ipc: int, known: dict[Any, Any] | None = None
) -> Estimate:
    """What the trainings on sets of one size will take, without those that are recorded for each set."""
    plan = loaded.plan
    protocol = plan.named(plan.protocol.name)
    left = {
        net: sum((protocol, net, seed) not in done for done in recorded for seed in plan.seeds)
        for net in plan.all_networks
    }
    classes = len(loaded.test.class_names)
    found = of_trainings(name, plan.protocol, left, (ipc * classes, total_of(loaded.test), classes), plan.device, known)
    return replace(found, pieces=len(recorded) * len(left) * len(plan.seeds))
