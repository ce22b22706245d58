"""Reads the recipe files that ship with dap, and the published values that a recipe is expected to reproduce."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from dap.base.documents import LARGEST_YAML, read_text
from dap.base.errors import DapError
from dap.base.fields import Chosen, Name
from dap.base.mistakes import explain
from dap.base.parsing import parse_yaml, shown
from dap.base.registry import suggest


class Value(Chosen, frozen=True):
    """One published accuracy of a network trained on the distilled set and tested on the real test images.

    Attributes:
        network: the name of the network in `evaluation.training.networks`.
        labels: "hard" for the set's own labels, "soft" for the labels of a teacher.
        protocol: the shipped protocol that is the published one, as far as is known. A report shows the value beside
            accuracies by this protocol alone. None if it is not known; the report then shows the value nowhere.
        mean: the accuracy in percent, 0 … 100.
        std: the standard deviation over trainings, in percentage points. None if none is published.
        source: the place where the value is published, and how it was read there.
    """

    network: Name
    labels: Literal["hard", "soft"]
    protocol: Name | None = None
    mean: float = Field(ge=0, le=100)
    std: float | None = Field(default=None, ge=0, le=100)
    source: str


class Expected(Chosen, frozen=True):
    """The `expected` section of a recipe: published values, or a note that says why there are none.

    Attributes:
        values: at most one value for each network and kind of labels.
        note: a text on what a reader should know about the values.
    """

    values: tuple[Value, ...] = Field(default=(), max_length=1000)
    note: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Expected:
        if not (self.values or self.note):
            raise ValueError("give values, or a note that says why there are none")
        of = [(value.network, value.labels) for value in self.values]
        if len(of) > len(set(of)):
            raise ValueError("two values for the same network and labels")
        return self


def names() -> list[str]:
    """The names of the shipped recipes, sorted. The names of their small twins begin with "smoke/"."""
    return sorted(file.relative_to(_folder()).with_suffix("").as_posix() for file in _folder().rglob("*.yaml"))


def read(path: str | Path) -> dict[str, Any]:
    """The raw values of a YAML file, or of a shipped recipe given by name.

    Raises:
        DapError: there is no such file and no such name, or the file is not a YAML mapping.
    """
    return read_with_text(path)[0]


def read_with_text(path: str | Path) -> tuple[dict[str, Any], str]:
    """The raw values as of `read`, and the text of the file, in which the line of a wrong value can be looked up.

    Raises:
        DapError: as for `read`.
    """
    file = Path(path)
    if not os.path.lexists(file) or file.is_dir():
        known = names()
        if (name := file.as_posix().removesuffix(".yaml")) not in known:
            said = f"There is no recipe file {shown(path)} and no shipped recipe of that name."
            blank = "If this word belongs to the flag before it, write no blank after a comma, or put the whole value in quotes."
            raise DapError(f"{said} {suggest(shown(name), known)} {blank}")
        file = _folder() / f"{name}.yaml"
    text = read_text(file, LARGEST_YAML)
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise DapError(f"{shown(path)} should hold a mapping such as 'method: dap'.")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise DapError(
            f"{shown(path)}: the key {str(odd[0])[:40]!r} is no name of a field. {suggest('', ['method', 'ipc'])}"
        )
    return values, text


def expected(path: str | Path) -> Expected | None:
    """The values that a recipe is expected to reproduce. None if the recipe has no section `expected`.

    Args:
        path: a recipe file, or the name of a shipped recipe.

    Raises:
        DapError: `read` cannot read the recipe, or the section is wrong.
    """
    return expected_of(read(path), path)


def expected_of(values: Mapping[str, Any], where: str | Path, text: str | None = None) -> Expected | None:
    """The checked `expected` section of a recipe's raw values. None if there is no such section.

    Args:
        values: the raw values of the recipe.
        where: the file or name of the recipe, for the message.
        text: the text of the file, in which the line of a wrong value is looked up.

    Raises:
        DapError: a key is unknown or missing, a value is wrong, or the section is empty. The message names the place.
    """
    if "expected" not in values:
        return None
    section = {} if values["expected"] is None else values["expected"]
    try:
        return Expected.model_validate(section)
    except ValidationError as error:
        said = explain(error, Expected, text, within="expected")
        raise DapError(f"{shown(where)} cannot be used. {said}") from error


def _folder() -> Path:
    return Path(str(files("dap"))) / "recipes"
