"""How one process makes a set alone, or together with others that see the same folder."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dap.base import alone
from dap.base.alone import Busy, locked
from dap.base.claims import Claims
from dap.base.errors import DapError, NotFinite
from dap.base.parsing import counted
from dap.base.watch import Watcher
from dap.cost import Meter, add_up
from dap.data.sets.beginning import begin, begun_with, gather, grow
from dap.data.sets.contents import part_of
from dap.data.sets.distilled import WORK, DistilledSet
from dap.described import check_goes_on
from dap.engines.described import describe, other_machine
from dap.engines.looking import check_still_there
from dap.engines.ranks import Rank
from dap.methods.base import Made, Task, Unit, plan
from dap.methods.finite import Failures, forget, tried
from dap.recipe import Recipe

CLAIMS = f"{WORK}/claims"
"""The folder in a set with the leases of the processes that make it together."""

HERE = "here-"
"""The lease that each of these processes holds for as long as it works on the set has this name, and its own name after it."""

MANIFEST = "manifest.jsonl"

PATIENCE = 60.0
"""Seconds in which a process waits for another one that begins or ends its work on the same set."""


@dataclass
class Job:
    """A set that is to be made.

    Attributes:
        out: the folder of the set.
        name: what the set is called to the watcher.
        recipe: its recipe, in which no choice is left to `auto`.
        task: what it is made of.
        needs: the needs of the method.
        make: makes the images of a unit.
        inputs: see `DistilledSet.create`.
        watcher: is told of images.
        notes: files to write at the beginning, by name.
        used: what was made once before the first image, as `Store.used` says it.
        command: the shell command to record.
        said: more for env.json.
        threads: the CPU threads of the processes that make the images; None: those of this process.
        sizes: see `beginning.cuts`.
    """

    out: Path
    name: str
    recipe: Recipe
    task: Task
    needs: Collection[str]
    make: Callable[[Unit], Made]
    inputs: dict[str, Any]
    watcher: Watcher
    notes: Mapping[str, Any] = field(default_factory=dict)
    used: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    command: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    sizes: tuple[int, ...] = ()

    @property
    def units(self) -> list[Unit]:
        """The units of the set, which depend on the recipe alone."""
        return plan(len(self.task.source.class_names), self.task.recipe.ipc, self.task.recipe.block, self.sizes)

    @property
    def total(self) -> int:
        """The number of images."""
        return len(self.task.source.class_names) * self.task.recipe.ipc

    @property
    def device(self) -> torch.device:
        """Where the images are made."""
        return self.task.given.backbone.device if self.task.given.backbone else self.task.device

    def check_begun(self) -> None:
        """Check that the set can begin, go on or grow in its folder. Nothing is written."""
        check_begun(self.out, self.task, self.inputs)

    def begin(self) -> None:
        """Begin the set, or let it grow, while other processes may be making it. The caller must hold `alone.locked`."""
        names, values = self.task.source.class_names, self.task.recipe.values()
        grow(self.out, values, self.sizes, self.command)
        begin(
            self.out, names, values["ipc"], DistilledSet.check_begun(self.out, names, values, self.inputs), shared=True
        )

    def describe(self, made: DistilledSet) -> None:
        """Write the files beside the images, and tell if the machine is another one than that of the first images."""
        if told := other_machine(self.out, self.device, self.threads):
            self.watcher.note(told)
        describe(made, self.task, self.command, self.said, self.threads)
        for name, value in self.notes.items():
            made.note(name, value)

    def meter(self, made: DistilledSet, part: str = "") -> Meter:
        """A meter that begins to count now."""
        self.task.store.used |= self.used
        return Meter(made, self.needs, self.task.store, self.device, part)

    def failures(self) -> Failures:
        """Where the units are recorded that fail in this process."""
        return Failures(self.out, self.task.source.class_names, self.task.recipe.values())

    def tell(self, unit: Unit, done: int | None = None) -> None:
        """Tell that a unit is there, and that `done` images are there. None: all units before this one are there."""
        if done is None:
            done = unit.slots[-1] + 1 + unit.label * self.task.recipe.ipc
        self.watcher.images(self.name, done, self.total, self.task.source.class_names[unit.label])


def check_begun(out: Path, task: Task, inputs: dict[str, Any]) -> None:
    """Check that the set of a task can begin, go on or grow in a folder. Nothing is written. `beginning.cuts` checks whether the
    method lets it grow.

    Raises:
        DapError: the folder holds a set of another recipe or of other inputs, or other files.
    """
    values = task.recipe.values()
    begun = {**values, "ipc": begun_with(out, values) or values["ipc"]}
    DistilledSet.check_begun(out, task.source.class_names, begun, inputs)
    check_goes_on(out, inputs, len(task.source.class_names) * task.recipe.ipc)


def whole(out: Path, total: int) -> DistilledSet:
    """The finished set of `total` images, as it lies on the disk.

    Raises:
        DapError: images are missing.
    """
    made = DistilledSet.open(out)
    if missing := made.missing():  # what is on disk counts, not what was written
        raise DapError(
            f"{out} lacks {len(missing)} of {counted(total, 'image')}, because something removed or changed them meanwhile. "
            "Run the same command again, and it makes them."
        )
    return made


def has(made: DistilledSet, unit: Unit) -> bool:
    """Whether a set has all images of a unit."""
    return all(made.has(unit.label, slot) for slot in unit.slots)


def make_alone(job: Job, stream: Callable[[Sequence[Unit]], Any] | None = None) -> DistilledSet:
    """Make the missing units of a set. No other process may write into its folder meanwhile.

    Args:
        job: the set.
        stream: makes the units elsewhere. It gets the missing units and yields pairs of a unit and its images, in any order.
            Default: they are made here, one after the other.

    Raises:
        Busy: another process writes into the folder.
        DapError: a unit cannot be made. Images that were made before stay.
    """
    job.check_begun()
    claims = Claims(job.out / CLAIMS)
    claims.held(HERE, look=1.1 * alone.LEASE)  # before the lock: those who live need the folder meanwhile
    with locked(job.out):
        if others := claims.held(HERE):
            who = "Another process is" if len(others) == 1 else f"{len(others)} other processes are"
            raise Busy(
                f"{who} making {job.out} in shards. To help, give the same command --shard 1/1; else wait for the end, or stop "
                "the work there."
            )
        values = job.task.recipe.values()
        grow(job.out, values, job.sizes, job.command)
        made = DistilledSet.create(job.out, job.task.source.class_names, values["ipc"], values, job.inputs)
        add_up(job.out)  # the costs of processes that were killed
        job.describe(made)
        meter = job.meter(made)
        job.watcher.images(job.name, 0, job.total)
        forget(job.out)
        failures = job.failures()
        if stream is None:
            for unit in job.units:
                if not has(made, unit):
                    _add(made, unit, tried(job.make, unit), meter, job, failures)
                job.tell(unit)
        else:
            for unit, result in stream([unit for unit in job.units if not has(made, unit)]):
                _add(made, unit, result, meter, job, failures)
                job.tell(unit, len(made))
        meter.write()
        check_still_there(job.out)
        gather(job.out)
        failures.check()
        made = whole(job.out, job.total)
    shutil.rmtree(job.out / WORK, ignore_errors=True)
    return made


def _add(made: DistilledSet, unit: Unit, result: Made | NotFinite, meter: Meter, job: Job, failures: Failures) -> None:
    check_still_there(job.out)
    if isinstance(result, NotFinite):
        failures.add(unit, result)
        return
    for row, slot in enumerate(unit.slots):
        made.add(unit.label, slot, result.images[row], **result.records[row])
    meter.add(len(unit.slots))
    failures.made = True


def make_together(job: Job, rank: Rank, wait: float = 1.0) -> DistilledSet:
    """Make those missing units of a set that no other process makes, until all units are there. Others may do the same.

    Each of the processes ends when the whole set is there, so any of them may be killed and none is waited for.

    Args:
        job: the set.
        rank: where in the list of units this process begins.
        wait: the seconds between two looks at the units that other processes make.

    Raises:
        Busy: a process that makes the set alone holds its folder.
        DapError: a unit cannot be made. Images that were made before stay.
    """
    job.check_begun()
    claims, me = Claims(job.out / CLAIMS), uuid.uuid4().hex[:12]
    with ExitStack() as stack:
        with locked(job.out, wait=PATIENCE):
            job.begin()
            if not claims.held(HERE):
                forget(job.out)
            stack.enter_context(claims.take(f"{HERE}{me}"))
        seen = _Seen.now(job)
        job.describe(seen.made)
        meter = job.meter(seen.made, me)
        failures = job.failures()
        _share(job, seen, claims, rank, meter, failures, wait)
        meter.write()
        check_still_there(job.out)
        finish(job.out, claims)
        failures.check()
        made = whole(job.out, job.total)
    clean(job.out, claims)
    return made


def finish(out: Path, claims: Claims, prepared: Mapping[str, Any] | None = None) -> None:
    """Put the manifest and the costs together after all units were made. Several processes may do so, one after the other.

    Args:
        out: the folder of the set.
        claims: the leases on it.
        prepared: see `add_up`.
    """
    with locked(out, wait=PATIENCE):
        gather(out)
        add_up(out, [name.removeprefix(HERE) for name in claims.held(HERE)], prepared or {})


def clean(out: Path, claims: Claims) -> None:
    """Remove the folder for unfinished work, unless another process still works on the set; that one then does so."""
    if not claims.held(HERE):
        shutil.rmtree(out / WORK, ignore_errors=True)


State = tuple[int, int] | None
"""What tells one state of a file from another one; None where there is no file."""


@dataclass
class _Seen:
    """A set as it was at one moment.

    Attributes:
        made: the set.
        parts: the parts of the manifest just before. A part that the set lacks all the same has damaged images, and its unit is
            made again. A part of another state is new.
        manifest: the state of manifest.jsonl just before. It changes when another process has put the parts together.
    """

    made: DistilledSet
    parts: Mapping[Unit, State]
    manifest: State

    @staticmethod
    def now(job: Job) -> _Seen:
        parts, manifest = {unit: _part(job.out, unit) for unit in job.units}, _state(job.out / MANIFEST)
        return _Seen(DistilledSet.open(job.out), parts, manifest)

    def current(self, job: Job) -> bool:
        return _state(job.out / MANIFEST) == self.manifest


def _share(job: Job, seen: _Seen, claims: Claims, rank: Rank, meter: Meter, failures: Failures, wait: float) -> None:
    first = rank.first(len(job.units))
    todo = [unit for unit in (*job.units[first:], *job.units[:first]) if not has(seen.made, unit)]
    job.watcher.images(job.name, len(seen.made), job.total)
    while todo:
        before = len(todo)
        for unit in list(todo):
            if not seen.current(job):
                seen = _Seen.now(job)
            if has(seen.made, unit) or _part(job.out, unit) not in (None, seen.parts[unit]):
                todo.remove(unit)
                continue
            with claims.take(f"{unit.label}-{unit.slots[0]}") as mine:
                if mine and _part(job.out, unit) == seen.parts[unit] and seen.current(job):  # not made just now
                    result = tried(job.make, unit)
                    check_still_there(job.out)
                    todo.remove(unit)
                    if isinstance(result, NotFinite):  # each process tries such a unit once, and ends with its reason
                        failures.add(unit, result)
                        continue
                    seen.made.add_unit(unit.label, unit.slots, result.images, result.records)
                    meter.add(len(unit.slots))
                    failures.made = True
                    job.tell(unit, job.total - sum(len(left.slots) for left in todo))
        if len(todo) == before:
            time.sleep(wait)


def _part(out: Path, unit: Unit) -> State:
    """The state of a unit's part of the manifest."""
    return _state(part_of(out, unit.label, unit.slots[0]))


def _state(file: Path) -> State:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
