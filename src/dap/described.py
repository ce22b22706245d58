"""What is said of an object that a Python user gives: its class, the code of the class, and what the object was made with."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.registry import GIVEN, code_of_class, code_of_function, text_of_code
from dap.data.sets.differences import hash_of_long
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there
from dap.guidance.base import Energy, Guidance
from dap.kernels import Kernel
from dap.methods.base import Method

log = logging.getLogger("dap")

DEEPEST = 12
"""How many objects deep a description goes. Deeper ones refer to themselves."""

LONGEST = 2000
"""How many characters of a value are kept. Of a longer one the record has a hash."""

OBJECTS = (Method, Guidance, Energy, Backbone, Kernel)
"""The classes whose objects are described by their arguments alone."""


def name_of(thing: Any) -> str:
    """The name of an object's class, as "module:Class"."""
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def describe(thing: Any) -> dict[str, Any]:
    """The class of an object, the hash of the code that defines the class, and the values the object was made with.

    Returns:
        "class": the name "module:Class".
        "code": what `code_of_class` gives.
        "values": the arguments of the class, each as its attribute of the same name, or of this name behind an underscore, has
            it, else as it was given. Numbers, texts, lists, mappings, arrays, tensors (by a hash), functions and objects with
            such arguments are described. Of a source of images nothing is, because a set keeps its fingerprint.
        "unknown": the arguments that cannot be described, if there are any.
    """
    described: dict[str, Any] = {"class": name_of(thing), **_code(type(thing))}
    # The backbones of this package are networks and settings, and the hash of their weights tells both.
    whole = isinstance(thing, Backbone) and type(thing).__module__.partition(".")[0] == "dap"
    values, unknown = _values_of(thing, DEEPEST) if isinstance(thing, OBJECTS) and not whole else ({}, [])
    described |= {"values": values} if values else {}
    return {**described, **({"unknown": unknown} if unknown else {})}


