"""What runs of a function or a class: its instructions, and what it reads of the world around it.

The text of a file is no measure of this: the file may have been saved since it was loaded, it may not exist, as in a notebook,
and a line in it that has nothing to do with a class would make it another class. Instructions are those of one version of Python.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

LIBRARIES = frozenset(
    {"dap", "builtins", "abc", "typing", "enum", "numpy", "torch", "torchvision", "timm", "pydantic"}
    | {"diffusers", "transformers", "accelerate", "peft", "huggingface_hub"}
)
"""The top packages whose classes are nobody's own code."""


def from_library(thing: type | FunctionType) -> bool:
    """Whether a class or a function is of Python, of this package or of one of `LIBRARIES`. Then its name says what it is,
    because a set notes the versions."""
    top = (thing.__module__ or "").partition(".")[0]
    return top in LIBRARIES or top in sys.stdlib_module_names


def installed(thing: type | FunctionType) -> bool:
    """Whether a class or a function is of a library, or of any other package that is installed."""
    file = getattr(sys.modules.get(thing.__module__ or ""), "__file__", None)
    return from_library(thing) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file or "").parts)


def marks(code: CodeType) -> list[Any]:
    """What a code object does, without the names of its variables and the numbers of its lines."""
    constants = [marks(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), list(code.co_names), constants]


def _constant(value: object) -> str:
    if isinstance(value, frozenset):  # whose order is another one in each process
        return f"frozenset({sorted(map(repr, value))})"
    return repr(value)


def reads(code: CodeType) -> Iterator[tuple[str, ...]]:
    """The global names that a code object reads, each with the attributes that follow it: ("K",), ("helper", "K")."""
    path: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if path and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = (*path, step.argval)
            continue
        if path:
            yield path
        path = (step.argval,) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from reads(one)


def read_by(function: FunctionType) -> Iterator[Any]:
    """The values that a function reads of the global names around it. Of a module, a class or an object with attributes only the
    attribute that is read counts, for a program may keep there what does not concern the function. Libraries do not count."""
    for name, *attributes in sorted(set(reads(function.__code__))):
        value = function.__globals__.get(name, _ABSENT)
        for attribute in attributes:
            if _is_library(value) or attribute not in (held := getattr(value, "__dict__", {})):
                break
            value = held[attribute]
        if value is not _ABSENT and not _is_library(value):
            yield value


_ABSENT = object()


def _is_library(value: object) -> bool:
    """Whether a value is a module of Python or of a library. Parts of it may be imported later, or not."""
    top = value.__name__.partition(".")[0] if isinstance(value, ModuleType) else ""
    return top in LIBRARIES or top in sys.stdlib_module_names


def functions_of(kind: type) -> Iterator[FunctionType]:
    """The functions that a class itself defines, also as properties, static methods and class methods."""
    for value in list(vars(kind).values()):
        yield from functions_in(value)


def attributes_of(kind: type) -> Iterator[Any]:
    """The other attributes that a class itself defines, each after its name."""
    for name, value in list(vars(kind).items()):
        if not name.startswith("__") and not any(functions_in(value)):
            yield name
            yield value


def functions_in(value: Any) -> Iterator[FunctionType]:
    """The functions behind an attribute of a class, or behind a function with a cache."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, (staticmethod, classmethod)):
        yield from functions_in(value.__func__)
    elif isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from functions_in(part)
    elif isinstance(value, (functools.cached_property, functools.partialmethod, functools.partial)):
        yield from functions_in(value.func)
    elif not isinstance(value, type) and isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):
        yield wrapped
