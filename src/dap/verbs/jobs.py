"""What a parent process hands to the processes that share its work: a grid of sets, in a file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dap.base.disk import passing_folder
from dap.base.documents import fitted, read_json
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Inside, Name, Share, Text
from dap.base.files import write_atomically
from dap.base.parsing import shown
from dap.base.permission import asked_for, code_is_allowed
from dap.data.sets.notes import Plain, as_read
from dap.methods.base import Method
from dap.recipe import Recipe
from dap.verbs.options import Judging, Machine


class Job(FromFile, frozen=True):
    """The file that a parent process writes for its workers."""

    kind: Literal["cells", "set"] = "cells"
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
        kind: what the processes share: the cells, or the units of the set of the only cell.
    """

    cells: tuple[Cell, ...]
    out: Path
    judging: Judging
    machine: Machine
    subsample: tuple[int, ...] = ()
    command: str | None = None
    objects: Mapping[str, Method] = field(default_factory=dict)
    kind: Literal["cells", "set"] = "cells"

    def dump(self) -> dict[str, Any]:
        """This grid as JSON; `load` reads it."""
        # A choice that a recipe leaves open must stay open. A stated value means more than the same value by default.
        # The file of a job is no permission to run code: the permission travels on the command line of the worker.
        cells = [[name, recipe.model_dump(mode="json", exclude_unset=True)] for name, recipe in self.cells]
        rest = {"judging": asdict(self.judging), "machine": asdict(self.machine), "out": self.out.absolute()}
        return {"kind": self.kind, "cells": cells, "subsample": self.subsample, "command": self.command, **rest}

    @staticmethod
    def load(values: Mapping[str, Any], where: Path | str = "The file of the grid") -> Grid:
        """The grid that `dump` wrote.

        Args:
            values: what `dump` gave, checked by `Job`.
            where: the file, for messages.

        Raises:
            DapError: a value does not fit, or is of another version.
        """
        chosen, cells = _chosen(values, where), []
        for name, recipe in values["cells"]:
            if not (isinstance(name, str) and isinstance(recipe, Mapping)):
                raise DapError(f"{shown(where)}: a cell is not the name of a folder and a recipe. {AGAIN}")
            cells.append((name, Recipe.parse(recipe, str(where))))
        kind: Any = values.get("kind", "cells")
        if kind == "set" and len(cells) != 1:
            raise DapError(f"{shown(where)}: a set is one cell, and here are {len(cells)}. {AGAIN}")
        rest = (chosen["judging"], chosen["machine"], tuple(values["subsample"]), values["command"])
        return Grid(tuple(cells), Path(values["out"]), *rest, kind=kind)


