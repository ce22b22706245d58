"""The cells of a grid. Each cell makes one distilled set and judges it.

All cells are checked before the first cell is run. A cell goes on where it stopped, so the same grid goes on after an
interruption. Several processes may work on the same grid side by side, on one machine or on several machines that share
the folder. Each process takes the next cell that no other process holds. If a process is killed, another one takes up
its cell.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch

from dap.base.claims import CLAIMS, share
from dap.base.errors import DapError
from dap.base.files import check_folder
from dap.base.watch import Watcher
from dap.base.workers import run_workers
from dap.data.sets.distilled import DistilledSet
from dap.engines.on_ray import check_installed, run_workers_on
from dap.engines.ranks import device_for, rank_of
from dap.evaluation.failures import Failures, TrainingsFailed
from dap.evaluation.judge import check as check_judging
from dap.evaluation.judge import check_batches, check_ready, check_weights, judge
from dap.evaluation.plan import Loaded
from dap.recipe import Data, Recipe
from dap.verbs.distill import cluster_of, distill, give_back, open_workshop
from dap.verbs.drawing import draw
from dap.verbs.jobs import Cell, Grid, read_job, written
from dap.verbs.judges import LoadedFor, loader, naming
from dap.verbs.options import Engine, kind_of
from dap.verbs.picking.picked import check_given
from dap.verbs.planning.status import write_plan
from dap.verbs.report import Results, Unfinished, write_page
from dap.verbs.settling import settled
from dap.verbs.understood import check_out
from dap.workshop import Workshop


def run_grid(cells: Grid, title: str, watcher: Watcher = Watcher(), engine: Engine = Engine()) -> Results:
    """Make and judge every cell of a grid, and write the page. Shards write the same page one after the other.

    Raises:
        Unfinished: some cells failed. The other cells are done, and the error has their results.
        DapError: a recipe is wrong. Every recipe is checked before the first one is run.
    """
    failed, kind = None, kind_of(engine)
    if kind == "ray":
        check_installed()
    try:
        if kind == "workers":
            workers, spread = engine.workers or 1, cells.machine.device in ("auto", "cuda")
            _run_in_workers(
                cells,
                watcher,
                lambda arguments, count: run_workers(
                    arguments, workers, spread=spread, meanwhile=count, tell=watcher.note
                ),
            )
        elif kind == "shard":
            rank = rank_of(engine.shard)
            device = device_for(cells.machine.device, rank, torch.cuda.device_count())
            work(
                replace(cells, machine=replace(cells.machine, device=device)),
                watcher,
                first=rank.first(len(cells.cells)),
            )
        elif kind == "ray":
            cluster = cluster_of(engine, cells.machine)
            _run_in_workers(
                cells,
                watcher,
                lambda arguments, count: run_workers_on(cluster, arguments, len(cells.cells), watcher, count),
            )
        else:
            work(cells, watcher)
    except CellsFailed as error:  # the page on the other cells is still written
        failed = error
    made = [path for path in folders(cells.cells, cells.out, cells.subsample) if (path / "classes.json").is_file()]
    results = Results(tuple(made), write_page(made, cells.out, title)) if made else None
    if failed is not None or results is None:
        raise Unfinished(str(failed or f"No set in {cells.out}."), results) from failed
    return results


class Workshops:
    """The workshops of a grid: one for methods given by name, and one for each method that is an object.

    The workshops share the data, backbones and classifiers that they load.

    Args:
        cells: the grid.
        watcher: is told what was understood of the data. None: nobody is told.
    """

    def __init__(self, cells: Grid, watcher: Watcher | None = None) -> None:
        self.main = open_workshop(cells.machine, watcher=watcher)
        self._own = {name: self.main.with_method(method) for name, method in cells.objects.items()}

    def of(self, recipe: Recipe) -> Workshop:
        """The workshop for a recipe."""
        return self._own.get(recipe.method, self.main)

    @contextmanager
    def used(self) -> Iterator[None]:
        """A block in which the methods are at work; see `Objects.used`."""
        with ExitStack() as stack:
            for workshop in self._own.values():
                stack.enter_context(workshop.objects.used())
            yield


class CellsFailed(DapError):
    """Cells of a grid failed after all of them were checked."""


def work(cells: Grid, watcher: Watcher = Watcher(), done: Path | None = None, first: int = 0) -> None:
    """Do the cells of a grid that no other process holds, until all cells are done. Each worker runs this function.

    Args:
        cells: the grid.
        watcher: is told of images, trainings and cells.
        done: a folder that gets one empty file for every finished cell. None: no such files are written.
        first: the cell with which this process begins.

    Raises:
        CellsFailed: some cells failed. The other cells are done.
        DapError: a cell cannot be made or judged. This is raised before the first cell is made.
    """
    workshops = Workshops(cells, watcher if done is None else None)  # the parent of workers has told it
    with workshops.used():
        loaded_for, out, finished = loader(cells.judging, cells.machine, workshops.main), cells.out, set[str]()
        check(cells.cells, workshops.of, loaded_for, out, cells.subsample, watcher)

        def do(name: str, recipe: Recipe) -> None:
            workshop = workshops.of(recipe)
            how = {"workshop": workshop, "watcher": watcher, "name": name, "command": cells.command, "grid": out}
            made = distill(recipe, out / name, **how)
            chosen = settled(recipe, workshop, out / name, Watcher(), out).recipe
            loaded = loaded_for(workshop.task(chosen)[1].recipe.data)
            failures, drawn = Failures(), draws(name, recipe, cells.subsample)
            smaller = ((draw(made, out / folder, n, recipe.seed, watcher), folder) for n, folder in drawn)
            for one, called in itertools.chain([(made, name)], smaller):
                check_ready(one, loaded)
                with failures.noted(kind=TrainingsFailed):
                    judge(one, loaded, watcher, called)
            failures.check()
            finished.add(name)
            watcher.cells(len(finished), len(cells.cells))
            if done is not None:
                (done / quote(name, safe="")).touch()

        mine = cells.cells
        watcher.cells(0, len(mine))
        try:
            share([(name, functools.partial(do, name, recipe)) for name, recipe in (*mine[first:], *mine[:first])], out)
        except DapError as error:
            raise CellsFailed(str(error)) from error


def work_on(job: Path, watcher: Watcher = Watcher()) -> None:
    """Do the work that a parent process wrote into the file `job`: `work` on a grid, or units of a set. The command
    `dap worker FILE` calls this."""
    grid = read_job(job)
    if grid.kind == "cells":
        return work(grid, watcher, job.parent)
    ((name, recipe),) = grid.cells
    how = {"machine": grid.machine, "watcher": watcher, "name": name, "command": grid.command}
    distill(recipe, grid.out / name, engine=Engine(engine="shard"), **how)


def _run_in_workers(
    cells: Grid, watcher: Watcher, run: Callable[[Sequence[str], Callable[[], object]], object]
) -> None:
    """Check all cells once in this process, then share them among several processes.

    Args:
        cells: the grid.
        watcher: is told how many cells are done.
        run: runs the command line of a worker in several processes. It also gets a function to call while they run.
    """
    _check_once(cells, watcher)
    with written(cells, cells.out.absolute() / CLAIMS) as (job, command):
        total = len(cells.cells)

        def count() -> None:
            watcher.cells(sum(1 for _ in job.parent.iterdir()) - 1, total)

        count()
        try:
            run(command, count)
        except DapError as error:
            raise CellsFailed(str(error)) from error
        count()


def _check_once(cells: Grid, watcher: Watcher) -> None:
    """Check all cells, then free everything that the check loaded. The workers need the memory, above all a GPU's."""
    workshops = Workshops(cells, watcher)
    loaded_for = loader(cells.judging, cells.machine, workshops.main)
    with workshops.used():
        check(cells.cells, workshops.of, loaded_for, cells.out, cells.subsample, watcher)
    del workshops, loaded_for
    give_back()


