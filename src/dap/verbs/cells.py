"""The cells of a grid. Each cell makes one distilled set and judges it.

All cells are checked before the first cell is run. A cell goes on where it stopped, so the same grid goes on after an
interruption. Several processes may work on the same grid side by side, on one machine or on several machines that share
the folder. Each process takes the next cell that no other process holds. If a process is killed, another one takes up
its cell.
"""

from __future__ import annotations

import functools
import gc
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import torch
from pydantic import Field

from dap.base.documents import fitted, read_json
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Inside, Text
from dap.base.files import check_folder, write_atomically
from dap.base.parsing import shown
from dap.base.permission import asked_for, code_is_allowed
from dap.base.watch import Watcher
from dap.base.workers import CLAIMS, run_workers, share
from dap.cost import NOTE as COST
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.data.sets.notes import Plain, as_read
from dap.evaluation.judge import check as check_judging
from dap.evaluation.judge import check_batches, judge
from dap.methods.base import Method
from dap.recipe import Recipe
from dap.verbs.distill import distill, open_workshop
from dap.verbs.judges import LoadedFor, loader
from dap.verbs.options import Judging, Machine
from dap.verbs.planning.status import write_plan
from dap.verbs.report import Results, Unfinished, write_page
from dap.verbs.settling import settled
from dap.workshop import Workshop


class Job(FromFile, frozen=True):
    """The file of a grid that a parent process writes for its workers."""

    cells: Annotated[list[Annotated[list[Inside | Plain], Field(min_length=2, max_length=2)]], Field(max_length=10**6)]
    subsample: list[Count]
    command: Text | None
    judging: Plain
    machine: Plain
    out: Text


Cell = tuple[str, Recipe]
"""The name of a set's folder, relative to the folder of the grid, and the recipe of the set."""


@dataclass(frozen=True)
class Grid:
    """The choices that all processes of a grid share.

    Attributes:
        cells: the sets to make.
        out: the folder in which the folders of the sets are made.
        judging, machine, subsample, command: see `compare.compare`.
        objects: the methods that are objects, by the names that the recipes give them. Other processes cannot have
            these objects, so `dump` leaves them out.
    """

    cells: tuple[Cell, ...]
    out: Path
    judging: Judging
    machine: Machine
    subsample: tuple[int, ...] = ()
    command: str | None = None
    objects: Mapping[str, Method] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """This grid as JSON; `load` reads it."""
        # A choice that a recipe leaves open must stay open. A stated value means more than the same value by default.
        # The file of a job is no permission to run code: the permission travels on the command line of the worker.
        cells = [[name, recipe.model_dump(mode="json", exclude_unset=True)] for name, recipe in self.cells]
        rest = {"judging": asdict(self.judging), "machine": asdict(self.machine), "out": self.out.absolute()}
        return {"cells": cells, "subsample": self.subsample, "command": self.command, **rest}

    @staticmethod
    def load(values: Mapping[str, Any], where: Path | str = "The file of the grid") -> Grid:
        """The grid that `dump` wrote.

        Args:
            values: what `dump` gave, checked by `Job`.
            where: the file, for messages.

        Raises:
            DapError: a value does not fit, or is of another version.
        """
        chosen = {"judging": Judging, "machine": Machine}
        for part, kind in chosen.items():
            if unknown := sorted(set(values[part]) - {field.name for field in fields(kind)}):  # of another version
                raise DapError(
                    f"{shown(where)}: {part} has {shown(unknown[0])}, which this version of dap lacks. {AGAIN}"
                )
        judging = fitted(values["judging"], Judging, where)
        machine = fitted({**values["machine"], "allow_code": False}, Machine, where)
        cells = []
        for name, recipe in values["cells"]:
            if not (isinstance(name, str) and isinstance(recipe, Mapping)):
                raise DapError(f"{shown(where)}: a cell is not the name of a folder and a recipe. {AGAIN}")
            cells.append((name, Recipe.parse(recipe, str(where))))
        return Grid(tuple(cells), Path(values["out"]), judging, machine, tuple(values["subsample"]), values["command"])


AGAIN = "Start the command again that wrote it."


def run_grid(cells: Grid, title: str, watcher: Watcher = Watcher(), workers: int = 1) -> Results:
    """Make and judge every cell of a grid, and write the page.

    Raises:
        Unfinished: some cells failed. The other cells are done, and the error has their results.
        DapError: a recipe is wrong. Every recipe is checked before the first one is run.
    """
    failed = None
    try:
        if workers > 1:
            _run_in_workers(cells, watcher, workers)
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


class CellsFailed(DapError):
    """Cells of a grid failed after all of them were checked."""


