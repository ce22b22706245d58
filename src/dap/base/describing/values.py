"""A value as JSON that is the same for equal values and, as far as can be told, another one for others."""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dap.base.describing.code import attributes_of, from_library, functions_of, installed, marks, read_by
from dap.base.describing.hashes import hash_of, hash_of_long

DEEPEST = 12
"""How many objects deep a description goes. Deeper ones refer to themselves."""

LONGEST = 2000
"""How many characters of a value are kept. Of a longer one the record has a hash."""

STREAMS = (Iterator, torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
"""What gives something else at each use. Nobody can tell what of it was used when."""


class Unknown(Exception):
    """A value cannot be described."""


Own = Callable[[Any, "Describer", int], "dict[str, Any] | None"]
"""Describes an object of a class that the caller knows, with a describer and at a depth. None for other objects."""


def nobody(value: Any, describer: Describer, depth: int) -> None:
    """An `Own` that knows no class."""
    del value, describer, depth


def name_of(thing: Any) -> str:
    """The name of an object's class, as "module:Class"."""
    return _name(type(thing))


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


class Describer:
    """Describes the values of one object.

    Args:
        own: describes objects of classes that are known better.
    """

    def __init__(self, own: Own = nobody) -> None:
        self._own = own
        # What is being described has its name here, so that code that refers to itself comes to an end.
        self._code: dict[FunctionType | type, str] = {}

    def described(self, value: Any, depth: int = DEEPEST) -> Any:
        """A value as JSON.

        Args:
            value: any value.
            depth: how many objects deep the description goes.

        Raises:
            Unknown: something in it cannot be described, such as an open file.
        """
        if not depth:
            raise Unknown
        inner = functools.partial(self.described, depth=depth - 1)
        value = _of_python(value)
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return short(value) if kind is str else value
        if kind is float:
            return value if math.isfinite(value) else {"number": str(value)}
        if isinstance(value, enum.Enum):
            return {"class": name_of(value), "name": value.name}
        if kind in (complex, range, slice) or isinstance(value, (Path, torch.dtype)):
            return {"class": name_of(value), "value": str(value)}
        if isinstance(value, torch.device):  # it decides no more than a rounding
            return {"class": name_of(value)}
        if kind in (bytes, bytearray):
            return {"bytes": hashlib.sha256(value).hexdigest()}
        if isinstance(value, Tensor):
            return _tensor(value)
        if kind is np.ndarray and value.dtype.kind in "biufcSU":
            return _array(value.tobytes(), str(value.dtype), value.shape)
        # Of a class that derives from one of these, a list alone does not say all: see `_object`.
        if kind in (list, tuple):
            return short([inner(one) for one in value])
        if kind in (set, frozenset):
            return {"set": short(_sorted(inner(one) for one in value))}
        if kind in (dict, MappingProxyType):
            pairs = [[inner(key), inner(one)] for key, one in value.items()]
            if all(isinstance(key, str) for key, _ in pairs):
                return short(dict(pairs))
            return {"pairs": short(_sorted(pairs))}
        if kind is functools.partial:
            return {"partial": [inner(one) for one in (value.func, value.args, value.keywords)]}
        if kind is MethodType:
            return {"method": inner(value.__func__), "of": inner(value.__self__)}
        if kind in (BuiltinFunctionType, MethodWrapperType):
            holder = value.__self__
            of = {} if holder is None or isinstance(holder, (type, ModuleType)) else {"of": inner(holder)}
            return {"function": f"{getattr(value, '__module__', None)}:{value.__qualname__}", **of}
        if kind is FunctionType:
            return self._function(value, inner)
        if isinstance(value, type):
            return {"type": _name(value), **self.code_of_kind(value, inner)}
        return self._own(value, self, depth) or self._object(value, inner)

    def _object(self, value: Any, inner: Inner) -> dict[str, Any]:
        """The description of an object: its class and a hash that it has of itself, or what a copy of it is made of."""
        said = {"class": name_of(value), **self.code_of_kind(type(value), inner)}
        if isinstance(value, nn.Module):
            return {**said, **self._network(value, inner)}
        if callable(fingerprint := getattr(value, "fingerprint", None)):  # a source, a bank of features
            return {**said, "fingerprint": inner(fingerprint())}
        if isinstance(value, BaseModel):
            return {**said, **{name: inner(getattr(value, name)) for name in type(value).model_fields}}
        if isinstance(value, STREAMS):
            raise Unknown
        try:
            parts = _copied(value)
        except Exception:  # each class says in its own words that it cannot be copied
            raise Unknown from None
        if isinstance(parts, str):
            return {**said, "value": parts}
        make, arguments, *more = parts
        state, items, pairs = (*more, None, None, None)[:3]
        made = arguments[1:] if getattr(make, "__name__", "") == "__newobj__" else (make, *arguments)
        told = {"made": made, "state": state, "items": list(items or ()), "pairs": list(pairs or ())}
        return {**said, **{name: inner(one) for name, one in told.items() if one}}

    def _network(self, network: nn.Module, inner: Inner) -> dict[str, Any]:
        """A network by its weights, and by the classes and the attributes of its parts."""
        parts: list[Any] = []
        code: dict[str, str] = {}
        for name, part in network.named_modules():
            kept = {name: value for name, value in vars(part).items() if name not in _TORCHS and counts(value)}
            parts.append([name, name_of(part), part.training, inner(kept)])
            code |= self.code_of_kind(type(part), inner).get("code", {})
        state = {**dict(network.named_buffers()), **network.state_dict()}
        weights = hash_of({name: inner(one) for name, one in state.items()})
        return {"parts": hash_of(parts), "weights": weights, **({"code": code} if code else {})}

    def _function(self, function: FunctionType, inner: Inner) -> dict[str, Any]:
        """A function by what it runs and by what it holds of its surroundings."""
        more = {"holds": _held(function), "defaults": function.__defaults__, "keywords": function.__kwdefaults__}
        said = {"function": _name(function), **{name: inner(one) for name, one in more.items() if one}}
        return said if from_library(function) else {**said, "code": self._reached(function, inner)}

    def code_of_kind(self, kind: type, inner: Inner | None = None) -> dict[str, dict[str, str]]:
        """Under the key "code", for a class and each class that it derives from, a hash of its functions and of its attributes,
        by "module:Class". Classes of Python, of this package and of libraries are left out; {} where there are no others.

        Raises:
            Unknown: a function of the class holds something of its surroundings that cannot be described.
        """
        own = [one for one in kind.__mro__ if not from_library(one)]
        code = {_name(one): self._reached(one, inner or self.described) for one in own}
        return {"code": code} if code else {}

    def _reached(self, root: FunctionType | type, inner: Inner) -> str:
        """A hash of what a function or the functions of a class run, with all of the user's own that they refer to.

        What a function holds of its surroundings must be described; of the global names that it reads, only what can be.
        """
        if root in self._code:
            return self._code[root]
        self._code[root] = _name(root)
        left, seen, told = [root], set[int](), list[Any]()

        def tell(value: Any) -> Any:
            if isinstance(value, (FunctionType, type)) and not installed(value):
                left.append(value)
                return _name(value)
            return inner(value)

        try:
            while left:
                one = left.pop(0)
                if id(one) in seen:
                    continue
                seen.add(id(one))
                if isinstance(one, FunctionType):
                    held = [*_held(one), *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
                    told.append([marks(one.__code__), [tell(value) for value in held], _known(read_by(one), tell)])
                else:
                    left += [function for function in functions_of(one) if not from_library(function)]
                    left += [base for base in one.__bases__ if one is not root and not installed(base)]
                    told.append([_name(one), _known(attributes_of(one), tell)])
        except Unknown:
            del self._code[root]
            raise
        self._code[root] = hash_of(told)
        return self._code[root]


Inner = Callable[[Any], Any]
"""Describes a value inside another one."""

_TORCHS = frozenset(vars(nn.Module()))


def counts(value: Any) -> bool:
    """Whether a value that nobody gave, such as an attribute that a class has made itself, says what an object does. Lists and
    mappings do not count, because they are where objects keep what they found out."""
    if isinstance(value, tuple):
        return all(map(counts, value))
    kinds = (bool, int, float, complex, str, np.generic, np.ndarray, Tensor, nn.Module, FunctionType)
    return value is None or isinstance(value, kinds)


def _of_python(value: Any) -> Any:
    """A number or a text of numpy as one of Python, if Python has such a one."""
    return value.item() if isinstance(value, np.generic) and value.dtype.kind in "biufcSU" else value


def _copied(value: Any) -> Any:
    """What `copy` and `pickle` make a copy of an object of."""
    if isinstance(value, functools._lru_cache_wrapper):  # for which this is a name
        return functools.lru_cache, (value.__wrapped__,)
    known = copyreg.dispatch_table.get(type(value))
    return known(value) if known else value.__reduce_ex__(4)


def _held(function: FunctionType) -> list[Any]:
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # the surrounding function has not filled it yet
        raise Unknown from None


def _known(values: Iterable[Any], tell: Inner) -> list[Any]:
    """The descriptions of those values that can be described."""
    found: list[Any] = []
    for value in values:
        with contextlib.suppress(Unknown):
            found.append(tell(value))
    return found


def _tensor(value: Tensor) -> dict[str, Any]:
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise Unknown
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return _array(flat.view(torch.uint8).numpy().tobytes(), str(value.dtype), value.shape)


def _array(data: bytes, kind: str, shape: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "dtype": kind, "shape": list(shape)}


def _sorted(descriptions: Iterable[Any]) -> list[Any]:
    return sorted(descriptions, key=functools.partial(json.dumps, sort_keys=True))


def short(value: Any) -> Any:
    """A description, or its hash where it is long, since people read these records."""
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= LONGEST else hash_of_long(value)