def check(
    cells: Sequence[Cell],
    workshop_of: Callable[[Recipe], Workshop],
    loaded_for: LoadedFor,
    out: Path,
    subsample: Sequence[int] = (),
    watcher: Watcher = Watcher(),
) -> None:
    """Check that every cell can be made and judged, before the first cell is made. Cheap checks come first.

    Args:
        cells: the sets to make.
        workshop_of: gives the workshop that makes a recipe's set.
        loaded_for: gives what judging needs, for the real data of a recipe.
        out: the folder in which the folders of the sets are made.
        subsample: the numbers of images a class that are drawn from larger sets.
        watcher: is told of what recipes leave to `auto`, which is chosen here.

    Raises:
        DapError: a cell cannot be made or judged; the message says why.
    """
    check_folder(out)
    for name, recipe in cells:
        workshop_of(recipe).asked(recipe)
        check_given(out / name, recipe, workshop_of(recipe))
        check_out(workshop_of(recipe), recipe.data, out / name)
    check_data(cells, loaded_for, out)
    images, plan = dict[str, int](), loaded_for(cells[0][1].data).plan
    sides, protocols = dict[tuple[int, int], list[str]](), dict[str, str]()
    for name, recipe in cells:
        chosen = settled(recipe, workshop_of(recipe), out / name, watcher, out).recipe
        method, task = workshop_of(recipe).task(chosen)
        method.prepare(task)
        loaded = loaded_for(task.recipe.data)
        judged_by = loaded.plan  # what a protocol takes from the data is in its name
        # as the user named it: METHOD@BACKBONE
        own = f"@{recipe.backbone.path}" if "@" in name and recipe.backbone and "backbone" in method.needs else ""
        sides.setdefault((judged_by.protocol.size, task.recipe.data.size), []).append(recipe.method + own)
        classes = len(task.source.class_names)
        for ipc in (recipe.ipc, *(n for n in subsample if n < recipe.ipc)):
            check_batches(plan, ipc * classes, ipc, classes, 3 * (task.source.frames or 1))
        sizes = [(name, recipe.ipc), *((folder, n) for n, folder in draws(name, recipe, subsample))]
        images |= {folder: n * classes for folder, n in sizes}
        protocols |= {folder: judged_by.named(judged_by.protocol.name) for folder, _ in sizes}
        DistilledSet.check_begun(out / name, task.source.class_names, task.recipe.values(), task.store.inputs)
        if judged_by.labeller is not None:
            with naming(out / name):
                judged_by.labeller.check(task.source.class_names, task.recipe.values(), out / name)
        for folder in (name, *(drawn for _, drawn in draws(name, recipe, subsample))):
            check_finished(out / folder, loaded)
    _tell_sides(sides, watcher)
    write_plan(out, images, protocols, plan.all_networks, plan.seeds)


