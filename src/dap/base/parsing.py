"""Makes plain values of JSON and YAML that may come from a stranger.

A text is refused, in one sentence with the line where it is known, if it is not UTF-8 or not well-formed, if it repeats a key,
holds a number that is not finite or too large, uses a YAML alias, or is nested more than `DEEPEST` deep.
"""

from __future__ import annotations

import collections.abc
import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dap.base.errors import DapError

DEEPEST = 64
"""How many lists and mappings may lie inside each other."""


class Damaged(DapError):
    """A document that cannot be read as what it should be."""


def shown(path: Path | str) -> str:
    """A path as text that every terminal and every UTF-8 file can hold. Bytes that are no text are shown as \\xNN."""
    text = str(path)
    if text.isascii() and "\0" not in text:  # nearly always, and a data set may have a million paths
        return text
    try:
        said = os.fsencode(text)
    except UnicodeEncodeError:  # half of a character that stands for no byte
        said = text.encode("utf-8", "backslashreplace")
    return said.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def brief(value: Any, longest: int = 80) -> str:
    """A value as a message shows it: its repr, of at most so many characters, on one line."""
    said = shown(repr(value))
    return said if len(said) <= longest else f"{said[:longest]}…"


def path_of(value: Any, what: str = "A folder or a file") -> Path:
    """A path that was given as an argument.

    Args:
        value: the argument.
        what: what the path leads to, as the beginning of a sentence.

    Raises:
        DapError: the argument is no path, such as None or a number.
    """
    if not isinstance(value, str | os.PathLike):
        raise DapError(f"{what} is given by its path, as a text or a Path, and not by {brief(value)}.")
    return Path(value)


def check_one_of(value: Any, known: Sequence[str], what: str) -> None:
    """Check that a Python user gave one of the known words.

    Raises:
        DapError: the value is none of them. `what` begins the sentence, as in "Machine takes offload".
    """
    if not isinstance(value, str) or value not in known:
        *most, last = map(repr, known)
        raise DapError(f"{what} as {', '.join(most)}{' or ' * bool(most)}{last}, not {brief(value)}.")


def check_options(options: Any, least: Mapping[str, int] = MappingProxyType({})) -> None:
    """Check the fields of a dataclass that a Python user fills, by their types: one of several words, a truth value, a number, a
    text, a list or a mapping. A number of numpy becomes a number, and a list a tuple.

    Args:
        options: the object.
        least: the smallest whole numbers that fields take.

    Raises:
        DapError: a field holds something else.
    """
    for name, hint in get_type_hints(type(options)).items():
        value, arms = getattr(options, name), get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        what, low = f"{type(options).__name__} takes {name}", least.get(name)
        if value is None and NoneType in arms:
            continue
        kind = arms[0]
        if get_origin(kind) is Literal:
            check_one_of(value, get_args(kind), what)
        elif kind in (int, float):
            number, whole = Integral if kind is int else Real, "a whole number" if kind is int else "a number"
            if isinstance(value, bool) or not isinstance(value, number) or (low is not None and value < low):
                said = whole if low is None else f"{whole} of at least {low}"
                raise DapError(f"{what} as {said}, such as 4, not {brief(value)}.")
            value = int(value) if isinstance(value, Integral) else float(value)
        elif get_origin(kind) is tuple and isinstance(value, list):
            value = tuple(value)
        elif (words := _WORDS.get(get_origin(kind) or kind)) and not isinstance(value, get_origin(kind) or kind):
            raise DapError(f"{what} as {words}, not {brief(value)}.")
        object.__setattr__(options, name, value)  # the dataclass may be frozen


_WORDS: dict[Any, str] = {
    bool: "True or False",
    str: "text",
    tuple: "a list of texts",
    collections.abc.Mapping: "a mapping from field to value",
}


