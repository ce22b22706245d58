"""Decides which code of users may run: code that somebody asked for, and not code that a file of a stranger asks for.

A name such as `file.py:Name` or `package.module:Name` runs the code of that file or module. Such a name counts where it stands
on the command line or in the caller's own Python. Where a file names it (a recipe, a protocol, the metadata of weights), the
code is refused, unless the user allows it by `--allow-code`, `Machine(allow_code=True)` or `with allow_code():`. Code that
runs because it was allowed is announced once, with its sha256 and the file that names it.

Two checks work together. `refuse_code` is called where a file is read whose values may be run; it holds for every caller.
`admit` is called before any code of a user is loaded. Under a command line it refuses each name that does not stand there.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import shown

LIBRARIES = ("torchvision", "timm")
"""What stands before the colon in names of networks of a library. These names run no code of a user."""

NEVER_CODE = frozenset({"captions", "class_names", "classes", "data", "negative_prompt", "template"})
"""Keys of recipes whose values are texts or paths of data. A class may be called "red:fox"."""

_APART = re.compile(r"[\s+*(),=\[\]{}'\"@]+")


@dataclass
class _Permit:
    """A permission of the user to run code that files name.

    Attributes:
        named: for each code, the file that names it.
        announced: what was announced.
    """

    named: dict[str, str] = field(default_factory=dict)
    announced: set[tuple[str, str]] = field(default_factory=set)


_PERMIT: ContextVar[_Permit | None] = ContextVar("dap_permit", default=None)  # a new thread has none, so it refuses
_words: frozenset[str] | None = None  # the code on the command line of this process; None: a Python program calls us


def is_code(spec: str) -> bool:
    """Whether a name is `file.py:Name` or `package.module:Name`. Names of a library, such as timm:NAME, are not."""
    where, _, attribute = spec.rpartition(":")
    if not where or not attribute.isidentifier():
        return False
    return where.endswith(".py") or (all(part.isidentifier() for part in where.split(".")) and where not in LIBRARIES)


@contextmanager
def allow_code(allowed: bool = True) -> Iterator[None]:
    """Inside this block, code that files name may run, in this thread.

    Args:
        allowed: False changes nothing; what an outer block allows stays allowed.
    """
    if not allowed or _PERMIT.get() is not None:
        yield
        return
    token = _PERMIT.set(_Permit())
    try:
        yield
    finally:
        _PERMIT.reset(token)


@contextmanager
def command_line(words: Iterable[str]) -> Iterator[None]:
    """Inside this block, only code that stands among these words of a command line may run, in all threads.

    Words such as `--networks=a.py:A,b.py:B`, `--option net=c.py:C` and `0.5*d.py:D` name the code in them.
    """
    global _words
    before = _words
    _words = frozenset(_canonical(part) for word in words for part in _parts(word) if is_code(part))
    try:
        yield
    finally:
        _words = before


def _parts(word: str) -> Iterator[str]:
    """A word as a whole, and the parts of it that may be names of code."""
    for text in (word, word.partition("=")[2]):
        yield text
        yield from text.split(",")
    yield from _APART.split(word)


def _canonical(spec: str) -> str:
    """The same text for two spellings of the path of one file."""
    where, _, attribute = spec.rpartition(":")
    return f"{os.path.abspath(where)}:{attribute}" if where.endswith(".py") else spec


def asked_for(values: Any) -> list[str]:
    """The code among nested values that may run: what the command line names, and what the user allows.

    A process that starts another one gives it these names on its command line.
    """
    specs = dict.fromkeys(_named(values))
    return [spec for spec in specs if _words is None or _canonical(spec) in _words]


def code_is_allowed() -> bool:
    """Whether code that files name may run here."""
    return _PERMIT.get() is not None


def refuse_code(values: Any, where: Path | str) -> None:
    """Refuse values of a file that name code, before any of it runs.

    Args:
        values: a text, or mappings and lists of texts, as a parser makes them. Only what may be run belongs here: a name
            that is only shown runs nothing.
        where: the file, for the message.

    Raises:
        DapError: a value names code, the code does not stand on the command line, and the user has not allowed it.
    """
    for spec in _named(values):
        if _words is not None and _canonical(spec) in _words:
            continue
        permit = _PERMIT.get()
        if permit is None:
            raise DapError(_refused(spec, shown(where)))
        permit.named[_canonical(spec)] = shown(where)


def _named(values: Any) -> Iterator[str]:
    """Every name of code among nested values, also inside a text such as the kernel "linear + 0.5 * file.py:Name"."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield from dict.fromkeys(part for part in _parts(value) if is_code(part))
        elif isinstance(value, Mapping):
            left += [inner for key, inner in value.items() if key not in NEVER_CODE]
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += value


def admit(spec: str) -> None:
    """Let code run, or refuse it. This is called before any code of a user is loaded.

    Args:
        spec: `file.py:Name` or `package.module:Name`.

    Raises:
        DapError: this process runs a command line that does not name the code, and the user has not allowed it.
    """
    canonical, permit = _canonical(spec), _PERMIT.get()
    if _words is not None and canonical in _words:
        return
    if permit is None:
        if _words is not None:
            raise DapError(_refused(spec, "A file"))
        return
    if _words is None and canonical not in permit.named:  # the caller's own Python names it
        return
    digest = _sha256(spec)
    if (canonical, digest) not in permit.announced:
        permit.announced.add((canonical, digest))
        by = permit.named.get(canonical, "a file")
        logging.getLogger("dap").warning("running the code %s, which %s names (sha256 %s)", spec, by, digest)


def _refused(spec: str, where: str) -> str:
    how = "add --allow-code" if _words is not None else "call dap inside `with dap.allow_code():`"
    place = "on the command line" if _words is not None else "in your program"
    return (
        f"{where} names the code {shown(spec)}, which does not stand {place}, so it is not run. Read the "
        f"code; if you trust it, {how}."
    )


def _sha256(spec: str) -> str:
    """The sha256 of the file behind a name, found without running anything; "unknown" where there is no file."""
    from dap.base.files import sha256_of

    where = spec.rpartition(":")[0]
    file = where if where.endswith(".py") else _file_of(where)
    return (file and sha256_of(Path(file))) or "unknown"


def _file_of(module: str) -> str | None:
    """The file of a module. `importlib.util.find_spec` would run the packages above it."""
    found: ModuleSpec | None = None
    path: Any = sys.path
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        found = PathFinder.find_spec(name, path)
        if found is None:
            return None
        path = found.submodule_search_locations or []
    return found.origin if found else None
