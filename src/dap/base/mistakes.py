"""Says in sentences what pydantic found wrong with values, whoever gave them: a file, a flag, or a caller in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dap.base.errors import suggest
from dap.base.parsing import brief, line_of, shown

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

KIND = re.compile(r"(constrained|function|lax|literal|nullable)\W.*|int|float|str|bool", re.DOTALL)
"""What pydantic adds to the place of a value that may be of several kinds: the name of the kind."""

MOST = 5
"""How many wrong values a message names."""


PLAIN = {
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    ", got a number with a fractional part": "",
    "Input should be": "The value should be",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a mapping of names to values",
}
"""Words of pydantic in plain words."""


def problems(
    error: ValidationError,
    model: type[BaseModel] | None = None,
    text: str | None = None,
    *,
    within: str = "",
    most: int = MOST,
) -> list[str]:
    """One clause for each wrong value: its line, its place, what is wrong, and what was given.

    Args:
        error: what pydantic found wrong.
        model: the model, for values that a person chose. For an unknown key the clause then lists the known ones, and a word
            that must stand in quotes is told.
        text: the text that the values come from, in which the lines of wrong values are looked up.
        within: the name of the section that was checked, if it is one of a larger text.
        most: how many wrong values get a clause.
    """
    said = []
    for problem in _joined(error)[:most]:
        place: tuple[int | str, ...] = (*([within] if within else []), *problem["loc"])
        line = None if text is None else line_of(text, place)
        said.append((f"line {line}: " if line else "") + _clause(problem, _place(place), model))
    return said


def _joined(error: ValidationError) -> list[dict[str, Any]]:
    """The wrong values, each once. pydantic tells of a value that may be of several kinds once for each kind, and names the
    kind as a part of the place."""
    found: list[dict[str, Any]] = []
    for problem in map(dict[str, Any], error.errors(include_url=False)):
        loc = problem["loc"]
        kinds = len(loc) > 1 and isinstance(loc[-1], str) and KIND.fullmatch(loc[-1]) is not None
        problem["loc"] = loc[:-1] if kinds else loc
        if kinds and found and found[-1]["loc"] == problem["loc"]:
            found[-1]["msg"] = f"{found[-1]['msg'].rstrip('.')}, or {reason(problem)}"
        else:
            found.append(problem)
    return found


def _clause(problem: Mapping[str, Any], place: str, model: type[BaseModel] | None) -> str:
    if problem["type"] == "missing":
        return f"the key {place!r} is missing"
    # A check of ours names the wrong part of a list or a mapping itself.
    whole = problem["type"] == "value_error" and isinstance(problem["input"], (Mapping, list, tuple))
    given = "" if whole else f" (given: {brief(problem['input'])})"
    at = f"{place}: " if place else ""
    if problem["type"] != "extra_forbidden":
        quotes = "; put it in quotes" if model is not None and problem["type"] == "string_type" else ""
        return f"{at}{reason(problem)}{quotes}{given}"
    if model is None:
        return f"{at}there is no such key{given}"
    known = suggest(_place(problem["loc"][-1:]), _known(model, problem["loc"])).rstrip(".")
    return f"unknown key {place!r}. {known}"


def reason(problem: Mapping[str, Any]) -> str:
    """What is wrong with one value, in pydantic's words or those of a check of ours, without its place."""
    said = problem["msg"].removeprefix("Value error, ").rstrip(".")
    for words, plain in PLAIN.items():
        said = said.replace(words, plain)
    return said[:1].lower() + said[1:]


def told(error: ValidationError, where: Path | str, text: str | None = None) -> str:
    """What is wrong with a document, as one sentence: file, line, place, what is wrong, and what was given."""
    return placed(where, "; ".join([*problems(error, text=text), *_more(error)]))


def placed(where: Path | str, said: str) -> str:
    """Clauses of `problems` as a sentence that begins with a file or another place."""
    return f"{shown(where)}{', ' if said.startswith('line ') else ': '}{said}."


def explain(error: ValidationError, model: type[BaseModel], text: str | None = None, *, within: str = "") -> str:
    """One sentence for each wrong value that a person chose. For an unknown key the sentence lists the known keys.

    Args:
        error, model, text, within: as for `problems`.
    """
    said = problems(error, model, text, within=within)
    said = [
        f"{one[0].upper()}{one[1:]}" if one.startswith(("line ", "unknown key", "the key")) else one for one in said
    ]
    return " ".join(f"{one}." for one in [*said, *(one.capitalize() for one in _more(error))])


def _more(error: ValidationError) -> list[str]:
    left = len(_joined(error)) - MOST
    return [f"and {left} more"] if left > 0 else []


def _place(parts: tuple[int | str, ...]) -> str:
    said = ".".join(str(part)[:80] for part in parts)
    return shown("".join(letter if letter.isprintable() else " " for letter in said))


def _known(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The fields of the model that holds the last part of a place."""
    inside = [model]
    for part in place[:-1]:
        fields = [one.model_fields[str(part)] for one in inside if str(part) in one.model_fields]
        inside = [inner for field in fields for inner in _models(field.annotation)] or inside
    return list(dict.fromkeys(name for one in inside for name in one.model_fields))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, such as those of a list of models."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