def counted(n: int, noun: str) -> str:
    """A number and a noun as a message tells them, as in "1 image", "2,000 images", "3 classes" and "2 near-copies"."""
    if n == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{n:,} {noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{n:,} {noun[:-1]}ies"
    return f"{n:,} {noun}s"


def halved(text: str) -> bool:
    """Whether a text holds half of a character, as a file name does whose bytes are not UTF-8. UTF-8 cannot hold such a text."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def decode(data: bytes, where: Path | str) -> str:
    """The text of bytes in UTF-8, without a byte order mark.

    Raises:
        DapError: the bytes are not UTF-8. The message names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Damaged(
            f"{shown(where)}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        ) from error


def parse_json(text: str, where: Path | str) -> Any:
    """The value of a JSON text.

    Raises:
        DapError: the text is not JSON, repeats a key, holds a number that is not finite or too long, or is nested too
            deeply.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_not_finite, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        raise Damaged(
            f"{shown(where)}, line {error.lineno}: this is not JSON ({error.msg}, column {error.colno})."
        ) from error
    except RecursionError as error:
        raise Damaged(f"{shown(where)}: it is nested more than {DEEPEST} deep.") from error
    except ValueError as error:  # of the functions below
        raise Damaged(f"{shown(where)}: {error}.") from error
    _check_depth(value, where)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _not_finite(said: str) -> float:
    raise ValueError(f"{said} is not a number")


def _finite(said: str) -> float:
    value = float(said)
    if not math.isfinite(value):
        raise ValueError(f"{said[:40]} is too large for a number")
    return value


def _whole(said: str) -> int:
    if len(said) > 20:
        raise ValueError(f"{said[:20]}… is too large for a whole number")
    return int(said)


def _check_depth(value: Any, where: Path | str) -> None:
    """Refuse a value that is nested more than `DEEPEST` deep, without recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise Damaged(f"{shown(where)}: it is nested more than {DEEPEST} deep.")


def parse_yaml(text: str, where: Path | str) -> Any:
    """The value of a YAML text. Only plain values are made.

    Raises:
        DapError: the text is not YAML, repeats a key, uses an alias, holds a number that is not finite, or is nested too
            deeply.
    """
    import yaml
    from yaml import parser, scanner

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        said = f"{error.problem or error.context}"
        if isinstance(error, (parser.ParserError, scanner.ScannerError)):
            said = f"{said}, so this is not YAML"
        raise Damaged(f"{shown(where)}{line}: {' '.join(shown(said).split())}.") from error
    except yaml.YAMLError as error:
        raise Damaged(f"{shown(where)} is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise Damaged(f"{shown(where)}: it is nested more than {DEEPEST} deep.") from error


@functools.cache
def _loader() -> Any:
    import yaml
    from yaml import composer, constructor

    class Loader(yaml.SafeLoader):
        """Refuses aliases, with which ten lines can stand for 10**9 values, and keys that stand there twice."""

        deep = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise composer.ComposerError(
                    None, None, "an alias (*name) is not read here; write the value out", event.start_mark
                )
            self.deep += 1
            if self.deep > DEEPEST:
                mark = self.peek_event().start_mark
                raise composer.ComposerError(None, None, f"it is nested more than {DEEPEST} deep", mark)
            node = super().compose_node(parent, index)
            self.deep -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise constructor.ConstructorError(
                        None, None, "a merge key (<<) is not read here; write the values out", key.start_mark
                    )
                if str(key.value) in seen:
                    raise constructor.ConstructorError(
                        None, None, f"the key {str(key.value)[:80]!r} stands there twice", key.start_mark
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, OverflowError, TypeError, AttributeError) as error:  # such as the date 2026-99-99
                problem = f"{str(node.value)[:40]!r} cannot be read ({' '.join(str(error).split())[:80]})"
                raise constructor.ConstructorError(None, None, problem, node.start_mark) from error

        def construct_yaml_int(self, node: Any) -> int:
            said = str(node.value)
            if (
                re.fullmatch(r"[-+]?0[\d_]+", said) or ":" in said
            ):  # YAML 1.1 reads octal and base 60: 010 is 8, 1:30 is 90
                problem = (
                    f"{said[:40]} would be read as another number; put a name in quotes, and write a number plainly"
                )
                raise constructor.ConstructorError(None, None, problem, node.start_mark)
            return super().construct_yaml_int(node)

        def construct_yaml_float(self, node: Any) -> float:
            value = super().construct_yaml_float(node)
            if not math.isfinite(value):
                raise constructor.ConstructorError(
                    None, None, f"{str(node.value)[:40]} is not a finite number", node.start_mark
                )
            return value

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    return Loader


LOOKED_UP = 2**18
"""In how long a text the line of a value is looked up."""


def line_of(text: str, place: tuple[int | str, ...]) -> int | None:
    """The line, from 1, of a value in a JSON or YAML text; None where it cannot be found, or where the text is long."""
    import yaml

    node = _composed(text) if place and len(text) <= LOOKED_UP else None
    line = None
    for part in place:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
        if found is None:
            break
        node, line = found, found.start_mark.line + 1
    return line


@functools.lru_cache(maxsize=1)  # a message names several lines of one text
def _composed(text: str) -> Any:
    """The nodes of a text that was parsed already, so that it has no alias and is not deep; None where YAML has none."""
    import yaml

    try:
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