def check_goes_on(out: Path, inputs: Mapping[str, Any], total: int) -> None:
    """Check that a set whose objects cannot be described as a whole is not gone on with, since nobody can tell whether they are
    the same. Where it begins, a warning says so.

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
    advice = (
        "Keep what the object is made with in attributes of the same names, as numbers, texts, lists, arrays or tensors, or give "
        "the object by a name as file.py:Name"
    )
    made = len(DistilledSet.open(out)) if there(out, "classes.json") else 0
    if 0 < made < total:
        raise DapError(
            f"{out} holds {made} of {total} images, and {told}, so it cannot tell whether the others would be made with the same "
            f"object. {advice}; then give another --out."
        )
    if not made:
        log.warning("%s, so a set that is interrupted cannot go on. %s.", told, advice)


class _Unknown(Exception):
    """A value cannot be described."""


_ABSENT = object()


def _values_of(thing: Any, depth: int) -> tuple[dict[str, Any], list[str]]:
    """The values an object was made with, and the names of those that cannot be described. Only what the class takes as
    arguments counts, because a run changes other attributes, such as caches."""
    given: Mapping[str, Any] = getattr(thing, "__dict__", {}).get(GIVEN, {})
    found: dict[str, Any] = {}
    unknown: list[str] = []
    try:
        parameters = _parameters(type(thing))
    except _Unknown:
        return {}, ["the arguments"]
    for name, parameter in parameters.items():
        held = getattr(thing, name, getattr(thing, f"_{name}", _ABSENT))
        # What was filled in later, such as a cache in the place of a None, is none of the arguments.
        late = name in given and _plain(given[name]) and not _plain(held)
        told = [value for value in ((_ABSENT if late else held), given.get(name, _ABSENT)) if value is not _ABSENT]
        if not told and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        descriptions: list[Any] = []
        for value in told:
            try:
                descriptions.append(_hashed(thing, value) or _described(value, depth))
            except _Unknown:
                continue
        if not descriptions:
            unknown.append(name)
            continue
        found[name] = descriptions[0]
        if len(descriptions) > 1 and descriptions[1] != descriptions[0]:
            found[f"{name}, as given"] = descriptions[1]
    return found, unknown


def _hashed(thing: Any, value: Any) -> dict[str, Any]:
    """The description of a network or a pipeline in a backbone, whose weights have a hash of their own; {} for other values."""
    library = type(value).__module__.partition(".")[0] in ("torch", "diffusers", "transformers")
    network = isinstance(value, nn.Module) or (library and hasattr(value, "config"))
    return {"class": name_of(value)} if isinstance(thing, Backbone) and network else {}


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        raise _Unknown from None
    return {} if kind.__init__ is object.__init__ else parameters


def _described(value: Any, depth: int) -> Any:
    """A value as JSON that is the same for equal values and, as far as can be told, another one for others.

    Raises:
        _Unknown: nothing can be told of it.
    """
    if not depth:
        raise _Unknown
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return _short(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, enum.Enum):
        return {"class": name_of(value), "name": value.name}
    if isinstance(value, (complex, Path, torch.dtype, range, slice)):
        return {"class": name_of(value), "value": str(value)}
    if isinstance(value, torch.device):  # it decides no more than a rounding
        return {"class": name_of(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return _array(flat.view(torch.uint8).numpy().tobytes(), str(value.dtype), value.shape)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        return _array(value.tobytes(), str(value.dtype), value.shape)
    if isinstance(value, (list, tuple)):
        return _short([_described(one, depth - 1) for one in value])
    if isinstance(value, (set, frozenset)):
        return {"set": _short(sorted((_described(one, depth - 1) for one in value), key=json.dumps))}
    if isinstance(value, Mapping):
        pairs = [[_described(key, depth - 1), _described(one, depth - 1)] for key, one in value.items()]
        if all(isinstance(key, str) for key, _ in pairs):
            return _short(dict(pairs))
        return {"pairs": _short(pairs)}
    if isinstance(value, BuiltinFunctionType):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    if isinstance(value, FunctionType):
        return _function(value, depth)
    if isinstance(value, type):
        return {"type": f"{value.__module__}:{value.__qualname__}", **_code(value)}
    return _object(value, depth)


def _object(value: Any, depth: int) -> dict[str, Any]:
    """The description of an object inside another one: its class and what it was made with, or a hash that it has of itself."""
    said = {"class": name_of(value), **_code(type(value))}
    if isinstance(value, Backbone):
        return {**said, "weights": value.weights_hash()}
    if isinstance(value, nn.Module):
        state = {name: _described(one, depth - 1) for name, one in value.state_dict().items()}
        return {**said, "text": _short(repr(value)), "weights": _hash(json.dumps(state, sort_keys=True))}
    if callable(fingerprint := getattr(value, "fingerprint", None)):  # a source, a bank of features
        return {**said, "fingerprint": _described(fingerprint(), depth - 1)}
    if isinstance(value, BaseModel):
        return {**said, **{name: _described(getattr(value, name), depth - 1) for name in type(value).model_fields}}
    ours = type(value).__module__.partition(".")[0] == "dap"
    if ours or isinstance(value, OBJECTS) or dataclasses.is_dataclass(value):
        values, unknown = _values_of(value, depth - 1)
        if unknown:
            raise _Unknown
        return {**said, **values}
    if not (hasattr(value, "__dict__") and "code" in said) or "unknown" in said["code"].values():
        raise _Unknown  # such as an open file or an iterator, whose state nobody sees
    return {**said, **{str(name): _described(one, depth - 1) for name, one in vars(value).items()}}


def _function(function: FunctionType, depth: int) -> dict[str, Any]:
    """A function by the code of its file and by what it holds of its surroundings."""
    code = code_of_function(function)
    try:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        raise _Unknown from None
    if code == "unknown":
        raise _Unknown
    more = {"holds": held, "defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    kept = {name: _described(one, depth - 1) for name, one in more.items() if one}
    # Two functions of one file may have one name, as lambdas do, and even stand on one line.
    marks = (function.__code__.co_names, [c for c in function.__code__.co_consts if _plain(c)])
    lines = _hash(text_of_code(function) + repr(marks))
    return {"function": f"{function.__module__}:{function.__qualname__}", "code": code, "text": lines, **kept}


def _code(kind: type) -> dict[str, Any]:
    code = code_of_class(kind)
    return {"code": code} if code else {}


def _array(data: bytes, kind: str, shape: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "dtype": kind, "shape": list(shape)}


def _short(value: Any) -> Any:
    """A value, or its hash where it is long, since people read these records."""
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= LONGEST else hash_of_long(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
