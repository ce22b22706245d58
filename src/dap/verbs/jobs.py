"""What a parent process hands to the processes that share its work: a grid of sets, in a file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dap.base.documents import fitted, read_json
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Inside, Text
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
        kind: Any = values.get("kind", "cells")
        if kind == "set" and len(cells) != 1:
            raise DapError(f"{shown(where)}: a set is one cell, and here are {len(cells)}. {AGAIN}")
        rest = (judging, machine, tuple(values["subsample"]), values["command"])
        return Grid(tuple(cells), Path(values["out"]), *rest, kind=kind)


AGAIN = "Start the command again that wrote it."


@contextmanager
def written(grid: Grid, folder: Path | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Write the file of a grid into a new folder that lasts as long as the block.

    Args:
        grid: the grid.
        folder: the folder in which the new folder is made. Default: that of the system for temporary files.

    Yields:
        The file, and the command line of `dap` with which a process shares the work.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as made:
        job, dumped = Path(made) / "grid.json", grid.dump()
        job.write_text(json.dumps(dumped, default=str), encoding="utf-8")
        yield job, ["worker", str(job), *permission(dumped)]


def read_job(job: Path) -> Grid:
    """The grid in a file that `Grid.dump` wrote.

    Raises:
        DapError: the file cannot be read, or is damaged. The message names it.
    """
    return Grid.load(read_json(job, as_read(Job)), job)


def permission(dumped: Mapping[str, Any]) -> list[str]:
    """The flags that let a worker run the code of a grid that this process may run."""
    named = asked_for([[recipe for _, recipe in dumped["cells"]], dumped["judging"]])
    return [*(part for spec in named for part in ("--code", spec)), *(["--allow-code"] if code_is_allowed() else [])]
