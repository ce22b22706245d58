"""Damages valid inputs: by bits, by parts, and by the values inside a document."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from fuzz import trees

BYTES = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"{}", b"[]", b"null", b"true", b'"', b"{", b"]",
    b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"../../etc/passwd",
    b"*a", b"&a [*a,*a]", b"<<: *a", b"!!python/object/apply:os.system [x]", b"? [a]: b", b"- " * 200, b"[" * 2000,
    b'{"a":' * 1500, b"(" * 500, b"0x1f", b"010", b"1:30", b"2026-99-99", b"evil.py:X", b"~", b"%s%n", b"\x1b[31m",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**6, 10**9, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0,
    1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "a", "1", "true", "\0", "a\nb", "\ud800", "é" * 300,
    "a" * 20_000, "../x", "/etc/passwd", "images/../../x.png", "evil.py:X", "os:system", [], {}, [[]], [None], [1, "a"],
    ["a"] * 2000, {"": {}}, {"a": [1, {"b": None}]}, {"names": []}, [[1, 2], [3]], [True],
)  # fmt: skip


LARGEST = 2**20
"""How many bytes an input has at most, unless its seed is large itself."""


def damaged(seeds: tuple[bytes, ...], kind: str, random: Random) -> bytes:
    """A damaged copy of one of the seeds."""
    if kind == "tree":
        return trees.described(random)
    data = random.choice(seeds)
    most = max(LARGEST, 2 * len(data))
    if kind in ("json", "lines", "yaml") and random.random() < 0.6:
        data = _by_value(data, kind, random)
        if random.random() < 0.7:
            return data
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        data = _by_bytes(data, seeds, random)[:most]
    return data


def _by_bytes(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at, to = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    match random.randrange(9):
        case 0 if data:
            one = random.randrange(len(data))
            return data[:one] + bytes([data[one] ^ 1 << random.randrange(8)]) + data[one + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[to:]
        case 3:
            other = random.choice(seeds)
            cut = random.randint(0, len(other))
            return data[:at] + other[cut : cut + random.choice((1, 8, 100, 10_000))] + data[to:]
        case 4:
            return data[:at] + random.choice(BYTES) + data[at:]
        case 5:
            return data[:at] + random.choice(BYTES) + data[to:]
        case 6:
            return data[:at] + random.randbytes(random.choice((1, 2, 4, 8, 64))) + data[at + 4 :]
        case 7:
            return data[:at] + data[at:to] * random.choice((2, 3, 50)) + data[to:]
    number = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1))
    width = random.choice((1, 2, 4, 8))
    order = random.choice(("big", "little"))
    return data[:at] + (number % 256**width).to_bytes(width, order) + data[at + width :]


def _by_value(data: bytes, kind: str, random: Random) -> bytes:
    """A document in which some values have another type, are at a limit, or are missing."""
    try:
        if kind == "lines":
            lines = data.splitlines() or [b"{}"]
            for _ in range(random.choice((1, 1, 2))):
                one = random.randrange(len(lines))
                lines[one] = _dumped(_changed(json.loads(lines[one]), random), random)
            if random.random() < 0.2:
                lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
            return b"\n".join(lines) + random.choice((b"\n", b"\n", b""))
        if kind == "yaml":
            import yaml

            value = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        else:
            value = json.loads(data)
    except Exception:  # an input that was damaged before is no document, in one of many ways
        return data
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _changed(value, random)
    try:
        return _dumped(value, random)
    except (
        RecursionError,
        TypeError,
        ValueError,
    ):  # nested too deep even for the writer, or a value that only YAML has
        return data


def _dumped(value: Any, random: Random) -> bytes:
    """The value as JSON, which is YAML too."""
    return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")[:LARGEST]


def _changed(value: Any, random: Random, depth: int = 0) -> Any:
    """The value with one change somewhere inside."""
    if isinstance(value, dict) and value and depth < 6 and random.random() < 0.9:
        found = dict(value)
        key = random.choice(list(found))
        match random.randrange(10):
            case 0:
                del found[key]
            case 1:
                found[random.choice(("x", "", "é", "a" * 300, f"{key}s", "__class__"))] = random.choice(VALUES)
            case 2:
                found[key] = [found[key]]
            case 3:
                found[key] = {key: found[key]}
            case 4:
                found[random.choice(list(found))] = found[key]
            case _:
                found[key] = _changed(found[key], random, depth + 1)
        return found
    if isinstance(value, list) and value and depth < 6 and random.random() < 0.85:
        found = list(value)
        one = random.randrange(len(found))
        match random.randrange(6):
            case 0:
                del found[one]
            case 1:
                found.insert(one, found[one])
            case 2:
                found *= random.choice((2, 100)) if len(found) < 1000 else 1
            case _:
                found[one] = _changed(found[one], random, depth + 1)
        return found
    if isinstance(value, (int, float)) and not isinstance(value, bool) and random.random() < 0.3:
        return random.choice((-value, value + 1, str(value), float(value) if abs(value) < 1e300 else 0.0, [value]))
    if isinstance(value, str) and random.random() < 0.3:
        return random.choice(
            (
                value + "\0",
                value.upper(),
                value[:-1],
                value * (50 if len(value) < 1000 else 1),
                f"../{value}",
                f"/{value}",
                [value],
            )
        )
    if random.random() < 0.05:
        deep: Any = value
        for _ in range(random.choice((20, 70, 500))):
            deep = [deep]
        return deep
    return random.choice(VALUES)
