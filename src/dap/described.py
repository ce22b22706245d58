"""What is said of an object that a Python user gives: its class, what the class runs, and what the object was made with."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from dap.backbones.base import Backbone
from dap.base.describing.backbones import of_backbone
from dap.base.describing.code import knows_itself, of_dap
from dap.base.describing.networks import held_by, hooks, is_network
from dap.base.describing.values import DEEPEST, Describer, Unknown, counts, name_of
from dap.base.errors import DapError
from dap.base.registry import GIVEN
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there
from dap.guidance.base import Energy, Guidance
from dap.kernels import Kernel
from dap.methods.base import Method

log = logging.getLogger("dap")

OBJECTS = (Method, Guidance, Energy, Backbone, Kernel)
"""The classes whose objects remember their arguments."""

CHANGED = "_dap_changed"
"""The attribute that holds the descriptions of an object before and after runs that used it."""


def describe(thing: Any) -> dict[str, Any]:
    """The class of an object, hashes of what the class runs, the values the object was made with, and what it holds.

    What a run has changed of the object is described as it was before, see `changed`.

    Returns:
        "class": the name "module:Class".
        "code": what `Describer.code_of_kind` gives: for each class of the user a hash of its functions and attributes, and of
            the functions, classes and global values of the user that they refer to. Of an installed class only the version of
            its package counts, and of what else is installed only the name.
        "python": the version of Python that the hashes belong to, if there are any.
        "values": the arguments of the class, each as its attribute of the same name, or of this name behind an underscore, has
            it, else as it was given. Numbers, texts, lists, mappings, arrays, tensors (by a hash), networks, functions, and
            objects that could be copied are described. Of an object of a user's class the other attributes count as well, if
            they are of the kinds that `values.counts` names, or objects of `OBJECTS`. Networks count with all that
            `Describer.network` tells. Of a source of images nothing is described, because a set keeps its fingerprint.
        "unknown": the arguments, or the code, that cannot be described, if there are any.
    """
    told = _told(thing)
    before, after = getattr(thing, "__dict__", {}).get(CHANGED, (told, told))
    told = {part: _undone(said, before[part], after[part]) for part, said in told.items()}
    said = {
        "code": told["code"],
        "python": _python() if _has_code(told) else "",
        "values": told["values"],
        "unknown": list(told["unknown"]),
    }
    return {"class": name_of(thing), **{name: value for name, value in said.items() if value}}


def changed(thing: Any, before: Mapping[str, Any]) -> None:
    """Keep what runs have changed of an object, such as a cache that was filled. Then it is still the same object for its set,
    and what the user changes afterwards is seen.

    Args:
        thing: an object of `OBJECTS`.
        before: what `describe` said of it before the runs.
    """
    parts = {part: before.get(part, {}) for part in ("code", "values")}
    vars(thing)[CHANGED] = ({**parts, "unknown": dict.fromkeys(before.get("unknown", ()), "")}, _told(thing))


def _told(thing: Any) -> dict[str, dict[str, Any]]:
    """The parts of a description as the object is now."""
    describer, code, unknown = Describer(_own), {}, {}
    try:
        code = describer.code_of_kind(type(thing)).get("code", {})
    except Unknown as why:
        unknown[f"{CODE} ({why})" if str(why) else CODE] = ""
    # The backbones of this package are networks and settings, and the hash of their weights tells both.
    whole = isinstance(thing, Backbone) and of_dap(type(thing))
    with describer.opened({id(thing): "itself"}):
        values, lacking = ({}, []) if whole or not isinstance(thing, OBJECTS) else _values_of(thing, describer, DEEPEST)
    return {"code": code, "values": values, "unknown": unknown | dict.fromkeys(lacking, "")}


CODE = "the code"
"""How a record begins to say that code cannot be described."""


def _undone(told: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a description, in which everything that is still as a run left it is as it was before the run."""
    found: dict[str, Any] = {}
    for name in [*told, *(name for name in before if name not in told)]:
        as_left = told.get(name, _ABSENT) == after.get(name, _ABSENT)
        if (value := (before if as_left else told).get(name, _ABSENT)) is not _ABSENT:
            found[name] = value
    return found


def _python() -> str:
    """The version of Python, and whether it leaves out what only checks. Then other instructions run."""
    return f"{sys.version_info.major}.{sys.version_info.minor}{'' if __debug__ else ' with -O'}"


def _has_code(description: Any) -> bool:
    if isinstance(description, Mapping):
        return bool(description.get("code")) or any(map(_has_code, description.values()))
    return isinstance(description, list) and any(map(_has_code, description))


