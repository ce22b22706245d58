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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
        cells: folder names and recipes, see `grid` and `comparison`.
        out: where the folders go.
        judging, machine: see `compare`.
        subsample: likewise.
        command: likewise.
    """

    cells: tuple[tuple[str, Recipe], ...]
    out: Path
    judging: Judging
    machine: Machine
    subsample: tuple[int, ...] = ()
    command: str | None = None

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
        judging["networks"] = tuple(judging["networks"])
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
    workshop = open_workshop(cells.machine)
    loaded_for, out, finished = loader(cells.judging, cells.machine, workshop), cells.out, set[str]()
    check(cells.cells, workshop, loaded_for, out)

    def do(name: str, recipe: Recipe) -> None:
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
    workshop = open_workshop(cells.machine)
    check(cells.cells, workshop, loader(cells.judging, cells.machine, workshop), cells.out)
    del workshop
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check(
    cells: Sequence[tuple[str, Recipe]],
    workshop: Workshop,
    loaded_for: LoadedFor | None = None,
    out: Path | None = None,
) -> None:
    """Whether every cell can be made and judged, found out before the first one is; what is cheap to know first.

    Args:
        cells: as of `sweep`.
        workshop: likewise.
        loaded_for: likewise; None: the sets are not judged.
        out: likewise; None: the folders are not looked at.

    Raises:
        DapError: one cannot, with what is wrong with it.
    """
    if out is not None:
        check_folder(out)
    for _, recipe in cells:
        workshop.asked(recipe)
    if loaded_for is not None:
        for data in dict.fromkeys(recipe.data for _, recipe in cells):
            check_judging(loaded_for(data))
    for name, recipe in cells:
        method, task = workshop.task(recipe)
        method.prepare(task)
        if out is not None:
            DistilledSet.check_begun(out / name, task.source.class_names, task.recipe.values(), task.store.inputs)


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """Sizes and folder names of what is drawn from a cell."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[tuple[str, Recipe]], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of what is drawn from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
