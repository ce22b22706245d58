"""Feeds readers in turn, keeps what they do not answer clearly, and counts."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import hypothesis.configuration
from hypothesis.strategies import SearchStrategy

from fuzz.mutate import damaged
from fuzz.shaped import explore, smaller
from fuzz.strategies import strategy
from fuzz.target import Count, Target, judge, put

Counts = dict[str, dict[str, Count]]
"""For each driver the counts of each reader by name."""

FOUND = Path(__file__).parent / "found"
STUCK = 120
"""Seconds after which a process ends whose reader waits inside foreign code."""
SLICE = 0.5
"""Seconds that a reader has before the next one has its turn."""
SHAPED = 0.4
"""The part of a turn that hypothesis has. It is slower than mutations, and its inputs come further."""
FAST = (
    "note:",
    "document:",
    "lines:",
    "kernel",
    "recipe flag",
    "class list",
    "classes.json of",
    "export",
    "model_index",
    "--",
)
"""Readers of which an input takes less than a millisecond. The turns of the others are shorter."""


def all_targets(folder: Path) -> list[Target]:
    """Every reader, each with valid inputs in a folder of its own."""
    from fuzz import of_data, of_kept, of_originals, of_recipes, of_sets, of_weights

    groups = {"sets": of_sets, "recipes": of_recipes, "data": of_data, "weights": of_weights, "kept": of_kept}
    groups["originals"] = of_originals
    return [target for name, group in groups.items() for target in group.targets(folder / name)]


def one_input(target: Target, random: Random, count: Count) -> tuple[str | None, bytes]:
    """Make one damaged input and give it to the reader. Returns the trace of an unclear answer, and the input."""
    data = damaged(target.seeds, target.kind, random)
    return judge(target, put(target, data), count), data


def feed(targets: list[Target], seconds: float, seed: int) -> Counts:
    """Feed the readers in turn until the time is over, each by mutations and by hypothesis.

    Returns:
        For each driver and each reader the counts.
    """
    shapes = {target.name: strategy(target) for target in targets}
    counts: Counts = {driver: {target.name: Count() for target in targets} for driver in ("mutations", "hypothesis")}
    randoms = {target.name: (Random(f"{seed} {target.name}"), Random(f"{target.name} {seed}")) for target in targets}
    end, owed = time.monotonic() + seconds, dict.fromkeys(randoms, 0.0)
    while time.monotonic() < end:
        for target in targets:
            turn = SLICE if target.name.startswith(FAST) else SLICE / 5
            owed[target.name] += turn
            changed, shaped = (counts[driver][target.name] for driver in ("mutations", "hypothesis"))
            (random, seeds), places = randoms[target.name], {**changed.places, **shaped.places}
            # A reader that took longer than its turn, for one slow input or to make one smaller, waits for the others.
            if changed.seconds < owed[target.name] * (1 - SHAPED):
                alarmed(STUCK)
                mutate(target, random, min(turn * (1 - SHAPED), end - time.monotonic()), changed, places)
            if shaped.seconds < owed[target.name] * SHAPED:
                alarmed(STUCK)
                shape(target, shapes[target.name], seeds, min(turn * SHAPED, end - time.monotonic()), shaped, places)
    faulthandler.cancel_dump_traceback_later()
    return counts


def alarmed(seconds: float) -> None:
    """End the process with its trace after this time: for a reader that waits where no alarm reaches it."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def mutate(target: Target, random: Random, seconds: float, count: Count, known: Iterable[str] = ()) -> None:
    """Feed one reader with damaged inputs for some time. What is found at a new place is made smaller and kept."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        trace, data = one_input(target, random, count)
        if trace is None:
            continue
        place = trace.partition("\n")[0]
        if count.places[place] == 1 and place not in known:
            alarmed(STUCK)
            keep(target, trace, smaller(target, data, place))
    count.seconds += time.monotonic() - began


def shape(
    target: Target,
    inputs: SearchStrategy[bytes],
    random: Random,
    seconds: float,
    count: Count,
    known: Iterable[str] = (),
) -> None:
    """Feed one reader with structured inputs for about some time. What hypothesis found is kept."""
    if seconds <= 0:
        return
    began = time.monotonic()
    rate = count.inputs / count.seconds if count.seconds else 0.0
    most = min(1000, max(10, int(rate * seconds)))  # the first turn measures
    for trace, data in explore(target, inputs, most, random.getrandbits(32), count, known).values():
        keep(target, trace, data)
    count.seconds += time.monotonic() - began


def keep(target: Target, trace: str, data: bytes) -> None:
    """Save an input whose answer is not clear, with its trace."""
    place = trace.partition("\n")[0]
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{target.name}-{place}")[:120]
    FOUND.mkdir(exist_ok=True)
    (FOUND / f"{name}.input").write_bytes(data)
    (FOUND / f"{name}.txt").write_text(trace, encoding="utf-8", errors="backslashreplace")


def quiet() -> None:
    """Silence what libraries say, and limit memory: a reader that wants gigabytes for a small file fails."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, resource.RLIM_INFINITY))


def work(seconds: float, seed: int, only: str) -> dict[str, dict[str, Any]]:
    """One process: make the inputs, and feed the readers whose names hold `only`."""
    with room() as folder:
        targets = [target for target in all_targets(folder) if only in target.name]
        quiet()
        return plain(feed(targets, seconds, seed))


@contextmanager
def room() -> Iterator[Path]:
    """A folder for the files, in memory where there is a file system in memory."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dap-fuzz-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        os.environ["DAP_CACHE"] = str(Path(folder) / "cache")
        hypothesis.configuration.set_hypothesis_home_dir(Path(folder) / "hypothesis")
        yield Path(folder)


def plain(counts: Counts) -> dict[str, Any]:
    """The counts as JSON values."""
    return {driver: {name: asdict(count) for name, count in found.items()} for driver, found in counts.items()}


def together(parts: Iterable[dict[str, Any]]) -> Counts:
    """The counts of several processes."""
    found: Counts = {}
    for part in parts:
        for driver, readers in part.items():
            counts = found.setdefault(driver, {})
            for name, said in readers.items():
                counts.setdefault(name, Count()).add(Count(**said))
    return found


def all_drivers(counts: Counts) -> dict[str, Count]:
    """The counts of each reader over all drivers."""
    found: dict[str, Count] = {}
    for readers in counts.values():
        for name, count in readers.items():
            found.setdefault(name, Count()).add(count)
    return found


def table(counts: Counts) -> str:
    """The counts as two tables in Markdown: by driver and by reader."""
    drivers = {driver: sum_of(readers.values()) for driver, readers in counts.items()}
    readers = all_drivers(counts)
    return "\n\n".join((_table("driver", drivers), _table("reader", readers)))


def _table(what: str, counts: dict[str, Count]) -> str:
    rows = [f"| {what} | inputs | values | sentences | unclear |", "|---|--:|--:|--:|--:|"]
    for name, c in {**counts, "**all**": sum_of(counts.values())}.items():
        rows.append(f"| {name} | {c.inputs:,} | {c.values:,} | {c.sentences:,} | {c.unclear:,} |")
    return "\n".join(rows)


def sum_of(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    found = Count()
    for count in counts:
        found.add(count)
    return found
