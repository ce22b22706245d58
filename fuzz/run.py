"""Feeds readers in turn, keeps what they do not answer clearly, and counts."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import damaged
from fuzz.target import Count, Target, clear, judge, put

FOUND = Path(__file__).parent / "found"
STUCK = 60
"""Seconds after which a process ends whose reader waits inside foreign code."""
SLICE = 0.5
"""Seconds that a reader has before the next one has its turn."""
FAST = ("note:", "document:", "lines:", "kernel", "recipe flag", "class", "export", "model_index", "--")
"""Readers of which an input takes less than a millisecond. The turns of the others are shorter."""


def all_targets(folder: Path) -> list[Target]:
    """Every reader, each with valid inputs in a folder of its own."""
    from fuzz import of_data, of_recipes, of_sets, of_weights

    groups = {"sets": of_sets, "recipes": of_recipes, "data": of_data, "weights": of_weights}
    return [target for name, group in groups.items() for target in group.targets(folder / name)]


def one_input(target: Target, random: Random, count: Count) -> tuple[str | None, bytes]:
    """Make one damaged input and give it to the reader. Returns the trace of an unclear answer, and the input."""
    if target.make is not None:
        clear(target.folder)
        target.make(target.folder, random)
        listing = sorted(p.relative_to(target.folder).as_posix() for p in target.folder.rglob("*"))
        return judge(target, target.folder, count), "\n".join(listing).encode("utf-8", "surrogateescape")
    data = damaged(target.seeds, target.kind, random)
    return judge(target, put(target, data), count), data


def feed(targets: list[Target], seconds: float, seed: int, most: int | None = None) -> dict[str, Count]:
    """Feed the readers in turn until the time is over, or each reader has had `most` inputs."""
    counts = {target.name: Count() for target in targets}
    randoms = {target.name: Random(f"{seed} {target.name}") for target in targets}
    end = time.monotonic() + seconds
    while time.monotonic() < end and (most is None or any(count.inputs < most for count in counts.values())):
        for target in targets:
            count, random = counts[target.name], randoms[target.name]
            began = time.monotonic()
            faulthandler.dump_traceback_later(STUCK, exit=True)  # for a reader that waits where no alarm reaches it
            turn = SLICE if target.name.startswith(FAST) else SLICE / 5
            while (now := time.monotonic()) < min(end, began + turn) and (most is None or count.inputs < most):
                trace, data = one_input(target, random, count)
                if trace is not None:
                    keep(target, trace, data, count)
            faulthandler.cancel_dump_traceback_later()
            count.seconds += now - began
    return counts


def keep(target: Target, trace: str, data: bytes, count: Count) -> None:
    """Save the first input of each kind of unclear answer, with its trace."""
    place = trace.partition("\n")[0]
    if count.places.get(place) != 1:
        return
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


def work(seconds: float, seed: int, only: str, most: int | None = None) -> dict[str, dict[str, Any]]:
    """One process: make the inputs, and feed the readers whose names hold `only`."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dap-fuzz-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        targets = [target for target in all_targets(Path(folder)) if only in target.name]
        quiet()
        return {name: asdict(count) for name, count in feed(targets, seconds, seed, most).items()}


def together(parts: list[dict[str, dict[str, Any]]]) -> dict[str, Count]:
    """The counts of several processes."""
    found: dict[str, Count] = {}
    for part in parts:
        for name, said in part.items():
            count = found.setdefault(name, Count())
            for key in ("inputs", "values", "sentences", "unclear", "seconds"):
                setattr(count, key, getattr(count, key) + said[key])
            for place, number in said["places"].items():
                count.places[place] = count.places.get(place, 0) + number
    return found


def table(counts: dict[str, Count]) -> str:
    """The counts as a table in Markdown."""
    rows = ["| reader | inputs | values | sentences | unclear |", "|---|--:|--:|--:|--:|"]
    rows += [
        f"| {name} | {c.inputs:,} | {c.values:,} | {c.sentences:,} | {c.unclear:,} |" for name, c in counts.items()
    ]
    sums = [sum(getattr(c, key) for c in counts.values()) for key in ("inputs", "values", "sentences", "unclear")]
    return "\n".join([*rows, f"| **all** | {' | '.join(f'{number:,}' for number in sums)} |"])
