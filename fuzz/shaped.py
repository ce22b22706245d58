"""Runs hypothesis over a reader, and lets it make smaller what is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, choices_to_bytes
from hypothesis.errors import Flaky

from fuzz.target import Count, Target, judge, put

SHRINKING = 15.0
"""Seconds that an input is made smaller for."""
PIECES = 128
"""Into how many pieces an input is cut to find out which of them it needs."""
PLAIN = 1024
"""Up to how many bytes every single byte of an input is made simpler."""

_HOW = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
)


class Unclear(Exception):
    """An answer that is not clear. Each place has a class of its own, because hypothesis tells failures apart by them."""


@cache
def _at(place: str) -> type[Unclear]:
    return type("Unclear", (Unclear,), {"__doc__": place})


class _From(ExampleDatabase):
    """A database that holds one example to begin with: hypothesis makes it smaller."""

    def __init__(self, choices: Iterable[Any]) -> None:
        self._example = choices_to_bytes(tuple(choices))

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return (
            [self._example] if key.endswith(b".secondary") else []
        )  # of the others it takes that they are small already

    def save(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes, value: bytes) -> None: ...


def explore(
    target: Target,
    strategy: st.SearchStrategy[bytes],
    inputs: int,
    number: int,
    count: Count,
    known: Iterable[str] = (),
) -> dict[str, tuple[str, bytes]]:
    """Give a reader structured inputs.

    Args:
        target: the reader.
        strategy: of its inputs.
        inputs: how many.
        number: the seed.
        count: is counted up. Inputs that hypothesis tries while it makes one smaller are not counted.
        known: places of unclear answers that are known beside those in `count`.

    Returns:
        For each new place of an unclear answer its trace and the smallest input, as hypothesis found it.
    """
    passed, found = {*count.places, *known}, dict[str, tuple[str, bytes]]()
    check = _Check(target, count)

    @seed(number)
    @settings(_HOW, max_examples=inputs)
    @given(strategy)
    def each(data: bytes) -> None:
        told = check(data)
        if told is not None and told[0] not in passed:
            if told[0] not in count.places:  # it came up while another one was made smaller
                count.add(Count(inputs=1, unclear=1, places={told[0]: 1}))
            found[told[0]] = (told[1], data)  # hypothesis runs the smallest one again at the end
            check.began = check.began or time.monotonic()
            raise _at(told[0])

    _run(each)
    return found


class _Check:
    """Gives a reader an input, and remembers the unclear ones. After a while only those are answered, to end the shrinking."""

    def __init__(self, target: Target, count: Count) -> None:
        self.target, self.count, self.began = target, count, 0.0
        self._told: dict[bytes, tuple[str, str]] = {}

    def __call__(self, data: bytes) -> tuple[str, str] | None:
        """The place and the trace of an unclear answer, or None."""
        if data in self._told:
            return self._told[data]
        if self.began and time.monotonic() - self.began > SHRINKING:
            return None
        count = replace(self.count, places={}) if self.began else self.count
        trace = judge(self.target, put(self.target, data), count)
        if trace is None:
            return None
        self._told[data] = trace.partition("\n")[0], trace
        return self._told[data]


def smaller(target: Target, data: bytes, place: str) -> bytes:
    """The smallest input, of those that hypothesis tries, whose answer is unclear at the same place."""
    check = _Check(target, Count())
    check.began = time.monotonic()

    def fails(candidate: bytes) -> bool:
        told = check(candidate)
        return told is not None and told[0] == place

    while True:  # which pieces are needed, then which pieces of these
        step = -(-len(data) // PIECES) or 1
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        flags = st.tuples(*[st.booleans()] * len(pieces))
        joined = flags.map(lambda kept, pieces=pieces: b"".join(p for p, k in zip(pieces, kept, strict=True) if k))
        found = _least(joined, [True] * len(pieces), data, fails)
        if len(found) >= len(data) or not found:
            break
        data = found
    if len(data) <= PLAIN:
        data = _least(st.binary(max_size=len(data)), [data], data, fails)
    return data


def _least(
    strategy: st.SearchStrategy[bytes], choices: Iterable[Any], data: bytes, fails: Callable[[bytes], bool]
) -> bytes:
    last = [data]

    @settings(_HOW, database=_From(choices), phases=(Phase.reuse, Phase.shrink))
    @given(strategy)
    def each(candidate: bytes) -> None:
        if fails(candidate):
            last.append(candidate)
            raise Unclear

    _run(each)
    return min(last[-1], last[0], key=len)


def _run(test: Callable[[], None]) -> None:
    """Run a test of hypothesis. What it found was remembered by the test; an answer that came only once is told as flaky."""
    with suppress(Unclear, ExceptionGroup, Flaky):
        test()
