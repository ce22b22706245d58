"""Which modules of the user some code of the user imports, and hashes of their files."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from dap.base.describing.code import INSTALLED, PYTHONS

log = logging.getLogger("dap")

_SEEN: dict[Path, str] = {}
"""The hash that each file had when it was first seen here. That is the code that runs, because Python loads a module once."""

_TOLD: set[Path] = set()
"""The files of which a warning was given."""

_OTHERS = (PYTHONS, Path(__file__).parents[2])
"""Where the modules of Python and of this package lie."""


def helpers_of(module: ModuleType, where: str) -> dict[str, str]:
    """The sha256 of the file of each module of the user that a module imports, and that these import.

    Import statements count wherever they stand. Modules of Python, of this package and of installed packages do not count. A
    module that a program finds by a text, as with importlib, is not seen.

    Args:
        module: a module of the user that is loaded.
        where: the name of the module for people.

    Returns:
        By "name of where" the hashes, in the order of the names.
    """
    own = Path(str(getattr(module, "__file__", "") or ""))
    found, left = dict[str, Path](), [(own, module.__package__ or "")]
    while left:
        file, package = left.pop()
        for name in _imported(file.read_bytes(), package) if file.suffix == ".py" and file.is_file() else ():
            if name in found or not (place := _file_of(name)) or place.resolve() == own.resolve():
                continue
            found[name] = place
            left.append((place, name if place.name == "__init__.py" else name.rpartition(".")[0]))
    return {f"{name} of {where}": _hash_of(found[name]) for name in sorted(found)}


@functools.lru_cache(1000)
def _imported(content: bytes, package: str) -> tuple[str, ...]:
    """The names that may be modules in the import statements of a source, a package before its parts."""
    return tuple(dict.fromkeys(_names(ast.parse(content), package)))


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    for one in ast.walk(tree):
        named = list[str]()
        if isinstance(one, ast.Import):
            named = [alias.name for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            base = one.module or ""
            if one.level:
                with contextlib.suppress(ImportError):
                    base = importlib.util.resolve_name("." * one.level + base, package)
            named = [base, *(f"{base}.{alias.name}" for alias in one.names)]
        for name in named:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file_of(name: str) -> Path | None:
    """The file of a module of the user; None for other modules, and for names that are none."""
    top = name.partition(".")[0]
    if name != top and _place_of(top) is None:
        return None  # so that no library is imported by the question for one of its parts
    place = _place_of(name)
    return place if place is not None and place.suffix == ".py" else None


def _place_of(name: str) -> Path | None:
    """The file of a module, or the folder of a package without one, if it is the user's."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # the package of a module is imported by this, and may raise anything
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    place = Path(spec.origin if spec and spec.has_location and spec.origin else "".join(folders[:1]))
    ours = place.exists() and INSTALLED.isdisjoint(place.parts)
    return place if place.parts and ours and not any(place.is_relative_to(other) for other in _OTHERS) else None


def _hash_of(file: Path) -> str:
    now = hashlib.sha256(file.read_bytes()).hexdigest()
    if _SEEN.setdefault(file, now) != now and file not in _TOLD:
        _TOLD.add(file)
        log.warning("%s has changed since Python loaded it, and its former code runs. Start Python anew.", file)
    return _SEEN[file]
