"""One flag for every field of a recipe, made from the pydantic models of `dap.recipe`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Group, Parameter

from dap.base.errors import DapError
from dap.cli.flags import Numbers, assignments, parameters
from dap.methods import SUMMARIES
from dap.recipe import Recipe, keywords

GROUPS = {
    "": Group("Recipe", sort_key=10),
    "data": Group("Recipe: real images", sort_key=11),
    "backbone": Group("Recipe: backbone", sort_key=12),
    "sampling": Group("Recipe: sampling", sort_key=13),
    "guidance": Group("Recipe: guidance", sort_key=14),
    "own_guidance": Group("Recipe: a guidance of your own", sort_key=15),
    "refine": Group("Recipe: refinement", sort_key=16),
}

DEFAULT = (
    "Default of dap distill: chosen by the images, the backbones of this machine and --budget, which is auto where a backbone "
    f"knows the images. Elsewhere: {Recipe.model_fields['method'].default}."
)


def recipe_fields() -> dict[str, tuple[str, Any]]:
    """Every field of a recipe by its dotted name: the field's flag without the dashes, and the pydantic field."""
    return {name: (keyword.replace("_", "-"), field) for keyword, (name, field) in keywords().items()}


def annotation(name: str, flag: str, field: Any) -> Any:
    """The type of a field's flag.

    Most flags are kept as the text that was typed. The reason is that flags may override a recipe file, so the whole
    recipe can be checked only when file and flags are put together. `Recipe.parse` does this check. A flag with a
    closed list of values is checked at once.
    """
    arms = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    arms = tuple(get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in arms)
    choices = [choice for arm in arms if get_origin(arm) is Literal for choice in get_args(arm)]
    says = field.description or ""
    if field.default is not None and field.default != "":
        several = isinstance(field.default, tuple)
        says += f" Default: {','.join(map(str, field.default)) if several else field.default}."
    about: dict[str, Any] = {"name": f"--{flag}", "group": GROUPS[name.rpartition(".")[0]]}
    if name == "options":
        says = "An option of the method's own, as YAML; dap methods NAME lists them. May be repeated."
        return Annotated[list[str], Parameter(name="--option", help=says, metavar="NAME=VALUE", group=about["group"])]
    if name == "method":
        says = f"One of {', '.join(SUMMARIES)}, or file.py:Name; dap methods explains each. {DEFAULT}"
        return Annotated[str, Parameter(**about, help=says, metavar="NAME", completer=lambda context: dict(SUMMARIES))]
    if name == "data.classes":
        return Annotated[list[str], Parameter(**about, help=says, metavar="NAME …", consume_multiple=(1, None))]
    if name == "data.split":
        return Annotated[str, Parameter(**about, help=says, metavar="SPLIT=FOLDER,…")]
    if name in ("refine.layers", "refine.times"):
        metavar = "LAYER,…" if name == "refine.layers" else "FLOAT,…"
        return Annotated[str, Parameter(**about, help=says, metavar=metavar)]
    if bool in arms:
        return Annotated[Literal["true", "false"], Parameter(**about, help=says)]
    if choices and not {int, float} & set(arms):
        return Annotated[Literal[tuple(choices)], Parameter(**about, help=says)]
    kind = next((arm.__name__.upper() for arm in arms if isinstance(arm, type)), "VALUE")
    metavar = "|".join([kind, *choices])
    return Annotated[str, Parameter(**about, help=says, metavar=metavar, allow_leading_hyphen=True)]


def recipe_flags(title: str, without: Collection[str] = ()) -> Any:
    """Flags for the fields of a recipe, as one dictionary: from a field's dotted name to the text that was given.

    Args:
        title: the name of the dictionary's type.
        without: dotted names of fields that get no flag.
    """
    return parameters(
        title, {name: annotation(name, *about) for name, about in recipe_fields().items() if name not in without}
    )


if TYPE_CHECKING:
    RecipeFlags = CommonFlags = dict[str, Any]
else:
    RecipeFlags = recipe_flags("RecipeFlags")
    CommonFlags = recipe_flags("CommonFlags", ("method", "ipc", "options"))  # `dap compare` varies these

Ipcs = Annotated[Numbers, Parameter(name="--ipc", group=GROUPS[""])]
"""Images per class of `dap compare`: one number or several."""


def recipe_values(recipe: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe file or a shipped recipe, overridden by the flags that were given.

    Args:
        recipe: the file or the name; None for no recipe.
        given: from the dotted name of a field to the text that was typed, as `RecipeFlags` holds it.

    Raises:
        DapError: there is no such recipe, or a section of the file is not a mapping.
    """
    values: dict[str, Any] = Recipe.load(recipe, given) if recipe else {}
    for name, value in given.items():
        if name == "options":
            continue
        section, _, leaf = name.rpartition(".")
        inside = values.setdefault(section, {}) if section else values
        if not isinstance(inside, dict):
            raise DapError(f"{section!r} in {recipe} should hold a mapping, not {inside!r}.")
        inside[leaf] = value
    if given.get("options"):
        options = assignments(given["options"], "--option", "NAME")
        values["options"] = {**(values.get("options") or {}), **options}
    return values


def varied(items: Sequence[str]) -> dict[str, list[str]]:
    """The fields and values of `--vary FLAG=V1,V2,…`, by the dotted name of the field.

    Raises:
        DapError: there is no such flag, or the flag has no values.
    """
    from dap.base.parsing import brief
    from dap.base.registry import suggest

    fields = {flag: name for name, (flag, _) in recipe_fields().items()}
    found = {}
    for item in items:
        flag, _, values = item.partition("=")
        if flag not in fields or not values:
            raise DapError(f"--vary takes FLAG=V1,V2,…, not {brief(item)}. {suggest(flag[:80], fields)}")
        found[fields[flag]] = values.split(",")
    return found
