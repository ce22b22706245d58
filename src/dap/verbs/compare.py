"""Many sets and their judgement: a grid of recipes, each cell of which resumes by itself."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from dap.methods import find
from dap.recipe import Recipe, said
from dap.verbs.distill import distill
from dap.verbs.judges import JudgeFor, judges, open_workshop
from dap.verbs.options import Judging, Machine
from dap.verbs.report import Results, Unfinished, write_page
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
        mine = {key: value for key, value in base.items() if key not in ("guidance", "classifier", "captions")}
        mine |= {"guidance": base["guidance"]} if made.guidance is not None and base.get("guidance") else {}
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
    judge_for: JudgeFor | None = None,
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
            DistilledSet.check_begun(out / name, task.source.class_names, said(task.recipe), task.store.inputs)


def compare(
    base: Mapping[str, Any],
    methods: Sequence[str],
    ipcs: Sequence[int],
    sets: int,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    subsample: Sequence[int] = (),
    title: str = "Methods compared",
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    workers: int = 1,
    command: str | None = None,
) -> Results:
    """Make sets by several methods, judge them, and report on them beside each other.

    Finished sets and trainings are kept, so the same call goes on after an interruption. Several processes may run the same
    call side by side, on one machine or on several that share the folder: each takes the next cell that nobody holds.

    Args:
        base: values of a recipe, nested, that the cells share; see `comparison`.
        methods: names, or NAME@BACKBONE for another backbone than the base's.
        ipcs: images per class, one or several; () for the base's.
        sets: how many sets a method and ipc, each of its own run seed, from the base's seed on.
        out: the folder of the sets and of the report.
        options: the methods' own options, "METHOD.NAME" -> value.
        subsample: random draws of so many images a class are judged too, from every set that has more.
        title: the heading of the page.
        judging: the protocol, networks and trials.
        machine: the device and its like.
        watcher: told of images, trainings and cells.
        workers: processes that share the cells. What they say goes to this process's standard error.
        command: the shell command to record in each set.

    Raises:
        Unfinished: some cells failed; the others are done, and the error has their results.
        DapError: a mistake in what was given, told before the first image is made.
    """
    cells = comparison(base, methods, ipcs, sets, options)
    most = max(recipe.ipc for _, recipe in cells)
    for n in (n for n in subsample if n >= most):
        raise DapError(
            f"--subsample {n}: no set has more than {n} images a class to draw from, the largest has {most}."
        )
    grid_of = Grid(tuple(cells), Path(out), judging, machine, tuple(subsample), command)
    return run_grid(grid_of, title, watcher, workers)


def sweep(
    base: Mapping[str, Any],
    vary: Mapping[str, Sequence[Any]],
    sets: int,
    out: str | Path,
    *,
    title: str | None = None,
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    workers: int = 1,
    command: str | None = None,
) -> Results:
    """Make sets for every combination of values of some recipe fields, judge them, and report on them.

    Args:
        base: values of a recipe, nested, that the cells share.
        vary: the fields and their values, such as {"guidance.scale": [0, 0.1]}.
        sets: how many sets a combination, each of its own run seed, from the base's seed on.
        out, judging, machine, watcher, workers, command: see `compare`.
        title: the heading of the page; by default it names the fields.

    Raises:
        Unfinished: some cells failed; the others are done, and the error has their results.
        DapError: a mistake in what was given, told before the first image is made.
    """
    fields = ", ".join(field.rpartition(".")[2] for field in vary) or "seeds"
    cells = Grid(tuple(grid(base, vary, sets)), Path(out), judging, machine, command=command)
    return run_grid(cells, title or f"Sweep over {fields}", watcher, workers)


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
    judge_for, out, finished = judges(cells.judging, cells.machine, workshop), cells.out, set[str]()
    check(cells.cells, workshop, judge_for, out)

    def do(name: str, recipe: Recipe) -> None:
        made = distill(recipe, out / name, workshop=workshop, watcher=watcher, name=name, command=cells.command)
        judge = judge_for(workshop.task(recipe)[1].recipe.data)
        judge(made, on_trial=functools.partial(watcher.trial, name), on_epoch=watcher.epoch)
        for n, folder in draws(name, recipe, cells.subsample):
            if not (out / folder).is_dir():
                import_set(out / name, out / folder, ipc=n, pick="random", seed=recipe.seed)
            drawn = DistilledSet.open(out / folder)
            if drawn.noted(COST) is None:  # a draw costs what it was drawn from
                drawn.note(COST, made.noted(COST))
            judge(drawn, on_trial=functools.partial(watcher.trial, folder), on_epoch=watcher.epoch)
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
            run_workers(["worker", str(job)], workers, spread=spread, meanwhile=count)
        except DapError as error:
            raise CellsFailed(str(error)) from error
        count()


def _check_once(cells: Grid) -> None:
    """`check`, after which nothing of what it loaded is kept: the workers need the memory, above all a GPU's."""
    workshop = open_workshop(cells.machine)
    check(cells.cells, workshop, judges(cells.judging, cells.machine, workshop), cells.out)
    del workshop
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def draws(name: str, recipe: Recipe, subsample: Sequence[int]) -> list[tuple[int, str]]:
    """Sizes and folder names of what is drawn from a cell."""
    parent, _, seed = name.rpartition("/")
    return [(n, f"{parent}_drawn={n}/{seed}") for n in subsample if n < recipe.ipc]


def folders(cells: Sequence[tuple[str, Recipe]], out: Path, subsample: Sequence[int] = ()) -> list[Path]:
    """The folders of all cells and of what is drawn from them, in order."""
    return [out / path for name, recipe in cells for path in (name, *(f for _, f in draws(name, recipe, subsample)))]
