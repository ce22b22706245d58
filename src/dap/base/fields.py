"""Types of fields for what is read from files: each says its bounds once, so that no model forgets one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dap.base.parsing import halved


class FromFile(BaseModel, frozen=True):
    """A closed model of what a file may hold: no unknown key, no value of another type, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Chosen(BaseModel, frozen=True):
    """A closed model of what a user chooses: a recipe, a protocol, or a step of one.

    Texts that hold a number count as the number, because the command line and old files give texts. A truth value is no
    number. Texts have at most 10,000 characters, and nested values are small.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=10_000)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Refuse what no field can hold, before the field's own checks may turn it into something else."""
        wrong: list[InitErrorDetails] = []
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name in cls.model_fields and (problem := _unfit(value, _kinds(cls.model_fields[name].annotation))):
                error = PydanticCustomError("value_error", "{problem}", {"problem": problem})
                wrong.append({"type": error, "loc": (name,), "input": value})
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values


def _unfit(value: Any, kinds: set[Any]) -> str | None:
    """Why a value fits none of these types, in words; None where the types' own checks say all."""
    if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return None  # a section checks each of its own fields, and names it
    try:
        small(value)
    except ValueError as error:
        return str(error)
    if kinds & {Any, bool} or not _holds_truth(value):
        return None
    said = "true" if value is True else "false" if value is False else "one of these"
    what = 'put a word in quotes, as "yes"' if str in kinds else "a number is needed"
    return f"{said} is a truth value, as YAML reads yes, no, on, off, true and false; {what}"


def _kinds(annotation: Any) -> set[Any]:
    """Every type that an annotation names, those inside of it too."""
    return {annotation}.union(*(_kinds(inner) for inner in get_args(annotation)))


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, (list, tuple)) and any(isinstance(v, bool) for v in value))


def small(value: Any, deepest: int = 16, largest: int = 200_000) -> None:
    """Check that a nested value of lists and mappings is small and holds only what a file of JSON can hold.

    Args:
        value: the value.
        deepest: how many lists and mappings may lie inside each other.
        largest: how many values there may be in all.

    Raises:
        ValueError: it is nested more deeply, holds more values, a key that is no text, a text with a NUL, or a number
            that is not finite or does not fit 64 bits.
    """
    level, seen = [value], 0
    for _ in range(deepest + 1):
        seen += len(level)
        if seen > largest:
            raise ValueError(f"there are more than {largest:,} values in it")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                _writable(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"{one} is not a finite number")
            elif isinstance(one, int) and not -(2**63) <= one < 2**64:
                raise ValueError("a whole number in it does not fit 64 bits")
            elif isinstance(one, dict):
                if wrong := next((key for key in one if not isinstance(key, str)), None):
                    raise ValueError(f"the key {str(wrong)[:40]!r} is no text; put it in quotes")
                inner += [*one.keys(), *one.values()]
            elif isinstance(one, (list, tuple)):
                inner += one
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {deepest} deep")


def _tiny(number: float) -> float:
    """Refuse a divisor by which float32 numbers become infinite."""
    if number < 1e-6:
        raise ValueError(f"{number} is too close to 0")
    return number


def _writable(text: str) -> str:
    """Refuse text that UTF-8 cannot hold or that ends early in a C string."""
    if "\0" in text or halved(text):
        raise ValueError("this text holds a NUL or half of a character")
    return text


def _inside(path: str) -> str:
    """Refuse a path that leads out of the folder it is in."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ".." in parts or any(len(p.encode()) > 255 for p in parts):
        raise ValueError("this path must lead to a file inside the folder, as images/cat/00000.png does")
    return path


Text = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_writable)]
"""Text of at most 10,000 characters that can be written to a file."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_writable)]
"""A name of at most 1,000 characters, such as that of a class."""
Inside = Annotated[
    str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_writable), AfterValidator(_inside)
]
"""A relative path that stays inside the folder of the file that names it. A symbolic link can still lead out: see
`files.inside`."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""The sha256 of a file, as 64 hex digits."""
Count = Annotated[int, Field(ge=0, le=10**9)]
"""A whole number from 0 to 10**9."""
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
"""A seed: a whole number from 0 to 2**64 - 1."""
RunSeed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The seed of a run: a whole number from 0 to 2**63 - 1."""
Images = Annotated[int, Field(ge=1, le=10**7)]
"""A number of images that are held or drawn together: 1 to 10**7."""
Slots = Annotated[int, Field(ge=1, le=100_000)]
"""A number of images of a class, or of things of which a set has no more: 1 to 100,000."""
Pixels = Annotated[int, Field(ge=1, le=16_384)]
"""A side of images in pixels: 1 to 16,384."""
Frames = Annotated[int, Field(ge=1, le=4096)]
"""A number of frames of a clip: 1 to 4,096."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction or a probability: 0 to 1."""
Strength = Annotated[float, Field(ge=0, le=10**9)]
"""A factor of a term: 0 to 10**9."""
Divisor = Annotated[float, Field(gt=0, le=10**6), AfterValidator(_tiny)]
"""A positive number by which others are divided: 10**-6 to 10**6."""
Number = Annotated[float, Field(ge=-(10**6), le=10**6)]
"""Any number from -10**6 to 10**6."""
