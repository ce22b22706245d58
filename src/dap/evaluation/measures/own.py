"""Measures of one's own: code of the user that measures the images of a set. The report shows the numbers beside the
built-in measures.

A measure is a class or a function, named as `file.py:Name` or `package.module:Name`. A class is created without
arguments. The object or the function is called with a `Subject` and gives numbers by name: a mapping, or pairs that it
yields. A measure may have two attributes:

    better  "higher" or "lower", or a mapping from names of its numbers to these words; the report sorts and words by it
    text    what the numbers mean, in a few words; without it the first line of the docstring is taken

The numbers are kept under the hash of the file, so that an edited file is computed anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.registry import build, hash_of_code, resolve
from dap.data.real.base import Source
from dap.evaluation.training.fitting import seeded

TAKEN = frozenset(
    {
        "group",
        "table",
        "near_copies",
        "features",
        "by_class",
        "notes",
        "judged",
        "own",
        "confusion",
        "k",
        "classes",
        "images",
        "copies",
    }
)
"""Names in `measures.json` that a measure of the user must not use for its numbers."""

DIRECTIONS = ("higher", "lower", "")


@dataclass(frozen=True)
class Subject:
    """The argument of a measure of one's own.

    Attributes:
        images: the set's images (n, 3, h, w), or its clips (n, 3, frames, h, w), float32 in [0, 1], at the size at which the
            protocol trains.
        labels: labels (n,): for each image the position of its class in `class_names`.
        class_names: the classes, in the order of the real data.
        real: the real training images: `real.count(label)`, `real.images(label, indices)`.
        features: such images or clips -> (n, D), float64 on the CPU, by the network that the built-in measures use.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    real: Source
    features: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Own:
    """A measure of one's own, found and checked.

    Attributes:
        name: the name as the user gave it.
        call: the function that gives the numbers of a subject.
        better: the attribute `better` of the measure, see the module. A mapping says nothing about names that it lacks.
        text: what the numbers mean; may be empty.
        code: sha256 of the file; empty where there is no file.
    """

    name: str
    call: Callable[[Subject], Any]
    better: str | Mapping[str, str]
    text: str
    code: str

    def measured(self, subject: Subject, taken: Collection[str] = ()) -> dict[str, Any]:
        """The entry of this measure in `measures.json`: the numbers, what they mean, and the hash of the code.

        Args:
            subject: the images, and what to compare them with.
            taken: names that other measures have.

        Raises:
            DapError: the code failed, gave something else than finite numbers, or gave a name that is taken. The
                message is one sentence.
        """
        try:
            with seeded(0, torch.device("cpu")):
                given = self.call(subject)
                pairs = dict(given.items() if isinstance(given, Mapping) else given)
        except (
            Exception
        ) as error:  # somebody's own code may raise anything, and the trainings before it must not be lost
            raise DapError(
                f"The measure {self.name} failed: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        values = {name: self._number(name, value, taken) for name, value in pairs.items()}
        better = {name: self.better if isinstance(self.better, str) else self.better.get(name, "") for name in values}
        return {"values": values, "better": better, "text": self.text, "code": self.code}

    def _number(self, name: object, value: object, taken: Collection[str]) -> float:
        if not isinstance(name, str) or not name:
            raise DapError(f"The measure {self.name} gave a number under {name!r}; give each number a name.")
        if name in TAKEN or name in taken:
            raise DapError(
                f"The measure {self.name} gave {name!r}, which is another measure's name; choose another name."
            )
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            number = float("nan")
        if number != number or number in (float("inf"), float("-inf")):
            raise DapError(f"The measure {self.name} gave {value!r} for {name!r}; give a finite number.")
        return number


def own_measures(names: Iterable[str]) -> list[Own]:
    """The measures with these names, each once.

    Raises:
        DapError: there is no such file, module or name, the measure cannot be called, or its direction is unknown.
            These errors are found before any training.
    """
    return [_found(name) for name in dict.fromkeys(names)]


def _found(name: str) -> Own:
    if ":" not in name:
        raise DapError(f"A measure of your own is given as file.py:Name, not as {name!r}.")
    thing = resolve(name, {}, "measure")
    made = build(thing, name) if inspect.isclass(thing) else thing
    code = hash_of_code(name)
    if not callable(made):
        raise DapError(f"{name} cannot be called, so it is no measure; give a function, or a class with __call__.")
    better = getattr(made, "better", "")
    words: Sequence[object] = list(better.values()) if isinstance(better, Mapping) else [better]
    if any(word not in DIRECTIONS for word in words):
        raise DapError(f"{name} says that {better!r} is better; say 'higher', 'lower', or nothing.")
    said = getattr(made, "text", "") or next(iter((inspect.getdoc(thing) or "").splitlines()), "")
    return Own(name, made, dict(better) if isinstance(better, Mapping) else better, str(said).strip().rstrip("."), code)
