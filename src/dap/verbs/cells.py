"""Cells of a grid, each a set and its judgement: checked first, then done, by one process or by several.

A cell resumes by itself, so the same grid goes on after an interruption. Several processes may work on the same grid side by
side, on one machine or on several that share the folder: each takes the next cell that nobody holds, and a cell that a killed
process left behind is taken up by another one.
"""

from __future__ import annotations

import functools
import gc
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from dap.base.errors import DapError
from dap.base.files import check_folder, read_json
from dap.base.watch import Watcher
from dap.base.workers import CLAIMS, run_workers, share
from dap.cost import NOTE as COST
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.evaluation.judge import check as check_judging
from dap.evaluation.judge import judge
from dap.methods.base import Method
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.judges import LoadedFor, loader, open_workshop
from dap.verbs.options import Judging, Machine
from dap.verbs.report import Results, Unfinished, write_page
from dap.workshop import Workshop

Cell = tuple[str, Recipe]
"""The name of the folder of a set, below the folder of the grid, and its recipe."""


@dataclass(frozen=True)
class Grid:
    """All that processes which share a grid must agree on.

    Attributes:
        cells: the sets to make.
        out: where the folders of the sets go.
        judging, machine, subsample, command: see `compare.compare`.
        objects: the methods that are objects, by the names that the recipes give them. Other processes cannot have them.
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
        # What a recipe leaves open must stay open: a value that is stated means more than the same value by default.
        cells = [[name, recipe.model_dump(mode="json", exclude_unset=True)] for name, recipe in self.cells]
        rest = {"judging": asdict(self.judging), "machine": asdict(self.machine), "out": self.out.absolute()}
        return {"cells": cells, "subsample": self.subsample, "command": self.command, **rest}

    @staticmethod
    def load(values: Mapping[str, Any]) -> Grid:
        """The grid that `dump` wrote."""
        cells = tuple((name, Recipe.parse(recipe)) for name, recipe in values["cells"])
        judging, machine = dict(values["judging"]), dict(values["machine"])
        for told, names in ((judging, ("labels", "reference")), (machine, ("cache",))):
            told.update({name: Path(told[name]) for name in names if told[name] is not None})
        judging.update({name: tuple(judging[name]) for name in ("networks", "measures")})
        shared = (tuple(values["subsample"]), values["command"])
        return Grid(cells, Path(values["out"]), Judging(**judging), Machine(**machine), *shared)


def run_grid(cells: Grid, title: str, watcher: Watcher = Watcher(), workers: int = 1) -> Results:
    """Make and judge every cell of a grid, and write the page.

    Raises:
        Unfinished: some cells failed; the others are done, and the error has their results.
        DapError: every recipe is checked before the first one is run.
    """
    failed = None
    try:
        if workers > 1:
            _run_in_workers(cells, watcher, workers)
        else:
            work(cells, watcher)
    except CellsFailed as error:  # the report on the others is still written
        failed = error
    made = [path for path in folders(cells.cells, cells.out, cells.subsample) if (path / "classes.json").is_file()]
    results = Results(tuple(made), write_page(made, cells.out, title)) if made else None
    if failed is not None or results is None:
        raise Unfinished(str(failed or f"No set in {cells.out}."), results) from failed
    return results


class Workshops:
    """The workshops of a grid: one for methods with a name, and one for each method that is an object. They share what they load.

    Args:
        cells: the grid.
    """

    def __init__(self, cells: Grid) -> None:
        self.main = open_workshop(cells.machine)
        self._own = {name: self.main.with_method(method) for name, method in cells.objects.items()}

    def of(self, recipe: Recipe) -> Workshop:
        """The workshop for a recipe."""
        return self._own.get(recipe.method, self.main)


class CellsFailed(DapError):
    """Cells of a grid failed after all of them were checked."""


def work(cells: Grid, watcher: Watcher = Watcher(), done: Path | None = None) -> None:
    """Do the cells of a grid that nobody else does, until all are done; what each of several workers runs.

    Args:
        cells: the grid.
        watcher: told of images, trainings and cells.
        done: folder in which an empty file tells of every finished cell.

    Raises:
        CellsFailed: some cells failed; the others are done.
        DapError: a cell cannot be made or judged, told before the first one is made.
    """
    workshops = Workshops(cells)
    loaded_for, out, finished = loader(cells.judging, cells.machine, workshops.main), cells.out, set[str]()
    check(cells.cells, workshops.of, loaded_for, out)

    def do(name: str, recipe: Recipe) -> None:
        workshop = workshops.of(recipe)
        made = distill(recipe, out / name, workshop=workshop, watcher=watcher, name=name, command=cells.command)
        loaded = loaded_for(workshop.task(recipe)[1].recipe.data)
        judge(made, loaded, watcher, name)
        for n, folder in draws(name, recipe, cells.subsample):
            if not (out / folder).is_dir():
                import_set(out / name, out / folder, ipc=n, pick="random", seed=recipe.seed)
            drawn = DistilledSet.open(out / folder)
            if drawn.noted(COST) is None:  # a draw costs what it was drawn from
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
    """`work` on the grid that a parent process wrote into a file; what `dap worker FILE` does."""
    work(Grid.load(read_json(job)), watcher, job.parent)


def _run_in_workers(cells: Grid, watcher: Watcher, workers: int) -> None:
    """Share the cells among processes, after all of them were checked once in this one."""
    _check_once(cells)
    (cells.out / CLAIMS).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=cells.out / CLAIMS) as folder:
        job, total = Path(folder) / "grid.json", len(cells.cells)
        job.write_text(json.dumps(cells.dump(), default=str), encoding="utf-8")

        def count() -> None:
            watcher.cells(sum(1 for _ in job.parent.iterdir()) - 1, total)

        count()
        spread = cells.machine.device in ("auto", "cuda")
        try:
            run_workers(["worker", str(job)], workers, spread=spread, meanwhile=count, tell=watcher.note)
        except DapError as error:
            raise CellsFailed(str(error)) from error
        count()


def _check_once(cells: Grid) -> None:
    """`check`, after which nothing of what it loaded is kept: the workers need the memory, above all a GPU's."""
    workshops = Workshops(cells)
    check(cells.cells, workshops.of, loader(cells.judging, cells.machine, workshops.main), cells.out)
    del workshops
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check(cells: Sequence[Cell], workshop_of: Callable[[Recipe], Workshop], loaded_for: LoadedFor, out: Path) -> None:
    """Whether every cell can be made and judged, found out before the first one is made. Cheap checks come first.

    Args:
        cells: the sets to make.
        workshop_of: the workshop that makes a recipe's set.
        loaded_for: what judging needs, by the real data.
        out: where the folders of the sets go.

    Raises:
        DapError: a cell cannot be made or judged; the message says why.
    """
    check_folder(out)
    for _, recipe in cells:
        workshop_of(recipe).asked(recipe)
    for data in dict.fromkeys(recipe.data for _, recipe in cells):
        check_judging(loaded_for(data))
    for name, recipe in cells:
        method, task = workshop_of(recipe).task(recipe)
        method.prepare(task)
        DistilledSet.check_begun(out / name, task.source.class_names, task.recipe.values(), task.store.inputs)


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """The sizes and folder names of the random draws from a cell."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[Cell], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of the draws from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
