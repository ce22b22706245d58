"""`dap status`: how far the sets and trainings in a folder are. It reads files alone, so every machine that sees them can ask.

How fast images are made is told by the times at which the files were written, so it does not matter which process or which
machine makes them, nor how many there are.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

from pydantic import Field

from dap.base.documents import read_json, read_lines
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Inside, Name, Seed
from dap.base.files import dump, natural_order, write_atomically
from dap.base.parsing import shown
from dap.data.real.finding.made import sets_below
from dap.data.sets.contents import FAILED
from dap.data.sets.notes import Label, Open, there
from dap.evaluation.report.records import SetRecord, load_set
from dap.verbs.placing import JUDGED, OF

GRID = "grid.json"
"""The plan of a grid, in its folder."""

RECENT = 200
"""How many of the last units tell the rate."""
PAUSE = 30.0
"""A time between two units that is longer than this many usual ones is a pause, in which nobody worked."""
BUSY = 120.0
"""Seconds after its last change in which a set counts as being worked on, or thrice the time of its slowest recent unit."""


class PlannedSet(FromFile, frozen=True):
    """A set of a grid: its folder inside that of the grid, its number of images, and the trainings on it.

    Plans of earlier versions have only the number of trainings.
    """

    folder: Inside
    images: Count
    trainings: Count
    protocol: Name | None = None
    """The name of the protocol in the trials."""
    networks: Annotated[list[Name], Field(max_length=10**4)] = []
    seeds: Annotated[list[Seed], Field(max_length=10**5)] = []

    def has(self, trial: Mapping[str, Any]) -> bool:
        """Whether a recorded training is one of the plan, as far as the plan says it."""
        return self.protocol is None or (
            trial["protocol"] == self.protocol and trial["network"] in self.networks and trial.get("seed") in self.seeds
        )


class GridPlan(FromFile, frozen=True):
    """`grid.json`: the sets that will be in a grid."""

    sets: Annotated[list[PlannedSet], Field(max_length=10**6)]


def write_plan(
    out: Path, sets: Mapping[str, int], protocols: Mapping[str, str], networks: Sequence[str], seeds: Sequence[int]
) -> None:
    """Write `grid.json`, by which `status` knows what is still to come. Sets that an earlier command planned stay in it.

    Args:
        out: the folder of the grid.
        sets: the folder of each set, relative to `out`, and its number of images.
        protocols: for each of these folders, the name that the protocol has in the trials.
        networks, seeds: the networks that are trained on each set, and the seeds of each.
    """
    before = {one.folder: one for one in _plan(out)}
    count = len(networks) * len(seeds)
    each: dict[str, Any] = {"trainings": count, "networks": list(networks), "seeds": list(seeds)}
    new = {
        folder: PlannedSet(folder=folder, images=images, protocol=protocols[folder], **each)
        for folder, images in sets.items()
    }
    if {**before, **new} == before:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / GRID, dump({"sets": [one.model_dump() for one in {**before, **new}.values()]}))


def _plan(out: Path) -> list[PlannedSet]:
    return read_json(out / GRID, GridPlan).sets if os.path.lexists(out / GRID) else []


@dataclass(frozen=True)
class SetStatus:
    """How far a set is.

    Attributes:
        path: the folder, which may not be there yet.
        images, of: images that are made, and how many there will be. `of` is 0 for images of others, which have no plan.
        trainings, planned: trainings that are recorded, and how many there will be; None where no plan says it. Where the plan
            says which ones, no others count.
        others: recorded trainings that are none of the plan, such as those by another protocol.
        rate: images a second, while somebody worked. None as long as fewer than two units are made.
        idle: seconds since the last image or training was written; None if nothing was.
        busy: whether the last change is so recent that somebody probably works on the set.
        seconds: seconds of a training, on average. None if none is recorded.
        missing: whether the set has not begun.
        noun: what the set is made of: "image" or "clip".
        failed: images that failed because they were not finite; `failed.jsonl` in the folder names them.
        gone: images that the manifest names and whose files are not there. They do not count as made.
        outdated: sentences on what has to be known before the results are read, see `SetRecord.outdated`.
    """

    path: Path
    images: int
    of: int
    trainings: int
    planned: int | None
    rate: float | None
    idle: float | None
    busy: bool
    seconds: float | None
    missing: bool = False
    failed: int = 0
    gone: int = 0
    noun: str = "image"
    others: int = 0
    outdated: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Images that are still to be made."""
        return max(self.of - self.images, 0)

    @property
    def done(self) -> bool:
        """Whether all images are made and all planned networks are trained."""
        return not (self.left or self.missing or self.gone) and (self.planned is None or self.trainings >= self.planned)


@dataclass(frozen=True)
class Status:
    """How far the work in a folder is.

    Attributes:
        path: the folder.
        sets: each set that is there or planned.
        remaining: seconds until all is done at the rates of the work so far, shared by those who work now. None where no
            finished piece tells a rate that is needed.
    """

    path: Path
    sets: tuple[SetStatus, ...]
    remaining: float | None = field(default=None)

    @property
    def done(self) -> int:
        """The sets that are done."""
        return sum(one.done for one in self.sets)

    @property
    def busy(self) -> int:
        """The sets on which somebody probably works."""
        return sum(one.busy and not one.done for one in self.sets)