def _chosen(values: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The judging and the machine of a job.

    Raises:
        DapError: a value does not fit, or is of another version.
    """
    _check_version("judging", Judging, values, where)
    return {"judging": fitted(values["judging"], Judging, where), "machine": _machine(values, where)}


def _machine(values: Mapping[str, Any], where: Path | str) -> Machine:
    """The machine of a job. The file of a job is no permission to run code."""
    _check_version("machine", Machine, values, where)
    return fitted({**values["machine"], "allow_code": False}, Machine, where)


def _check_version(
    part: str, kind: type[Judging] | type[Machine], values: Mapping[str, Any], where: Path | str
) -> None:
    if unknown := sorted(set(values[part]) - {field.name for field in fields(kind)}):  # of another version
        raise DapError(f"{shown(where)}: {part} has {shown(unknown[0])}, which this version of dap lacks. {AGAIN}")


AGAIN = "Start the command again that wrote it."

JUDGING = "judging.json"
"""The name of the file of a `JudgingJob`."""


class JudgingJob(FromFile, frozen=True):
    """The file that the parent of processes writes that train networks on sets; see `evaluate.evaluate`."""

    sets: Annotated[list[Text], Field(min_length=1, max_length=10**6)]
    data: Text | None
    classes: Annotated[list[Name], Field(max_length=10**6)] | None
    max_bad_fraction: Share | None
    split: Text | Plain | None
    out: Text | None
    judging: Plain
    machine: Plain


def read_judging(job: Path) -> dict[str, Any]:
    """The arguments of `evaluate.evaluate` in a file that its parent process wrote.

    Raises:
        DapError: the file cannot be read, or is damaged. The message names it.
    """
    found = read_json(job, as_read(JudgingJob))
    return {**found, **_chosen(found, job)}


TEACHER = "teacher.json"
"""The name of the file of a `TeacherJob`."""


class TeacherJob(FromFile, frozen=True):
    """The file that the parent of processes writes that train one network in step; see `teacher.train_teacher`."""

    data: Text
    out: Text
    classes: Annotated[list[Name], Field(max_length=10**6)] | None
    max_bad_fraction: Share | None
    split: Text | Plain | None
    network: Name | None
    protocol: Text
    epochs: Count | None
    changes: Plain | None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    machine: Plain


def read_teacher(job: Path) -> dict[str, Any]:
    """The arguments of `teacher.train_teacher` in a file that its parent process wrote.

    Raises:
        DapError: the file cannot be read, or is damaged. The message names it.
    """
    found = read_json(job, as_read(TeacherJob))
    return {**found, "machine": _machine(found, job)}


def written_teacher(arguments: Mapping[str, Any], folder: Path) -> AbstractContextManager[tuple[Path, list[str]]]:
    """Write the arguments of `teacher.train_teacher` into a file that lasts as long as the block, see `_written`.

    Args:
        arguments: the arguments, in which all paths are absolute.
        folder: the folder in which a folder for the file is made.
    """
    told = {**arguments, "machine": asdict(arguments["machine"])}
    return _written(told, TEACHER, folder, {name: told[name] for name in ("network", "protocol", "changes")})


def written_judging(arguments: Mapping[str, Any], folder: Path) -> AbstractContextManager[tuple[Path, list[str]]]:
    """Write the arguments of `evaluate.evaluate` into a file that lasts as long as the block, see `_written`.

    Args:
        arguments: the arguments, in which all paths are absolute.
        folder: the folder in which a folder for the file is made. All processes must see it.
    """
    told = {name: asdict(value) if name in ("judging", "machine") else value for name, value in arguments.items()}
    return _written(told, JUDGING, folder, told["judging"])


def written(grid: Grid, folder: Path | None = None) -> AbstractContextManager[tuple[Path, list[str]]]:
    """Write the file of a grid into a new folder that lasts as long as the block, see `_written`.

    Args:
        grid: the grid.
        folder: the folder in which the new folder is made. Default: that of the system for temporary files.
    """
    told = grid.dump()
    return _written(told, "grid.json", folder, [[recipe for _, recipe in told["cells"]], told["judging"]])


@contextmanager
def _written(told: Mapping[str, Any], name: str, folder: Path | None, named: Any) -> Iterator[tuple[Path, list[str]]]:
    """Write the file of a job.

    Args:
        told: its content.
        name: its name, which says what kind of job it is.
        folder: see `written`.
        named: the values of it that may name code. What of it may run here may run in the processes too.

    Yields:
        The file, and the command line of `dap` with which a process shares the work.
    """
    with tempfile.TemporaryDirectory(prefix="dap-run-") if folder is None else passing_folder(folder) as made:
        job = Path(made) / name
        write_atomically(job, json.dumps(told, default=str).encode())
        yield job, ["worker", str(job), *_permission(named)]


def read_job(job: Path) -> Grid:
    """The grid in a file that `Grid.dump` wrote.

    Raises:
        DapError: the file cannot be read, or is damaged. The message names it.
    """
    return Grid.load(read_json(job, as_read(Job)), job)


def _permission(values: Any) -> list[str]:
    """The flags that let a process run the code among these values that this process may run."""
    named = asked_for(values)
    return [*(part for spec in named for part in ("--code", spec)), *(["--allow-code"] if code_is_allowed() else [])]
