"""A queue of `dap compare` for a whole grid: it runs in the background for days, can be killed, and goes on where it was.

    nohup nice python benchmarks/grid.py benchmarks/grid.yaml &    # works until every cell is done
    python benchmarks/grid.py benchmarks/grid.yaml --status        # prints what is done, what is left, and how long it takes
    python benchmarks/grid.py benchmarks/grid.yaml --list          # prints the commands, in their order

A list is a YAML file (`Queue` says what may stand in it). A cell is a method, a backbone, a number of images per class, a
network and a variant. Each cell has several sets. The queue is ordered so that every cell gets its first set before any
cell gets its second. One job trains one network on one set by `dap compare`, with one thread and a cache that all jobs
share. After a job its trainings are written to the ledger, a CSV as `benchmarks/rivals.py` keeps it. Then the job is
noted in `jobs.csv` in the folder of the queue. A job without a note that it succeeded is run again, and `dap compare`
goes on where it was. Several processes may work on one list side by side; each takes the next job that no other holds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

from filelock import FileLock
from pydantic import Field

import rivals
from dap.base.claims import share
from dap.base.documents import fitted, read_yaml
from dap.base.errors import DapError
from dap.base.fields import FromFile, Images, Name, RunSeed
from dap.base.files import drop_torn_line
from dap.data.sets.notes import Plain
from dap.methods import find

ROOT = Path(__file__).parents[1]
NOTES = ("job", "seconds", "ended", "exit", "command")

Flags = dict[str, Any]
Many = Annotated[list[Name], Field(min_length=1)]


class Cells(FromFile, frozen=True):
    """Some cells of a list: every combination of what stands here.

    Attributes:
        methods: the methods, as `dap compare --methods` takes them.
        ipc: numbers of images per class.
        networks: the networks that are trained on each set.
        backbones: backbones; one is enough for methods that need none.
        protocol: the protocol by which networks are trained.
        sets: distilled sets of a cell. Their run seeds count up from `seed`.
        seed: the run seed of the first set.
        trainings: trainings of each network on each set.
        flags: further flags of `dap compare`, without the dashes. A list gives a flag several times.
        variants: from the name of a variant to its own flags. Rows of the ledger carry the name, since a ledger does not
            hold every field of a recipe.
    """

    methods: Many
    ipc: Annotated[list[Images], Field(min_length=1)] = [10]
    networks: Many = ["convnet3"]
    backbones: Many = ["starter"]
    protocol: Name = "quick-hard"
    sets: Images = 1
    seed: RunSeed = 0
    trainings: Images = 1
    flags: Flags = {}
    variants: Annotated[dict[str, Flags], Field(min_length=1)] = {"": {}}


class Queue(FromFile, frozen=True):
    """A list of cells.

    Attributes:
        out: the folder of sets, cache and notes, relative to the root of the repository.
        ledger: the CSV that gets a line for each training, relative to the root of the repository.
        shared: what all entries of `cells` have, unless they say otherwise. `flags` are put together.
        cells: the entries, as `Cells`, the most important first.
    """

    out: Name
    ledger: Name
    shared: Plain = {}
    cells: Annotated[list[Plain], Field(min_length=1)]


@dataclass(frozen=True)
class Job:
    """One network that is trained on one set.

    Attributes:
        round: which set of its cell it is, from 0.
        kind: method, images per class and network; jobs of one kind take about as long.
        folder: the folder of `dap compare`, relative to the folder of the queue.
        variant: the name of the variant.
        flags: the flags of `dap compare`, without the folder, the cache and the threads.
    """

    round: int
    kind: tuple[str, int, str]
    folder: Path
    variant: str
    flags: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """A name for the job, made of its folder and flags. A job whose flags were changed is another job."""
        return hashlib.sha256(repr((str(self.folder), self.flags)).encode()).hexdigest()[:16]

    def command(self, out: Path) -> list[str]:
        """The command of the job in the folder of the queue, with one thread."""
        own = ["--threads", "1", "--quiet", "--cache", str(out / "cache"), "--out", str(out / self.folder)]
        return [sys.executable, "-P", "-m", "dap", "compare", *self.flags, *own]


def read(file: Path) -> tuple[Queue, list[Cells]]:
    """A list and its entries.

    Raises:
        DapError: the file cannot be read, a key or a value does not fit, or a method is unknown.
    """
    queue = read_yaml(file, Queue)
    entries = []
    for number, entry in enumerate(queue.cells, 1):
        flags = {**dict(queue.shared.get("flags") or {}), **dict(entry.get("flags") or {})}
        cells = fitted({**queue.shared, **entry, "flags": flags}, Cells, f"{file}, entry {number} of cells")
        for method in cells.methods:
            find(method)
        entries.append(cells)
    return queue, entries


def jobs(entries: Sequence[Cells]) -> list[Job]:
    """All jobs in their order: by set, then by entry, network, images per class, backbone, variant and method."""
    return sorted(_jobs(entries), key=lambda job: job.round)


def _jobs(entries: Sequence[Cells]) -> Iterator[Job]:
    for cells in entries:
        for network in cells.networks:
            for ipc in cells.ipc:
                for backbone in cells.backbones:
                    for variant, own in cells.variants.items():
                        folder = Path(quote(backbone, safe="")) / quote(variant or "default", safe=" ")
                        for method in cells.methods:
                            for round in range(cells.sets):
                                flags = {"methods": method, "backbone": backbone, "ipc": ipc, "sets": 1}
                                flags |= {"seed": cells.seed + round, "seeds": cells.trainings, "networks": network}
                                flags |= {"protocol": cells.protocol, **cells.flags, **own}
                                yield Job(round, (method, ipc, network), folder, variant, tuple(_written(flags)))


def _written(flags: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            yield f"--{name}={one}"


@dataclass(frozen=True)
class Notes:
    """What has been run, in `jobs.csv` in the folder of a queue."""

    out: Path

    def read(self) -> list[dict[str, str]]:
        """The notes, the oldest first. A line that a kill cut off is left out."""
        if not (self.out / "jobs.csv").exists():
            return []
        with (self.out / "jobs.csv").open(newline="", encoding="utf-8") as file:
            lines = [dict[str, str](line) for line in csv.DictReader(file, list(NOTES))]
        return [line for line in lines if line["command"] and line["exit"].lstrip("-").isdigit()]

    def add(self, job: Job, seconds: float, code: int, command: Sequence[str]) -> None:
        """Note that a job has ended. Hold the lock of the ledger."""
        drop_torn_line(self.out / "jobs.csv")
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with (self.out / "jobs.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(
                [job.key, f"{seconds:.1f}", ended, code, shlex.join(command)]
            )

    def done(self) -> dict[str, float]:
        """The seconds of each job that succeeded, by its key."""
        return {line["job"]: float(line["seconds"]) for line in self.read() if line["exit"] == "0"}


def run(job: Job, out: Path, ledger: Path) -> None:
    """Run a job unless it is done, and take its trainings up into the ledger.

    Raises:
        DapError: the command failed. Its output is in the folder `logs`.
    """
    notes = Notes(out)
    if job.key in notes.done():
        return
    log = out / "logs" / f"{job.key}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command, began = job.command(out), time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    with FileLock(out / "ledger.lock"):
        if code == 0:
            ledger.parent.mkdir(parents=True, exist_ok=True)
            rivals.add(ledger, rivals.trainings([out / job.folder], job.variant))
        notes.add(job, time.monotonic() - began, code, command)
    if code:
        raise DapError(f"The command ended with exit status {code}; {log} has its output.")


def status(todo: Sequence[Job], done: Mapping[str, float]) -> str:
    """What is done and what is left, round by round, and an estimate of the hours that are left on one core."""
    lines = []
    for round in sorted({job.round for job in todo}):
        of = [job for job in todo if job.round == round]
        lines.append(f"set {round + 1} of each cell: {sum(job.key in done for job in of)} of {len(of)} jobs done")
    left = [job for job in todo if job.key not in done]
    taken = sum(done[job.key] for job in todo if job.key in done)
    lines.append(f"{len(todo) - len(left)} of {len(todo)} jobs done in {taken / 3600:.1f} h, {len(left)} left")
    guesses = _guesses(left, [job for job in todo if job.key in done], done)
    if guesses:
        lines.append(
            f"{len(guesses)} of them take about {sum(guesses) / 3600:.1f} h on one core, as long as jobs like them took"
        )
    if len(guesses) < len(left):
        lines.append(f"of {len(left) - len(guesses)} of them nothing is known, since no job like them has ended")
    return "\n".join(lines)


def _guesses(left: Iterable[Job], ended: Iterable[Job], done: Mapping[str, float]) -> list[float]:
    """For each job that has one like it, the mean seconds of ended jobs of its method, ipc and network, else of its ipc and
    network."""
    seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for job in ended:
        seconds[job.kind].append(done[job.key])
        seconds[job.kind[1:]].append(done[job.key])
    alike = [seconds.get(job.kind) or seconds.get(job.kind[1:]) for job in left]
    return [fmean(found) for found in alike if found]


def _stop(number: int, _frame: object) -> NoReturn:
    """Ends this process by an exception, so that the command that runs is ended too."""
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="a YAML file")
    parser.add_argument("--status", action="store_true", help="print what is done and left, and run nothing")
    parser.add_argument("--list", action="store_true", dest="show", help="print the commands left, and run nothing")
    args = parser.parse_args()
    try:
        queue, entries = read(args.list)
        out, ledger = ROOT / queue.out, ROOT / queue.ledger
        todo = jobs(entries)
        done = Notes(out).done()
        if args.status:
            print(status(todo, done))
        elif args.show:
            print("\n".join(shlex.join(job.command(out)) for job in todo if job.key not in done))
        else:
            signal.signal(signal.SIGTERM, _stop)
            left = [job for job in todo if job.key not in done]
            share([(job.key, lambda job=job: run(job, out, ledger)) for job in left], out)
    except DapError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
