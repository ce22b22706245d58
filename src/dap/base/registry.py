"""Finds the object of a name. A name is built-in, such as "rbf", or "file.py:Name", or "package.module:Name".

A name of the last two kinds runs code. `dap.base.permission` decides whether that code may run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from dap.base.describing.helpers import helpers_of
from dap.base.errors import DapError, suggest
from dap.base.permission import admit, is_code


class Lazy(MutableMapping[str, Any]):
    """A mapping from names to objects. An object is imported when it is asked for. More objects may be put in.

    Args:
        places: for each name the place of its object, as "package.module:Name".
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._makers: dict[str, Callable[[], Any]] = {
            name: functools.partial(_imported, place) for name, place in places.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __setitem__(self, name: str, thing: Any) -> None:
        self._makers[name] = lambda: thing

    def __delitem__(self, name: str) -> None:
        del self._makers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(spec: str, known: Mapping[str, Any], kind: str) -> Any:
    """The object behind a name.

    Args:
        spec: a known name, or `file.py:Name`, or `package.module:Name`.
        known: the built-in names.
        kind: the kind of the object, for the message ("kernel", "method", ...).

    Raises:
        DapError: the name, the file, the module or the attribute is unknown; the message lists what is known. Or the
            name stands in a file and its code is not allowed to run.
    """
    if spec in known:
        return known[spec]
    if not is_code(spec):
        raise DapError(f"Unknown {kind} {spec!r}. {suggest(spec, known)} Or give your own as file.py:Name.")
    admit(spec)
    where, _, attribute = spec.rpartition(":")
    module = _load_file(Path(where), kind) if where.endswith(".py") else _load_module(where, kind)
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise DapError(f"{where} has no {attribute!r} to use as {kind}. {suggest(attribute, public)}")
    return getattr(module, attribute)


def build(thing: Any, spec: str) -> Any:
    """The thing itself, or, for a class or function, the object that a call without arguments returns.

    Args:
        thing: the object that `resolve` found.
        spec: the name of the object, for the message.

    Raises:
        DapError: the class or function cannot be called without arguments, or the call fails.
    """
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return thing
    try:
        return thing()
    except DapError:
        raise
    except Exception as error:
        raise DapError(
            f"{spec} could not be made without arguments: {type(error).__name__}: {' '.join(str(error).split())} "
            "Give a function without arguments that returns it, as file.py:function."
        ) from error


def code_of(spec: str) -> dict[str, str]:
    """The sha256 of the code behind `file.py:Name` or `package.module:Name`, by file or module. {} for any other name.

    The code is first loaded as `resolve` would load it. So the hash belongs to the code that runs. The modules of the user
    that the code imports count too, as "helper of file.py", see `helpers_of`.

    Raises:
        DapError: the file has an error in it, or the name stands in a file and its code is not allowed to run.
    """
    if not is_code(spec):
        return {}
    where, _, attribute = spec.rpartition(":")
    if where.endswith(".py"):
        if not os.path.isfile(where):
            return {}
        admit(spec)
        module = _load_file(Path(where), attribute)
        return {where: _LOADED[str(Path(where))].sha256, **helpers_of(module, where)}
    admit(spec)
    with contextlib.suppress(DapError):
        module = _load_module(where, attribute)
        return {where: _IMPORTED[where], **helpers_of(module, where)} if where in _IMPORTED else {}
    return {}


def hash_of_code(spec: str) -> str:
    """One sha256 of all that `code_of` gives for a name; an empty text for a name without code."""
    found = list(code_of(spec).values())
    return hashlib.sha256("".join(found).encode()).hexdigest() if len(found) > 1 else "".join(found)


GIVEN = "_dap_given"
"""The attribute that holds the arguments of an object of `Recorded`."""


class Recorded:
    """Objects of users' classes that remember the arguments they were made with, by the names of these arguments.

    A class may keep an argument under another name, or only what follows from it. What a set says of the object would then miss
    it, and the set would go on with another object.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__}() takes no arguments")  # as Python says where there is no `__new__`
        # The classes of this package keep their arguments under their names.
        if cls.__module__.partition(".")[0] != "dap":
            with contextlib.suppress(TypeError, ValueError):  # `__init__` refuses wrong arguments in its own words
                bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs)
                bound.apply_defaults()
                made.__dict__[GIVEN] = dict(list(bound.arguments.items())[1:])
        return made


@dataclass(frozen=True)
class _Loaded:
    """A user's file as this process last ran it."""

    sha256: str
    module: ModuleType


_LOADED: dict[str, _Loaded] = {}
_IMPORTED: dict[str, str] = {}


def _load_file(path: Path, kind: str) -> ModuleType:
    """The module of a file. A file whose content has changed is run anew, so that no run uses old code under a new hash."""
    if not os.path.isfile(path):  # which takes a name that is too long, or holds a NUL, for no file
        raise DapError(f"No file {path} to load a {kind} from.")
    content = path.read_bytes()
    digest, where = hashlib.sha256(content).hexdigest(), str(path)
    if where in _LOADED and _LOADED[where].sha256 == digest:
        return _LOADED[where].module
    name = f"dap_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}_{digest[:8]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None:
            raise DapError(f"{path} is not a Python file to load a {kind} from.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while the class body runs
        try:
            exec(compile(content, where, "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[name]
            raise DapError(f"{path} could not be loaded as a {kind}: {type(error).__name__}: {error}") from error
        linecache.checkcache(where)  # or a traceback would show the lines of the old content
    _LOADED[where] = _Loaded(digest, module)
    return module


def _load_module(name: str, kind: str) -> ModuleType:
    """An importable module. If its file has changed since it was first resolved here, it is run anew in its own name space. The
    program that runs is never run anew."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DapError(f"No module {name!r} to load a {kind} from: {error}") from error
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return module
    content = Path(file).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    before = _IMPORTED.get(name, digest)
    if before != digest and name == "__main__":  # it is running, and would do all its work again
        return module
    _IMPORTED[name] = digest  # first, or code that asks for its own module would run without end
    if before != digest and file.endswith(".py"):
        try:
            exec(compile(content, file, "exec"), module.__dict__)
        except Exception as error:
            _IMPORTED[name] = before
            raise DapError(f"{file} has changed and could not be loaded: {type(error).__name__}: {error}") from error
        linecache.checkcache(file)
    return module
