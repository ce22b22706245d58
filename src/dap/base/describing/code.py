"""Whose code a function or a class is, and what runs of it: its instructions, and what it reads of the world around it.

The text of a file is no measure of this: the file may have been saved since it was loaded, it may not exist, as in a notebook,
and a line in it that has nothing to do with a class would make it another class. Instructions are those of one version of Python.
"""

from __future__ import annotations

import dis
import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

LIBRARIES = frozenset(
    {"dap", "numpy", "torch", "torchvision", "timm", "pydantic"}
    | {"diffusers", "transformers", "accelerate", "peft", "huggingface_hub"}
)
"""The top packages whose classes are nobody's own code, wherever they are installed. A set notes their versions."""

INSTALLED = frozenset({"site-packages", "dist-packages"})
"""The folders of installed packages."""

PYTHONS = Path(os.__file__).parent
"""The folder of Python's own modules."""


def of_user(thing: type | FunctionType | ModuleType) -> bool:
    """Whether a class, a function or a module is the user's own code, which counts with all that it runs. Other code is installed
    or a part of Python; its name says what it is."""
    if isinstance(thing, FunctionType):  # its `__module__` is that of another function where it wraps one
        name, file = thing.__globals__.get("__name__"), thing.__globals__.get("__file__")
    elif isinstance(thing, ModuleType):
        name, file = thing.__name__, getattr(thing, "__file__", None)
    else:
        name = thing.__module__
        file = getattr(sys.modules.get(name or ""), "__file__", None)
    top, path = _top(name), Path(file or "")
    if top in sys.stdlib_module_names:  # a user may have a module of such a name
        return path.suffix == ".py" and not path.is_relative_to(PYTHONS)
    return top not in LIBRARIES and INSTALLED.isdisjoint(path.parts)


def of_dap(kind: type) -> bool:
    """Whether a class is of this package."""
    return _top(kind.__module__) == "dap"


def knows_itself(kind: type, method: str) -> bool:
    """Whether a class has a method from a class of this package. One of the user's may have another method of the name."""
    return any(of_dap(one) and method in vars(one) for one in kind.__mro__)


def _top(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def name_of_code(thing: Any) -> str:
    """The name of a function or a class, as "module:name". A file that is loaded by its path has its own name as module, wherever
    it lies."""
    module = re.fullmatch(r"dap_user_(.*)_[0-9a-f]{8}_[0-9a-f]{8}", str(thing.__module__))
    return f"{module[1] if module else thing.__module__}:{thing.__qualname__}"


def version_of(kind: type) -> str | None:
    """The version of the installed package that defines a class. None for Python and `LIBRARIES`, and for the user's own code."""
    top = _top(kind.__module__)
    return None if of_user(kind) or top in LIBRARIES or top in sys.stdlib_module_names else _version(top)


@functools.cache
def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return str(getattr(sys.modules.get(package), "__version__", "")) or None


def is_named(function: FunctionType) -> bool:
    """Whether a function is not the user's own and its name leads to it. If not, something has made it, such as a decorator
    around a function of the user's, and it holds more than its name says."""
    held: Any = sys.modules.get(function.__module__ or "")
    if of_user(function) or held is None or of_user(held):
        return False
    for part in function.__qualname__.split("."):
        held = getattr(held, "__dict__", {}).get(part)
    return held is function


def marks(code: CodeType) -> list[Any]:
    """What a code object does: its instructions, and the names of its parameters, by which it may be called. Texts that only
    explain, the numbers of lines and the names of other variables do not count."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    told = [[step.opcode, _argument(step, after)] for step, after in zip(steps, [*steps[1:], None], strict=True)]
    kinds = code.co_flags & 0xC  # *args and **kwargs
    parameters = code.co_argcount + code.co_kwonlyargcount + kinds.bit_count()
    taken = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, kinds, *code.co_varnames[:parameters]]
    return [told, code.co_exceptiontable.hex(), list(code.co_names), taken]


def _argument(step: dis.Instruction, after: dis.Instruction | None) -> Any:
    if step.opcode not in dis.hasconst:
        return step.arg
    # The body of a class inside a function stores where it stands, and what explains it.
    stored = after.argval if after is not None and after.opname == "STORE_NAME" else None
    return None if stored in ("__doc__", "__firstlineno__") else _constant(step.argval)


def _constant(value: object) -> Any:
    if isinstance(value, CodeType):
        return marks(value)
    if isinstance(value, tuple):
        return list(map(_constant, value))
    if isinstance(value, frozenset):  # whose order is another one in each process
        return f"frozenset({sorted(map(str, map(_constant, value)))})"
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
    attribute that is read counts, for a program may keep there what does not concern the function. Installed modules do not
    count."""
    for name, *attributes in sorted(set(reads(function.__code__))):
        value = function.__globals__.get(name, _ABSENT)
        for attribute in attributes:
            if _is_installed(value) or attribute not in (held := getattr(value, "__dict__", {})):
                break
            value = held[attribute]
        if value is not _ABSENT and not _is_installed(value):
            yield value


_ABSENT = object()


def _is_installed(value: object) -> bool:
    """Whether a value is a module that is not the user's own. Parts of it may be imported later, or not."""
    return isinstance(value, ModuleType) and not of_user(value)


def attributes_of(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class itself defines, by name. Of the names between double underscores only what runs counts."""
    for name, value in list(vars(kind).items()):
        if not name.startswith("__") or callable(value) or parts_of(value):
            yield name, value


def parts_of(value: Any) -> tuple[Any, ...]:
    """What a method of another form than a function is made of; () for other values."""
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    if isinstance(value, functools.partialmethod):
        return (value.func, value.args, value.keywords)
    if isinstance(value, functools.singledispatchmethod):
        return (value.func, value.dispatcher)
    return ()


def is_cached(kind: type, name: str) -> bool:
    """Whether an attribute of this name is a `cached_property` of the class, which says nothing that the class does not."""
    return any(isinstance(vars(one).get(name), functools.cached_property) for one in kind.__mro__)
