"""`dap compare` and `dap sweep`: make many sets, judge them, and report on them side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dap.base.errors import DapError
from dap.base.parsing import brief, counted
from dap.base.watch import Watcher
from dap.data.real.finding.made import check_no_other
from dap.methods import find
from dap.methods.base import Method
from dap.objects import name_of
from dap.recipe import Recipe
from dap.verbs.cells import run_grid, work_on
from dap.verbs.jobs import Grid
from dap.verbs.options import Engine, Judging, Machine, kind_of, permitted
from dap.verbs.picking.compared import methods_for
from dap.verbs.report import Results

__all__ = ["compare", "comparison", "grid", "sweep", "work_on"]


@permitted
def compare(
    base: Mapping[str, Any] | Recipe,
    methods: Iterable[str | Method | type[Method]] | None,
    ipcs: int | Iterable[int],
    sets: int,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    subsample: Iterable[int] = (),
    title: str = "Methods compared",
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    workers: int = 1,
    engine: Engine = Engine(),
    command: str | None = None,
) -> Results:
    """Make sets by several methods, judge them, and report on them side by side.

    Finished sets and trainings are kept, so the same call goes on after an interruption. Several processes may run the same
    call side by side, on one machine or on several machines that share the folder. Each process takes the next cell
    that no other process holds.

    Args:
        base: the nested values of a recipe that all cells share, or a recipe; see `comparison`.
        methods: names, NAME@BACKBONE for another backbone than the base's, or objects of your own. An object has the
            name of its class, "module:Class". So two objects of one class cannot be compared. None: those that suit the
            images; the watcher is told which, and why.
        ipcs: a number of images per class, or several. (): the ipc of the base.
        sets: how many sets are made for each method and ipc. Each set has its own run seed, counted up from the base's
            seed.
        out: the folder of the sets and of the report.
        options: the methods' own options, "METHOD.NAME" -> value.
        subsample: numbers of images a class. For each number, a random draw of that size is judged too, from every set
            that has more images a class.
        title: the heading of the page.
        judging: the protocol, networks and trials.
        machine: the device, the network, the cache and the CPU threads.
        watcher: is told of images, trainings and cells.
        workers: the same as `Engine(workers=…)`.
        engine: how several processes share the cells. The watcher is told every line that a worker writes to standard
            error.
        command: the shell command to record in each set.

    Returns:
        The results of all cells and of their draws, with the page.

    Raises:
        Unfinished: some cells failed. The other cells are done, and the error has their results.
        DapError: an argument is wrong. This is raised before the first image is made.
    """
    engine = replace(engine, workers=workers) if workers > 1 else engine
    ipcs, methods = _values(ipcs), () if methods is None else _values(methods)
    if not methods:
        found = methods_for(_fields(base), ipcs, Path(out), judging=judging, machine=machine, watcher=watcher)
        base, methods, options = found.base, found.methods, {**found.options, **(options or {})}
    how = {"options": options, "subsample": subsample, "judging": judging, "machine": machine, "command": command}
    cells = compared(base, methods, ipcs, sets, out, **how)
    if cells.objects and kind_of(engine) in ("workers", "ray"):
        raise DapError(
            f"Several workers need methods that each of them can find by a name such as file.py:Name, and "
            f"{next(iter(cells.objects))} was given as an object; give its name, or workers=1."
        )
    return run_grid(cells, title, watcher, engine)


def compared(
    base: Mapping[str, Any] | Recipe,
    methods: Iterable[str | Method | type[Method]],
    ipcs: int | Iterable[int],
    sets: int,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    subsample: Iterable[int] = (),
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    command: str | None = None,
) -> Grid:
    """The grid that `compare` runs; the arguments are its own.

    Raises:
        DapError: an argument is wrong.
    """
    check_no_other(Path(out))
    ipcs, subsample = _values(ipcs), _values(subsample)
    names, objects = _named(_values(methods))
    if not names:
        raise DapError("No method is given to compare; name one such as vanilla.")
    cells = comparison(_fields(base), names, ipcs, sets, options, objects)
    if subsample and any(recipe.data.frames is not None for _, recipe in cells):
        raise DapError(
            "--subsample draws images from a set and no clips; leave it out with --frames, and compare sets of several --ipc."
        )
    most = max(recipe.ipc for _, recipe in cells)
    if wrong := [n for n in subsample if not isinstance(n, int) or n < 1]:
        raise DapError(f"subsample takes whole numbers of images a class above 0, not {brief(wrong[0])}.")
    for n in (n for n in subsample if n >= most):
        raise DapError(
            f"--subsample {n}: no set has more than {counted(n, 'image')} a class to draw from, the largest has {most}."
        )
    return Grid(tuple(cells), Path(out), judging, machine, tuple(subsample), command, objects)


def _values(given: object) -> tuple[Any, ...]:
    """The values of an argument that takes several, or one, each once. A generator ends after one reading, and a number of NumPy
    is no JSON."""
    if isinstance(given, str | bytes | Method | type) or not isinstance(given, Iterable):
        given = (given,)
    plain = (value.item() if isinstance(value, np.generic) else value for value in given)
    return tuple({value if isinstance(value, str) else repr(value): value for value in plain}.values())


def _fields(base: object) -> dict[str, Any]:
    """The nested values that a mapping or a recipe gives."""
    if isinstance(base, Recipe):
        return base.model_dump(exclude_unset=True)
    if not isinstance(base, Mapping):
        raise DapError(
            f"The base is a mapping of recipe fields, such as {{'data': {{'path': 'FOLDER'}}}}, or a recipe; not {brief(base)}."
        )
    return dict(base)


def _named(methods: Sequence[str | Method | type[Method]]) -> tuple[list[str], dict[str, Method]]:
    """The names of all methods, and a mapping from name to object for the methods that are objects."""
    names: list[str] = []
    objects: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, str):
            names.append(method)
            continue
        made = method() if isinstance(method, type) else method
        if not isinstance(made, Method):
            raise DapError(f"{brief(made)} is not a method; subclass dap.methods.base.Method, or give a name.")
        name = name_of(made)
        if name in objects:
            raise DapError(
                f"Two methods are objects of {name}; make a subclass of it for each, so that their names differ."
            )
        objects[name] = made
        names.append(name)
    return names, objects


@permitted
def sweep(
    base: Mapping[str, Any] | Recipe,
    vary: Mapping[str, Iterable[Any]],
    sets: int,
    out: str | Path,
    *,
    title: str | None = None,
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    workers: int = 1,
    engine: Engine = Engine(),
    command: str | None = None,
) -> Results:
    """Make sets for every combination of values of some recipe fields, judge them, and report on them.

    Args:
        base: the nested values of a recipe that all cells share, or a recipe.
        vary: the fields and their values, such as {"guidance.scale": [0, 0.1]}.
        sets: how many sets are made for each combination. Each set has its own run seed, counted up from the base's
            seed.
        out, judging, machine, watcher, workers, engine, command: see `compare`.
        title: the heading of the page. Default: a heading that names the fields.

    Returns:
        The results of all cells, with the page.

    Raises:
        Unfinished: some cells failed. The other cells are done, and the error has their results.
        DapError: an argument is wrong. This is raised before the first image is made.
    """
    cells = swept(base, vary, sets, out, judging=judging, machine=machine, command=command)
    fields = ", ".join(field.rpartition(".")[2] for field in vary) or "seeds"
    engine = replace(engine, workers=workers) if workers > 1 else engine
    return run_grid(cells, title or f"Sweep over {fields}", watcher, engine)


def swept(
    base: Mapping[str, Any] | Recipe,
    vary: Mapping[str, Iterable[Any]],
    sets: int,
    out: str | Path,
    *,
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    command: str | None = None,
) -> Grid:
    """The grid that `sweep` runs; the arguments are its own. Raises `DapError` where one is wrong."""
    check_no_other(Path(out))
    return Grid(tuple(grid(base, vary, sets)), Path(out), judging, machine, command=command)


def grid(
    base: Mapping[str, Any] | Recipe, vary: Mapping[str, Iterable[Any]], sets: int
) -> Iterator[tuple[str, Recipe]]:
    """Yields a folder name and a recipe for every combination of values of the varied fields, and for every run seed.

    Args:
        base: the nested values of a recipe.
        vary: from the dotted name of a field ("guidance.scale", "method") to its values.
        sets: how many run seeds, counted up from the base's seed.

    Raises:
        DapError: the seed is among the varied fields, a field has no value, or a recipe is wrong.
    """
    given = _fields(base)
    if not isinstance(vary, Mapping):
        raise DapError(f'vary is a mapping of fields to their values, such as {{"ipc": [1, 10]}}, not {brief(vary)}.')
    if not isinstance(sets, int | np.integer) or isinstance(sets, bool) or sets < 1:
        raise DapError(f"sets is how many sets are made of each kind, a whole number above 0, not {brief(sets)}.")
    first, vary = Recipe.parse(given).seed, {field: _values(values) for field, values in vary.items()}
    if empty := [field for field, values in vary.items() if not values]:
        raise DapError(f"No value is given for {', '.join(empty)}; give at least one, or leave the field out.")
    if "seed" in vary:
        raise DapError("The seed is varied by --sets, from --seed on; leave it out of --vary.")
    bases = shared(given, {name: find(name) for name in vary.get("method", ())})
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in chosen.items()) or "set"
        name = name.replace("/", "%2F")  # one folder, inside `out`
        for seed in range(first, first + sets):
            nested: dict[str, Any] = {
                k: dict(v) if isinstance(v, Mapping) else v
                for k, v in bases.get(str(chosen.get("method")), given).items()
                if v is not None
            }
            for field, value in {**chosen, "seed": seed}.items():
                *parents, leaf = field.split(".")
                inside = nested
                for parent in parents:
                    inside = inside.setdefault(parent, {})
                inside[leaf] = value
            yield f"{name}/seed{seed}", Recipe.parse(nested)


def users(method: Method | type[Method]) -> dict[str, bool]:
    """The sections of a recipe that not every method uses, and whether this method uses them."""
    sampled = "backbone" in method.needs
    needed = {need: need in method.needs for need in ("classifier", "captions")}
    own = {
        "guidance": method.guidance is not None,
        "refine": method.refinement is not None,
        "own_guidance": method.steered,
    }
    return {"backbone": sampled, "sampling": sampled, **own, **needed}


def shared(base: Mapping[str, Any], methods: Mapping[str, Method | type[Method]]) -> dict[str, dict[str, Any]]:
    """For every method the nested values of a recipe without the sections that it has no use for. A backbone that is named
    stays.

    Args:
        base: the nested values of the recipe.
        methods: the methods by their names.
    """
    uses = {name: users(method) for name, method in methods.items()}
    found = {
        name: {key: value for key, value in base.items() if mine.get(key, True) and (key not in mine or value)}
        for name, mine in uses.items()
    }
    chosen = base.get("backbone")
    if isinstance(chosen, Mapping) and chosen.get("path"):  # sets of real images then have its size; see `Workshop`
        found = {name: {**values, "backbone": chosen} for name, values in found.items()}
    return found


def comparison(
    base: Mapping[str, Any],
    methods: Sequence[str],
    ipcs: Sequence[int],
    sets: int,
    options: Mapping[str, Any] | None = None,
    objects: Mapping[str, Method] | None = None,
) -> list[tuple[str, Recipe]]:
    """A folder name and a recipe for every method, ipc and run seed. Each recipe has only the sections that its method uses.

    Args:
        base: the nested values of a recipe. The guidance of DAP goes only to methods that have it, and a guidance of
            your own only to methods that can add it. The classifier and the captions go only to methods that need them.
        methods: names, or NAME@BACKBONE for another backbone than the base's.
        ipcs: numbers of images per class. (): the ipc of the base.
        sets: how many run seeds, counted up from the base's seed.
        options: the methods' own options, "METHOD.NAME" -> value.
        objects: the methods that are objects, by their names in `methods`.

    Raises:
        DapError: an option belongs to a method that is not compared, the base has options itself, or a method is
            unknown.
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
    known = {name: (objects or {}).get(name) or find(name) for name in (method.partition("@")[0] for method in methods)}
    bases = shared(base, known)
    for method in methods:
        name, _, backbone = method.partition("@")
        mine = dict(bases[name])
        mine |= {"method": name, "options": given.get(method, {})}
        if backbone:
            mine["backbone"] = {**dict(base.get("backbone") or {}), "path": backbone}
        for ipc in ipcs or (Recipe.parse(base).ipc,):
            folder = f"method={quote(method, safe='@:')}_ipc={ipc}"
            cells += [(f"{folder}/{seed}", recipe) for seed, recipe in grid({**mine, "ipc": ipc}, {}, sets)]
    return [(name.replace("/set/", "/"), recipe) for name, recipe in cells]
