"""A value as JSON that is the same for equal values and, as far as can be told, another one for others."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import enum
import functools
import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dap.base.describing.code import (
    attributes_of,
    is_named,
    marks,
    name_of_code,
    of_user,
    parts_of,
    read_by,
    version_of,
)
from dap.base.describing.hashes import hash_of
from dap.base.describing.networks import attributes, held_by, hooks, lasts, script
from dap.base.describing.plain import HOLDS, Unknown, plain, short

DEEPEST = 12
"""How many objects deep a description goes."""

STREAMS = (Iterator, torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
"""What gives something else at each use. Nobody can tell what of it was used when."""

COUNTED = (
    *(bool, int, float, complex, str, bytes, range, slice, np.generic, np.ndarray, enum.Enum, Path, BaseModel),
    *(Tensor, torch.dtype, nn.Module, torch.jit.ScriptFunction),
    *(FunctionType, BuiltinFunctionType, np.ufunc, MethodType, functools.partial, type),
)
"""The kinds of values that say what an object does, even where nobody gave them: see `counts`."""


Own = Callable[[Any, "Describer", int], "dict[str, Any] | None"]
"""Describes an object of a class that the caller knows, with a describer and at a depth. None for other objects."""


def nobody(value: Any, describer: Describer, depth: int) -> None:
    """An `Own` that knows no class."""
    del value, describer, depth


def name_of(thing: Any) -> str:
    """The name of an object's class, as "module:Class"."""
    return name_of_code(type(thing))


