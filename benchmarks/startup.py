"""Measures how long the command `dap` takes to answer, in processor seconds over those of a Python that does nothing.

Processor time is the user and system time of a process and its children, so that other work on the machine changes it
little. The rows take turns. The table shows the median of each row. `--check` fails where a row is above its bound.

    python benchmarks/startup.py --check
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence

BARE = "bare Python"

ROWS: dict[str, tuple[list[str], float]] = {
    BARE: (["-c", "pass"], float("inf")),
    "import dap": (["-c", "import dap"], 0.1),
    "dap --version": (["-m", "dap", "--version"], 0.3),
    "dap --help": (["-m", "dap", "--help"], 0.3),
    "dap destill (misspelt)": (["-m", "dap", "destill"], 0.3),
    "dap distill --help": (["-m", "dap", "distill", "--help"], 0.3),
    "dap compare --help": (["-m", "dap", "compare", "--help"], 0.3),
    "dap evaluate --help": (["-m", "dap", "evaluate", "--help"], 0.3),
    "dap import --help": (["-m", "dap", "import", "--help"], 0.3),
    "dap distill --ipcc 3 (misspelt flag)": (["-m", "dap", "distill", "--ipcc", "3"], 0.3),
}
"""For each row the arguments of Python, and the largest number of seconds over bare Python that the row may take."""


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Processor seconds of one run of this Python with these arguments. The output of the run is thrown away."""
    nowhere = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=nowhere)
    _, _, used = os.wait4(process, 0)
    return used.ru_utime + used.ru_stime


def in_turns(rows: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[float]]:
    """Processor seconds of each run of the rows, which take turns. `rows` has the arguments of Python."""
    for arguments in rows.values():  # the first run reads files from the disk and may write bytecode
        cpu_seconds(arguments)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(runs):
        for name, arguments in rows.items():
            found[name].append(cpu_seconds(arguments))
    return found


def medians(runs: int) -> dict[str, float]:
    """The median processor seconds of every row, minus those of bare Python."""
    found = in_turns({name: arguments for name, (arguments, _) in ROWS.items()}, runs)
    bare = statistics.median(found[BARE])
    return {name: statistics.median(seconds) - (0 if name == BARE else bare) for name, seconds in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=11, help="runs of each row (%(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a row is above its bound")
    args = parser.parse_args()
    found = medians(args.runs)
    bytecode = "no bytecode is written" if sys.dont_write_bytecode else "bytecode is written"
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {args.runs} runs, {bytecode}\n")
    print("| what | seconds of processor time over bare Python | bound |\n|---|---|---|")
    for name, seconds in found.items():
        bound = ROWS[name][1]
        print(f"| `{name}` | {seconds:.2f} | {'' if bound == float('inf') else bound} |")
    above = [name for name, seconds in found.items() if seconds > ROWS[name][1]]
    if above:
        print(f"\nAbove the bound: {', '.join(above)}.")
    return int(args.check and bool(above))


if __name__ == "__main__":
    sys.exit(main())
