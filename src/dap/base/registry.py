"""Names to objects: "rbf" | "file.py:Name" | "package.module:Name"."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dap.base.errors import DapError


class Lazy(Mapping[str, Any]):
    """Objects by name, each of which is imported when it is asked for.

    Args:
        places: for each name the place of its object, as "package.module:Name".
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = dict(places)

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self.places[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, the closest first."""
    names = [str(k) for k in known]
    close = [] if name.isdigit() else difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = close + [n for n in names if n not in close]
    shown = ", ".join(ordered[:12]) + (f", … ({len(ordered)} in all)" if len(ordered) > 12 else "")
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {shown}."


def resolve(spec: str, known: Mapping[str, Any], kind: str) -> Any:
    """The object behind a name.

    Args:
        spec: a known name, or `file.py:Name`, or `package.module:Name`.
        known: the built-in names.
        kind: what it is, for the message ("kernel", "method", ...).

    Raises:
        DapError: the name, the file, the module or the attribute is unknown; the message lists what is known.
    """
    if spec in known:
        return known[spec]
    where, _, attribute = spec.rpartition(":")
    if not where:
        raise DapError(f"Unknown {kind} {spec!r}. {suggest(spec, known)} Or give your own as file.py:Name.")
    module = _load_file(Path(where), kind) if where.endswith(".py") else _load_module(where, kind)
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise DapError(f"{where} has no {attribute!r} to use as {kind}. {suggest(attribute, public)}")
    return getattr(module, attribute)


def build(thing: Any, spec: str) -> Any:
    """The object itself, or what a class or function gives when it is called without arguments.

    Args:
        thing: what `resolve` found.
        spec: its name, for the message.

    Raises:
        DapError: it cannot be called without arguments, or fails.
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


def _load_file(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise DapError(f"No file {path} to load a {kind} from.")
    name = f"dap_user_{path.stem}_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while the class body runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DapError(f"{path} could not be loaded as a {kind}: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DapError(f"No module {name!r} to load a {kind} from: {error}") from error
