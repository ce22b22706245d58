"""Structured inputs by hypothesis: documents, lines, texts, bytes and folders that are nearly what a reader wants.

Most inputs start from a valid file of the reader: values of its own fields are replaced by values of other types, of other
sizes and at limits, or are removed, renamed, wrapped or exchanged. The others are documents of any shape.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz import trees
from fuzz.mutate import BYTES, LARGEST, VALUES
from fuzz.target import Target

Bytes = st.SearchStrategy[bytes]

NUMBERS = [number for number in VALUES if isinstance(number, (int, float))]
PATHS = (
    "", ".", "..", "../x", "/etc/passwd", "a/../../b", "images/cat/00000.png", "C:\\x", "a\0b", "a" * 300, "é", "e\u0301", "~",
    "file:///x", "-x", "a b", "a\nb", "\u202ex", "con", ".hidden", "\ud800", "evil.py:X", "os:system", "*", "%s", "{}", "<b>",
)  # fmt: skip
TOKENS = (
    "{", "}", "[", "]", ":", ",", '"', "'", "\n", " ", "- ", "? ", "&a ", "*a", "<<: *a", "!!binary ", "!!set ", "!!omap ",
    "!!int ", "!x ", "|", ">", "#", "---\n", "...\n", "%YAML 1.1\n", "null", "true", "1", "1.5", "1e999", "0x1f", "1_000", "1:30",
    ".nan", ".inf", "2026-01-01", "a", "=", "\t", "\ufeff", "\x85", "\u2028", "(", ")", "+", "*", "-", "/", "**", "NaN", "\\",
    "\0",
)  # fmt: skip

numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-3, 300), st.integers(), st.floats())
texts = st.one_of(st.sampled_from(PATHS), st.text(max_size=12))
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(VALUES))
flat = st.one_of(
    leaves,
    st.lists(leaves, max_size=4),
    st.dictionaries(texts, leaves, max_size=3),
    st.lists(st.lists(leaves, max_size=3), max_size=3),
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
"""Documents of any shape, to any depth."""


def places(value: Any) -> list[tuple[Any, Any]]:
    """Where the values of a document stand: (the mapping or list, the key or position), from the outside in."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending and len(found) < 400:
        outer = pending.pop(0)
        inner = list(outer.items()) if isinstance(outer, dict) else list(enumerate(outer))
        found += [(outer, key) for key, _ in inner]
        pending += [one for _, one in inner if isinstance(one, (dict, list))]
    return found


@st.composite
def changed(draw: Callable[..., Any], valid: list[Any]) -> Any:
    """One of the valid documents with up to three changes."""
    value = [copy.deepcopy(draw(st.sampled_from(valid)))]  # in a list, so that the document itself has a place
    for _ in range(draw(st.integers(1, 3))):
        known = places(value)
        outer, key = known[draw(st.integers(0, len(known) - 1))]
        match draw(st.integers(0, 9)):
            case 0 if outer is not value:
                del outer[key]
            case 1:
                outer[key] = [outer[key]]
            case 2:
                outer[key] = {draw(texts): outer[key]}
            case 3 if isinstance(outer, dict):
                outer[draw(texts)] = outer.pop(key) if draw(st.booleans()) else copy.deepcopy(draw(flat))
            case 4:
                other, there = known[draw(st.integers(0, len(known) - 1))]
                if there in other if isinstance(other, dict) else there < len(other):
                    outer[key] = copy.deepcopy(other[there])
            case 5 if isinstance(outer[key], list):
                outer[key] = outer[key] * draw(st.integers(0, 3))
            case 6:
                outer[key] = _like(draw, outer[key])
            case _:
                outer[key] = copy.deepcopy(draw(flat))  # a later change must not reach the list it was drawn from
    return value[0]


def _like(draw: Callable[..., Any], value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return draw(numbers)
    if isinstance(value, str):
        return draw(
            st.one_of(texts, st.sampled_from((value.upper(), value + "\0", value[:-1], f"../{value}", f"{value} ")))
        )
    return draw(st.sampled_from(([], {}, None)))


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()[:LARGEST]


def _blocks(value: Any) -> bytes:
    """YAML over several lines, as people write it."""
    try:
        return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")[:LARGEST]
    except (yaml.YAMLError, RecursionError):
        return b""


def soup(seeds: tuple[bytes, ...]) -> Bytes:
    """Words of the valid inputs and signs of their languages in any order."""
    words = {word for seed in seeds[:8] for word in seed[:4000].decode("utf-8", "replace").replace("(", " ( ").split()}
    parts = st.one_of(st.sampled_from(TOKENS), st.sampled_from(sorted(words)[:300] or ["a"]), numbers.map(str), texts)
    return st.lists(parts, max_size=20).map(lambda found: "".join(found).encode("utf-8", "surrogatepass"))


@st.composite
def edited(draw: Callable[..., Any], seeds: tuple[bytes, ...]) -> bytes:
    """One of the valid inputs with up to three places overwritten, cut out, or with something put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        new = draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=8), _integers))
        cut = draw(st.sampled_from((len(new), 0, 1, 8, len(data))))
        data = data[:at] + new + data[at + cut :]
    return data[: max(LARGEST, 2 * len(data))]


_integers = st.builds(
    lambda number, width, order: (number % 256**width).to_bytes(width, order),
    st.one_of(st.integers(0, 300), st.sampled_from([2**k - 1 for k in (7, 8, 15, 16, 31, 32, 63, 64)])),
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from(("big", "little")),
)


def _values(seeds: tuple[bytes, ...], kind: str) -> list[Any]:
    """The documents that the valid inputs hold."""
    found = []
    for seed in seeds:
        if kind == "lines":
            found.append([json.loads(line) for line in seed.splitlines() if line.strip()])
        elif kind == "yaml":
            found.append(yaml.load(seed, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        else:
            found.append(json.loads(seed))
    return found


def _folders() -> Bytes:
    names = st.one_of(st.sampled_from(trees.WORDS), st.sampled_from(trees.WORDS), st.text(min_size=1, max_size=6))
    entries = st.builds(
        lambda kind, parts: f"{kind} {'/'.join(parts)}".encode("utf-8", "surrogateescape"),
        st.sampled_from((*trees.USUAL, *trees.KINDS)),
        st.lists(names, min_size=1, max_size=4),
    )
    return st.lists(entries, max_size=14).map(b"\n".join)


def strategy(target: Target) -> Bytes:
    """The structured inputs of a reader, as bytes of the file."""
    seeds = target.seeds
    if target.kind == "tree":
        return _folders()
    if target.kind in ("binary", "text"):
        general = [edited(seeds), soup(seeds) if target.kind == "text" else st.binary(max_size=200)]
        return st.one_of(*([target.forms] * 3 if target.forms is not None else [general[0]]), *general)
    valid = _values(seeds, target.kind)
    if target.kind == "lines":
        lines = changed(valid).map(lambda found: found if isinstance(found, list) else [found])
        good = lines.map(lambda found: b"\n".join(map(_dumped, found)) + b"\n")
        odd = st.lists(st.one_of(documents.map(_dumped), soup(seeds)), max_size=5).map(b"\n".join)
        return st.one_of(good, good, good, odd)
    good = changed(valid)
    if target.kind == "yaml":
        return st.one_of(good.map(_dumped), good.map(_blocks), documents.map(_blocks), soup(seeds))
    return st.one_of(good.map(_dumped), good.map(_dumped), documents.map(_dumped), soup(seeds))