class Describer:
    """Describes the values of one object.

    Args:
        own: describes objects of classes that are known better.
    """

    def __init__(self, own: Own = nobody) -> None:
        self._own = own
        # What is being described has its name here, so that code and values that refer to themselves come to an end.
        self._code: dict[FunctionType | type, str] = {}
        self._open: dict[int, str] = {}

    def described(self, value: Any, depth: int = DEEPEST) -> Any:
        """A value as JSON.

        Args:
            value: any value.
            depth: how many objects deep the description goes.

        Raises:
            Unknown: something in it cannot be described, such as an open file.
        """
        if id(value) in self._open:
            return {"again": self._open[id(value)]}
        if not depth:
            raise Unknown
        try:
            told = plain(value)
            if told is not HOLDS:
                return told
            with self.opened({id(value): str(depth)}):
                return self._described(value, functools.partial(self.described, depth=depth - 1), depth)
        except Unknown:
            raise
        except Exception:  # the user's own code runs where an object is copied, and may do anything
            raise Unknown from None

    @contextlib.contextmanager
    def opened(self, names: Mapping[int, str]) -> Iterator[None]:
        """A block in which objects, by their ids, have names where they are met again."""
        fresh = {key: name for key, name in names.items() if key not in self._open}
        self._open |= fresh
        try:
            yield
        finally:
            for key in fresh:
                del self._open[key]

    def _described(self, value: Any, inner: Inner, depth: int) -> Any:
        kind = type(value)
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
        if isinstance(value, enum.Enum):
            said = {"class": name_of(value), "name": value.name, "value": inner(value.value)}
            return {**said, **self.code_of_kind(kind)}
        if kind is functools.partial:
            return {"partial": [inner(one) for one in (value.func, value.args, value.keywords)]}
        if kind is MethodType:
            return {"method": inner(value.__func__), "of": inner(value.__self__)}
        if kind in (BuiltinFunctionType, MethodWrapperType):
            holder = value.__self__
            of = {} if holder is None or isinstance(holder, (type, ModuleType)) else {"of": inner(holder)}
            return {"function": f"{getattr(value, '__module__', None)}:{value.__qualname__}", **of}
        if isinstance(value, torch.jit.ScriptFunction):
            return {"function": value.name, "script": hash_of(inner(script(value)))}
        if kind is FunctionType:
            return self._function(value, inner)
        if isinstance(value, type):
            return {"type": name_of_code(value), **self.code_of_kind(value)}
        return self._own(value, self, depth) or self._object(value, inner)

    def _object(self, value: Any, inner: Inner) -> dict[str, Any]:
        """The description of an object: its class, and what a copy of it is made of."""
        said = {"class": name_of(value), **self.code_of_kind(type(value))}
        if isinstance(value, nn.Module):
            state = {**dict(value.named_buffers()), **value.state_dict()}
            weights = hash_of({name: inner(one) for name, one in state.items()})
            return {"class": name_of(value), **self.network(value, inner), "weights": weights}
        if isinstance(value, BaseModel):
            private = {name: one for name, one in (value.__pydantic_private__ or {}).items() if counts(one)}
            more = {"__pydantic_extra__": value.__pydantic_extra__, "__pydantic_private__": private}
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return {**said, **{name: inner(one) for name, one in {**fields, **_there(more)}.items()}}
        if isinstance(value, (set, frozenset)):
            held = {"set": _sorted(inner(one) for one in value)}
            return {**said, **held, **{name: inner(one) for name, one in _there({"state": held_by(value)}).items()}}
        if isinstance(value, STREAMS):
            raise Unknown
        parts = _copied(value)
        if isinstance(parts, str):
            return {**said, "value": parts}
        make, arguments, *more = parts
        state, items, pairs = (*more, None, None, None)[:3]
        made = arguments[1:] if getattr(make, "__name__", "") == "__newobj__" else (make, *arguments)
        told = {
            "made": made,
            "state": _lasting(type(value), state),
            "items": list(items or ()),
            "pairs": list(pairs or ()),
        }
        return {**said, **{name: inner(one) for name, one in _there(told).items()}}

    def network(self, network: nn.Module, inner: Inner | None = None) -> dict[str, Any]:
        """All that decides the output of a network beside its weights: the classes of its parts, their attributes, hooks, and
        code of the user's.

        Raises:
            Unknown: an attribute of a part whose class is the user's own, a hook, or something in a compiled part cannot be
                described. Of a part of another class such an attribute is left out.
        """
        inner = inner or self.described
        parts: list[Any] = []
        code: dict[str, str] = {}
        with self.opened({id(part): name for name, part in network.named_modules()}):
            for name, part in network.named_modules():
                kept = attributes(part, counts)
                if of_user(type(part)) or isinstance(part, torch.jit.ScriptModule):
                    told = {key: _said(f"{name_of(part)}.{key}", one, inner) for key, one in kept.items()}
                else:
                    told = dict(_known(kept.items(), lambda pair: (pair[0], inner(pair[1]))))
                hung = [_said(f"a hook of {name_of(part)}", hook, inner) for hook in hooks(part)]
                parts.append([name, name_of(part), told, hung])
                code |= self.code_of_kind(type(part)).get("code", {})
        return {"parts": hash_of(parts), **({"code": code} if code else {})}

    def _function(self, function: FunctionType, inner: Inner) -> dict[str, Any]:
        """A function by what it runs and by what it holds of its surroundings."""
        if original := vars(function).get("_torchdynamo_orig_callable"):  # torch.compile, which changes no result
            return inner(original)
        said = {"function": name_of_code(function)}
        if is_named(function):
            return said
        if isinstance(registry := vars(function).get("registry"), MappingProxyType):  # functools.singledispatch
            return {**said, "registry": inner(registry)}
        more = {"holds": _held(function), "defaults": function.__defaults__, "keywords": function.__kwdefaults__}
        said |= {name: inner(one) for name, one in _there(more).items()}
        return {**said, "code": self._reached(function)} if of_user(function) else said

    def code_of_kind(self, kind: type) -> dict[str, dict[str, str]]:
        """Under the key "code", for a class and each class that it derives from, by "module:Class": for the user's own a hash of
        its functions and of its attributes, and for one of an installed package the version of the package. Classes of Python,
        of this package and of `code.LIBRARIES` are left out; {} where there are no others.

        Raises:
            Unknown: a function of the class holds something of its surroundings that cannot be described.
        """
        code = {name_of_code(one): self._reached(one) for one in kind.__mro__ if of_user(one)}
        code |= {name_of_code(one): f"version {found}" for one in kind.__mro__ if (found := version_of(one))}
        return {"code": code} if code else {}

    def _reached(self, root: FunctionType | type) -> str:
        """A hash of what a function or the functions of a class run, with all of the user's own that they refer to.

        What a function holds of its surroundings must be described; of the attributes of a class and of the global names that a
        function reads, only what can be.
        """
        if root in self._code:
            return self._code[root]
        self._code[root] = name_of_code(root)
        left, seen, told = [root], set[int](), list[Any]()
        around, self._open = self._open, {}  # code is the same wherever it is met

        def tell(value: Any) -> Any:
            if isinstance(value, (FunctionType, type)) and of_user(value):
                left.append(value)
                return name_of_code(value)
            if parts := parts_of(value):
                return [name_of(value), *map(tell, parts)]
            return self.described(value)

        try:
            while left:
                one = left.pop(0)
                if id(one) in seen:
                    continue
                seen.add(id(one))
                if isinstance(one, FunctionType):
                    held = [*_held(one), *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
                    said = [_said(name_of_code(one), value, tell) for value in held]
                    told.append([marks(one.__code__), said, _known(read_by(one), tell)])
                else:
                    left += [base for base in one.__bases__ if one is not root and of_user(base)]
                    known = _known(attributes_of(one), lambda pair: [pair[0], tell(pair[1])])
                    told.append([name_of_code(one), known])
        except Exception as why:
            del self._code[root]
            raise why if isinstance(why, Unknown) else Unknown from None
        finally:
            self._open = around
        self._code[root] = hash_of(told)
        return self._code[root]


Inner = Callable[[Any], Any]
"""Describes a value inside another one."""


def counts(value: Any) -> bool:
    """Whether a value that nobody gave, such as an attribute that a class has made itself, says what an object does. Lists and
    mappings do not count, because they are where objects keep what they found out. Of objects those of the user's classes count,
    and dataclasses."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(counts, value))
    if value is None or isinstance(value, COUNTED) or dataclasses.is_dataclass(value):
        return True
    return of_user(type(value)) and not isinstance(value, Collection)


def _copied(value: Any) -> Any:
    """What `copy` and `pickle` make a copy of an object of."""
    if isinstance(value, functools._lru_cache_wrapper):  # for which this is a name
        return functools.lru_cache, (value.__wrapped__,)
    known = copyreg.dispatch_table.get(type(value))
    return known(value) if known else value.__reduce_ex__(4)


def _lasting(kind: type, state: Any) -> Any:
    """The state of an object without what its class would compute again."""
    if isinstance(state, tuple):  # of attributes, and of slots
        return [_lasting(kind, one) for one in state]
    return {name: one for name, one in state.items() if lasts(kind, name)} if type(state) is dict else state


def _there(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is not empty. An array has no answer to whether it is."""
    return {
        name: one
        for name, one in told.items()
        if one is not None and not (type(one) in (list, tuple, dict) and not one)
    }


def _held(function: FunctionType) -> list[Any]:
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # the surrounding function has not filled it yet
        raise Unknown from None


def _said(where: str, value: Any, tell: Inner) -> Any:
    """The description of a value that must be described, or else an error that says where it is."""
    try:
        return tell(value)
    except Unknown as why:
        raise Unknown(str(why) or f"{where} holds an object of {name_of(value)}") from None


def _known(values: Iterable[Any], tell: Inner) -> list[Any]:
    """The descriptions of those values that can be described."""
    found: list[Any] = []
    for value in values:
        with contextlib.suppress(Unknown):
            found.append(tell(value))
    return found


def _sorted(descriptions: Iterable[Any]) -> list[Any]:
    return sorted(descriptions, key=functools.partial(json.dumps, sort_keys=True))
