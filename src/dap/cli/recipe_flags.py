"""One flag of the command line for every field of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def recipe_fields() -> list[tuple[str, Any]]:
    """Every field of a recipe as (dotted name, pydantic field)."""
    from dap.recipe import keywords

    return list(keywords().values())


def flag_of(field: str) -> str:
    """The flag of a recipe field, without its dashes."""
    from dap.recipe import KEYWORDS

    return KEYWORDS.get(field, field.split(".")[-1]).replace("_", "-")


def add_recipe_flags(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """One flag for every field, those named in `without` left out."""
    group = parser.add_argument_group("recipe")
    for name, field in recipe_fields():
        if name in without:
            continue
        kind = field.annotation
        options: dict[str, Any] = {"dest": name, "help": (field.description or "").replace("%", "%%")}
        if field.default is not None and field.default != "":
            options["help"] += f" Default: {field.default}."
        arms = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        arms = tuple(get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in arms)
        choices = [c for arm in arms if get_origin(arm) is Literal for c in get_args(arm)]
        if name == "options":
            text = "one of the method's own options, as YAML (dap methods NAME lists them); may be repeated"
            group.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=text)
            continue
        if name == "data.classes":
            options |= {"nargs": "+", "metavar": "NAME"}
        elif choices and int not in arms:
            options["choices"] = choices
        elif bool in arms:
            options["choices"] = ["true", "false"]
        else:
            plain = next((a.__name__.upper() for a in arms if isinstance(a, type)), "VALUE")
            options["metavar"] = "|".join([plain, *choices])
        group.add_argument(f"--{flag_of(name)}", **options)