def check_data(cells: Sequence[Cell], loaded_for: LoadedFor, out: Path, *, fetch: bool = True) -> None:
    """Check that the sets of a grid can be judged, as far as their real images tell.

    Args:
        cells, loaded_for, out: as for `check`.
        fetch: as for `judge.check`.

    Raises:
        DapError: they cannot. Where the sets are of several data, the message names one that is of those at fault.
    """
    first = dict[Data, str]()
    for name, recipe in cells:
        first.setdefault(recipe.data, name)
    for data, name in first.items():
        with naming(out / name, len(first) > 1):
            check_judging(loaded_for(data), fetch=fetch)


def check_finished(folder: Path, loaded: Loaded, *, fetch: bool = True) -> None:
    """Check what judging asks of a set itself, where a finished one is in the folder already: weights of its images, and a
    backbone that labels them. Sets are read for such protocols alone, because reading hashes all images.

    Raises:
        DapError: the set lacks what is asked. The message names it.
    """
    plan, cases = loaded.plan, loaded.plan.protocol.cases
    weighed = plan.protocol.weights != "none" or any("weights" in case.set for case in cases)
    if not (weighed or plan.labeller is not None) or not (folder / "classes.json").is_file():
        return
    with naming(folder):
        made = DistilledSet.open(folder)
        if not made.missing():
            check_weights(made, plan)
            loaded.check_labels(made, fetch=fetch)


def _tell_sides(sides: Mapping[tuple[int, int], Sequence[str]], watcher: Watcher) -> None:
    """Tell a user whose sets have images of different sizes. They do not compare, and they stand in one table only where networks
    are trained at one size.

    Args:
        sides: from the size at which sets are judged, and that of their images, to their methods.
        watcher: is told.
    """
    images = dict[int, list[str]]()
    for (_, side), methods in sides.items():
        images.setdefault(side, []).extend(methods)
    if len(images) < 2:
        return
    told = "; ".join(f"{side} px: {', '.join(dict.fromkeys(methods))}" for side, methods in sorted(images.items()))
    judged = {size for size, _ in sides}
    if len(judged) > 1:
        said = "so they are judged apart and their accuracies stand in different tables"
    else:
        said = f"and all are judged at {min(judged)} px, so a difference of accuracies is one of sizes too"
    watcher.note(
        f"These sets have images of different sizes ({told}), {said}. --size {min(images)} makes all of them alike, where each "
        f"backbone makes images of {min(images)} px."
    )


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """The random draws from a cell: for each draw its number of images a class and the name of its folder."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[Cell], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of the draws from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
