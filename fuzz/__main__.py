"""Feeds every reader with damaged files for some minutes. Exits with 1 if an answer was not clear.

Three drivers share the time: mutations of valid files, structured inputs by hypothesis, and, where it is installed, atheris,
which is guided by coverage.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fuzz.guided import installed, work_guided
from fuzz.run import FOUND, all_drivers, plain, table, together, work

GUIDED = 0.2
"""The part of the time that atheris gets."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--seed", type=int, default=None, help="default: the time, so that every run tries other inputs"
    )
    parser.add_argument("--only", default="", help="feed only the readers whose names hold this text")
    parser.add_argument("--no-atheris", action="store_true", help="do not use atheris, even if it is installed")
    parser.add_argument("--json", type=Path, default=FOUND / "counts.json", help="the file for the counts")
    given = parser.parse_args()
    seed = int(time.time()) if given.seed is None else given.seed
    missing = unguided(left_out=given.no_atheris)
    shares = {work: 1.0} if missing else {work: 1 - GUIDED, work_guided: GUIDED}
    parts = []
    for driver, share in shares.items():
        jobs = [(share * given.minutes * 60, seed * 1000 + number, given.only) for number in range(given.processes)]
        # Each driver has new processes: atheris must come before what it watches.
        with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
            parts += pool.map(driver, *zip(*jobs, strict=True))
    counts = together(parts)
    said = {"seed": seed, "minutes": given.minutes, "processes": given.processes, "python": platform.python_version()}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({**said, "drivers": plain(counts)}, indent=1) + "\n")
    print(table(counts))
    if missing:
        print(missing)
    unclear = {(name, place): n for name, c in all_drivers(counts).items() for place, n in c.places.items()}
    for (name, place), number in sorted(unclear.items(), key=lambda item: -item[1]):
        print(f"unclear: {name}: {place} ({number:,} times)")
    if unclear:
        print("The inputs and traces are in fuzz/found.")
    return 1 if unclear else 0


def unguided(*, left_out: bool) -> str:
    """Why atheris is not used, as a sentence; "" where it is used."""
    if left_out:
        return "Atheris was left out, so no input was guided by coverage."
    return "" if installed() else "Atheris is not installed, so no input was guided by coverage; see the extra `fuzz`."


if __name__ == "__main__":
    sys.exit(main())