def check_goes_on(out: Path, inputs: Mapping[str, Any], total: int) -> None:
    """Check that a set whose objects cannot be described as a whole is not gone on with, since nobody can tell whether they are
    the same. Where it begins, or is whole already, a warning says so.

    Args:
        out: the folder of the set.
        inputs: the fingerprints of the set, with what `Objects.described` gives.
        total: the number of its images.

    Raises:
        DapError: some of the images are there and others lack.
    """
    unknown = [
        f"{name} of {role}" for role, said in inputs.get("objects", {}).items() for name in said.get("unknown", ())
    ]
    if not unknown:
        return
    told = f"dap cannot describe {', '.join(unknown)}"
    kinds = "numbers, texts, lists, arrays or tensors"
    advice = f"Keep what the object is made with in attributes of the same names, as {kinds}"
    if all(name.startswith(CODE) for name in unknown):
        advice = f"Let the closures, the defaults and the decorators of its functions hold only functions, {kinds}"
    advice += ", or give the object by a name as file.py:Name"
    made = len(DistilledSet.open(out)) if there(out, "classes.json") else 0
    if 0 < made < total:
        raise DapError(
            f"{out} holds {made} of {total} images, and {told}, so it cannot tell whether the others would be made with the same "
            f"object. {advice}; then give another --out."
        )
    if made:
        log.warning(
            "%s, so it cannot tell whether %s, which has all its images, was made with the same object. These images are "
            "returned, and none is made. Give another --out for a set that is surely of this object.",
            told,
            out,
        )
    else:
        log.warning("%s, so a set that is interrupted cannot go on. %s.", told, advice)


_ABSENT = object()


def _own(value: Any, describer: Describer, depth: int) -> dict[str, Any] | None:
    """The description of an object of this package, or of one that remembers its arguments, inside another object."""
    if said := of_backbone(value, describer, depth):
        return {**said, **describer.code_of_kind(type(value))}
    if knows_itself(type(value), "fingerprint"):  # a source, a bank of features
        return {"class": name_of(value), **describer.code_of_kind(type(value)), "fingerprint": value.fingerprint()}
    plain = isinstance(value, (nn.Module, BaseModel)) or not of_dap(type(value))
    if plain and not isinstance(value, OBJECTS):
        return None
    values, unknown = _values_of(value, describer, depth - 1)
    if unknown:
        raise Unknown
    return {"class": name_of(value), **describer.code_of_kind(type(value)), **values}


def _values_of(thing: Any, describer: Describer, depth: int) -> tuple[dict[str, Any], list[str]]:
    """The values an object was made with and holds, and the names of those arguments that cannot be described. Other attributes
    that cannot be described are left out."""
    given: Mapping[str, Any] = getattr(thing, "__dict__", {}).get(GIVEN, {})
    found: dict[str, Any] = {}
    unknown: list[str] = []
    try:
        parameters, held = _parameters(type(thing)), held_by(thing)
    except Exception:
        return {}, ["the arguments"]
    for name, parameter in parameters.items():
        told = [value for value in (_attribute(thing, name), given.get(name, _ABSENT)) if value is not _ABSENT]
        if not told and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        descriptions: list[Any] = []
        for value in {id(value): value for value in told}.values():  # mostly one value, which may be large
            with contextlib.suppress(Unknown):
                descriptions.append(_in(thing, value, describer, depth))
        if not descriptions:
            unknown.append(name)
            continue
        found[name] = descriptions[0]
        if len(descriptions) > 1 and descriptions[1] != descriptions[0]:
            found[f"{name}, as given"] = descriptions[1]
    if isinstance(thing, nn.Module) and (hung := hooks(thing)):
        try:
            found["hooks"] = describer.described(hung, depth)
        except Unknown:
            unknown.append("the hooks")
    arguments = {*parameters, *(f"_{name}" for name in parameters)}
    for name, value in held.items() if not of_dap(type(thing)) else ():
        if name in arguments or not (counts(value) or isinstance(value, OBJECTS)):
            continue
        with contextlib.suppress(Unknown):
            found[name] = _in(thing, value, describer, depth)
    return found, unknown


def _attribute(thing: Any, name: str) -> Any:
    """What an object holds of an argument; a property of this name may fail before a run."""
    for attribute in (name, f"_{name}"):
        with contextlib.suppress(Exception):
            return getattr(thing, attribute)
    return _ABSENT


def _in(thing: Any, value: Any, describer: Describer, depth: int) -> Any:
    """The description of a value in an object. Of a network or a pipeline in a backbone the weights have a hash of their own."""
    if not (isinstance(thing, Backbone) and is_network(value)):
        return describer.described(value, depth)
    return {"class": name_of(value), **(describer.network(value) if isinstance(value, nn.Module) else {})}


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        raise Unknown from None
    return {} if kind.__init__ is object.__init__ else parameters