def work(cells: Grid, watcher: Watcher = Watcher(), done: Path | None = None) -> None:
    """Do the cells of a grid that no other process holds, until all cells are done. Each worker runs this function.

    Args:
        cells: the grid.
        watcher: is told of images, trainings and cells.
        done: a folder that gets one empty file for every finished cell. None: no such files are written.

    Raises:
        CellsFailed: some cells failed. The other cells are done.
        DapError: a cell cannot be made or judged. This is raised before the first cell is made.
    """
    workshops = Workshops(cells, watcher if done is None else None)  # the parent of workers has told it
    loaded_for, out, finished = loader(cells.judging, cells.machine, workshops.main), cells.out, set[str]()
    check(cells.cells, workshops.of, loaded_for, out, cells.subsample, watcher)

    def do(name: str, recipe: Recipe) -> None:
        workshop = workshops.of(recipe)
        how = {"workshop": workshop, "watcher": watcher, "name": name, "command": cells.command, "grid": out}
        made = distill(recipe, out / name, **how)
        chosen = settled(recipe, workshop, out / name, Watcher(), out).recipe
        loaded = loaded_for(workshop.task(chosen)[1].recipe.data)
        judge(made, loaded, watcher, name)
        for n, folder in draws(name, recipe, cells.subsample):
            if not (out / folder).is_dir():
                import_set(out / name, out / folder, ipc=n, pick="random", seed=recipe.seed)
            drawn = DistilledSet.open(out / folder)
            if drawn.noted(COST) is None:  # a draw has the cost of the set it comes from
                drawn.note(COST, made.noted(COST))
            judge(drawn, loaded, watcher, folder)
        finished.add(name)
        watcher.cells(len(finished), len(cells.cells))
        if done is not None:
            (done / quote(name, safe="")).touch()

    watcher.cells(0, len(cells.cells))
    try:
        share([(name, functools.partial(do, name, recipe)) for name, recipe in cells.cells], out)
    except DapError as error:
        raise CellsFailed(str(error)) from error


def work_on(job: Path, watcher: Watcher = Watcher()) -> None:
    """Do `work` on the grid that a parent process wrote into the file `job`. The command `dap worker FILE` calls this."""
    work(read_job(job), watcher, job.parent)


def read_job(job: Path) -> Grid:
    """The grid in a file that `Grid.dump` wrote.

    Raises:
        DapError: the file cannot be read, or is damaged. The message names it.
    """
    return Grid.load(read_json(job, as_read(Job)), job)


def _run_in_workers(cells: Grid, watcher: Watcher, workers: int) -> None:
    """Check all cells once in this process, then share them among several processes."""
    _check_once(cells, watcher)
    (cells.out / CLAIMS).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=cells.out / CLAIMS) as folder:
        job, total, dumped = Path(folder) / "grid.json", len(cells.cells), cells.dump()
        write_atomically(job, json.dumps(dumped, default=str).encode())

        def count() -> None:
            watcher.cells(sum(1 for _ in job.parent.iterdir()) - 1, total)

        count()
        spread = cells.machine.device in ("auto", "cuda")
        try:
            command = ["worker", str(job), *_permission(dumped)]
            run_workers(command, workers, spread=spread, meanwhile=count, tell=watcher.note)
        except DapError as error:
            raise CellsFailed(str(error)) from error
        count()


def _permission(dumped: Mapping[str, Any]) -> list[str]:
    """The flags that let a worker run the code of a grid that this process may run."""
    named = asked_for([[recipe for _, recipe in dumped["cells"]], dumped["judging"]])
    return [*(part for spec in named for part in ("--code", spec)), *(["--allow-code"] if code_is_allowed() else [])]


def _check_once(cells: Grid, watcher: Watcher) -> None:
    """Check all cells, then free everything that the check loaded. The workers need the memory, above all a GPU's."""
    workshops = Workshops(cells, watcher)
    loaded_for = loader(cells.judging, cells.machine, workshops.main)
    check(cells.cells, workshops.of, loaded_for, cells.out, cells.subsample, watcher)
    del workshops
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
    for _, recipe in cells:
        workshop_of(recipe).asked(recipe)
    for data in dict.fromkeys(recipe.data for _, recipe in cells):
        check_judging(loaded_for(data))
    images, plan = dict[str, int](), loaded_for(cells[0][1].data).plan
    for name, recipe in cells:
        chosen = settled(recipe, workshop_of(recipe), out / name, watcher, out).recipe
        method, task = workshop_of(recipe).task(chosen)
        method.prepare(task)
        classes = len(task.source.class_names)
        for ipc in (recipe.ipc, *(n for n in subsample if n < recipe.ipc)):
            check_batches(plan, ipc * classes, ipc, classes)
        sizes = [(name, recipe.ipc), *((folder, n) for n, folder in draws(name, recipe, subsample))]
        images |= {folder: n * classes for folder, n in sizes}
        DistilledSet.check_begun(out / name, task.source.class_names, task.recipe.values(), task.store.inputs)
    write_plan(out, images, len(plan.all_networks) * len(plan.seeds))


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """The random draws from a cell: for each draw its number of images a class and the name of its folder."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[Cell], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of the draws from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