def status(path: str | Path, now: float | None = None) -> Status:
    """How far the sets and trainings in a folder are. Nothing is written, and no image is decoded.

    Args:
        path: the folder of a set, of a grid, or any folder that holds sets.
        now: the time to compare with, in seconds of the epoch. None: the present.

    Raises:
        DapError: the folder holds no set and no plan of a grid, or a file in it is damaged.
    """
    path, now = Path(path), time.time() if now is None else now
    if not path.is_dir():
        raise DapError(f"There is no folder {shown(path)}; give the folder of a set or of dap compare.")
    planned = {path / one.folder: one for one in _plan(path)}
    there = sets_below(path)
    if not planned and not there:
        raise DapError(
            f"{shown(path)} holds no distilled set, finished or begun; give the folder that a verb got as --out."
        )
    found = [
        _of(load_set(place), planned.get(place), now)
        for place in sorted(
            {*there, *(p for p in planned if (p / "classes.json").is_file())},
            key=lambda place: (str(place.parent), natural_order(place)),
        )
    ]
    begun = {one.path for one in found}
    for place, one in planned.items():
        if place not in begun:
            found.append(SetStatus(place, 0, one.images, 0, one.trainings, None, None, False, None, missing=True))
    return Status(path, tuple(found), _remaining(found))


def _of(record: SetRecord, planned: PlannedSet | None, now: float) -> SetStatus:
    """The status of a set that is there."""
    total = len(record.class_names) * record.ipc if record.recipe else 0
    images = images_there(record)
    units = _units(record)[-RECENT:]
    trials = _changed(record.path / "trials.jsonl")
    changes = [when for when, _ in units[-1:]] + ([trials] if trials is not None and record.trials else [])
    idle = max(now - max(changes), 0.0) if changes else None
    gaps = _worked(units)
    worked = sum(gap for gap, _ in gaps)
    rate = sum(images for _, images in gaps) / worked if worked > 0 else None
    seconds = [float(line["seconds"]) for line in record.trials if line.get("seconds")]
    usual = max([BUSY, *(3 * gap for gap, _ in gaps), *(3 * one for one in seconds)])
    mine = [line for line in record.trials if planned is None or planned.has(line)]
    return SetStatus(
        path=record.path,
        images=len(images),
        of=planned.images if planned else total,
        trainings=len(mine),
        planned=planned.trainings if planned else None,
        rate=rate,
        idle=idle,
        busy=idle is not None and idle < usual,
        seconds=fmean(seconds) if seconds else None,
        failed=_failed(record.path),
        gone=len(record.images) - len(images),
        noun=record.noun,
        others=len(record.trials) - len(mine),
        outdated=record.outdated,
    )


def images_there(record: SetRecord) -> Sequence[Mapping[str, Any]]:
    """The manifest lines of a set whose image files are there. Another one is made again by the next `dap distill`.

    Beside results that are kept apart from the set lie only the images that a page shows, so all lines count there.
    """
    if record.path.parent.name == JUDGED or there(record.path, OF):
        return record.images
    return [line for line in record.images if (record.path / str(line["path"])).is_file()]


class _Failed(Open, frozen=True):
    """A line of `failed.jsonl`, as far as it is asked for."""

    label: Label
    slots: Annotated[list[Count], Field(max_length=10**6)]


def _failed(folder: Path) -> int:
    """The number of images that have failed. Processes that share a set may each have recorded the same unit."""
    lines = [line.value for line in read_lines(folder / FAILED, _Failed) if line.value is not None]
    return len({(line.label, slot) for line in lines for slot in line.slots})


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _units(record: SetRecord) -> list[tuple[float, int]]:
    """For each unit of a set that has images, when its last image was written, and how many it has; in the order of time."""
    block = record.recipe.get("block")
    block = block if isinstance(block, int) and block > 0 else 1
    units = defaultdict[tuple[int, int], list[float]](list)
    for line in record.images:
        if (changed := _changed(record.path / str(line["path"]))) is not None:
            units[line["label"], line["slot"] // block].append(changed)
    return sorted((max(times), len(times)) for times in units.values())


def _worked(units: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """The time between a unit and the one before, and the unit's images, without the units that came after a pause."""
    gaps = [(after - before, images) for (before, _), (after, images) in pairwise(units)]
    most = PAUSE * median(gap for gap, _ in gaps) if gaps else 0.0
    return [(gap, images) for gap, images in gaps if gap <= most]


def _remaining(sets: Sequence[SetStatus]) -> float | None:
    """Seconds until all sets are done. A set without a rate of its own has that of the sets beside it, else of all."""
    total = 0.0
    for one in sets:
        beside = [other for other in sets if other.path.parent == one.path.parent]
        if one.left:
            rates = [one.rate] if one.rate else [o.rate for o in beside if o.rate] or [o.rate for o in sets if o.rate]
            if not rates:
                return None
            total += one.left / fmean([rate for rate in rates if rate])
        if left := max((one.planned or 0) - one.trainings, 0):
            took = [o.seconds for o in beside if o.seconds] or [o.seconds for o in sets if o.seconds]
            if not took:
                return None
            total += left * fmean([seconds for seconds in took if seconds])
    return total / max(sum(one.busy and not one.done for one in sets), 1)
