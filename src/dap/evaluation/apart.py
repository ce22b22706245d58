"""Results of judging that are kept apart from the set, in a folder that a report reads like the folder of the set.

A folder that others made, and a set in a folder that cannot be written, get no file. Their results go into another folder. It
holds what a report asks of a set too: its classes, manifest and recipe, and the few images that a page shows.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.files import dump, inside, replacing, write_atomically
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import as_read, read_note
from dap.evaluation.current import keys_now, of_images, of_these_images, ranking_of
from dap.evaluation.listed import on_a_page
from dap.evaluation.recorded import RecordedTrials
from dap.evaluation.report.records import load
from dap.evaluation.training.trials import TrialLine, one_each

FACTS = (
    "recipe.json",
    "inputs.json",
    "chosen.json",
    "growth.json",
    "import.json",
    "cost.json",
    "env.json",
    "command.txt",
)
"""Files that say how a set was made."""
TRIALS = "trials.jsonl"
PROTOCOLS, RANKING, NEIGHBOURS = "protocols.json", "ranking.json", "neighbours"
MEASURED = ("measures.json", "images.json", "map.npz")
"""Files that are written together."""
NOTES = {MEASURED[0]: MEASURED[1:], "zeroshot.json": ()}
"""The notes of the images of a set, and what goes with each."""
RESULTS = (TRIALS, PROTOCOLS, *MEASURED, "zeroshot.json", RANKING)
"""Files that judging wrote beside the set before."""


def kept_apart(made: DistilledSet, folder: Path) -> None:
    """Let the results of a set go into a folder of their own. What was recorded beside the set counts there too.

    Args:
        made: the set; `made.results` becomes the folder.
        folder: the folder; new, or used for the same set before.

    Raises:
        OSError: the folder cannot be written.
    """
    classes = {"names": list(made.class_names), "folders": list(made.folders), "ipc": made.ipc}
    lines = made.records
    write_atomically(folder / "classes.json", dump(classes))
    write_atomically(folder / "manifest.jsonl", b"".join(_line(line) for line in lines))
    pictures = [line["path"] for line in lines if on_a_page(line)]
    _copy_results(made.path, pictures, folder, lines, made.class_names)
    made.results = folder


def copied_apart(path: Path, folder: Path) -> None:
    """The same for a folder that this library wrote, without a look at its images: its files are copied as they are.

    Args:
        path: the folder of a set, or one that `kept_apart` has filled.
        folder: as for `kept_apart`.

    Raises:
        DapError: a JSON file of the set cannot be read.
        OSError: the folder cannot be written.
    """
    for name in ("classes.json", "manifest.jsonl"):
        _copy(path, name, folder)
    (record,) = load([path])
    pictures = [line["path"] for line in record.images if on_a_page(line)]
    _copy_results(path, pictures, folder, record.images, record.class_names)


def _line(line: Mapping[str, object]) -> bytes:
    return dump(line).replace(b"\n", b"") + b"\n"


def _copy_results(
    path: Path, pictures: Sequence[str], folder: Path, images: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> None:
    """Copy the facts and pictures of a set, and those of its results that the folder does not have, or has older ones of.

    The set may have been made anew since, or be another one in its place. So facts that it lacks are removed, and a result of
    its images counts more than one of others. Of two that are of its images the newer one counts.

    Args:
        path: the folder of the set.
        pictures: paths of images that a page shows.
        folder: the folder of the results.
        images: the lines of the manifest.
        class_names: the names of the classes.
    """
    for name in (*FACTS, *pictures):
        if not _copy(path, name, folder) and name in FACTS:
            (folder / name).unlink(missing_ok=True)
    keys = keys_now(images, class_names)
    for name in (TRIALS, *MEASURED):
        if not (folder / name).exists():
            _copy(path, name, folder)
    recorded = RecordedTrials(folder)
    with contextlib.suppress(DapError):  # a file that is no file of the folder is told where it is read
        recorded.take(_lines_of(path), keys)
    with recorded.alone():
        mine, theirs = (_noted(place, PROTOCOLS) or {} for place in (folder, path))
        # An entry is named by a hash of what was trained by. One of an earlier version may say less beside that.
        both = {**theirs, **{by: max(theirs.get(by, {}), facts, key=len) for by, facts in mine.items()}}
        if both != mine:
            write_atomically(folder / PROTOCOLS, dump(both))
    for name, others in NOTES.items():
        if _newer(path, folder, name, lambda note: of_these_images(note, images, keys)):
            for each in (name, *others):
                if not _copy(path, each, folder):
                    (folder / each).unlink(missing_ok=True)
            for file in (path / NEIGHBOURS).glob("*.png") if others else ():
                _copy(path, f"{NEIGHBOURS}/{file.name}", folder)
    trials = one_each(line for line in _lines_of(folder) if of_images(line, keys))
    mine, theirs = (_noted(place, RANKING) or {} for place in (folder, path))
    if theirs and ranking_of((mine, theirs), trials) is theirs:
        _copy(path, RANKING, folder)


def _lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of `trials.jsonl` in a folder that can be read."""
    file = folder / TRIALS
    if not os.path.lexists(file):
        return []
    return [line.value for line in read_lines(inside(folder, TRIALS), as_read(TrialLine)) if line.value]


def _noted(folder: Path, name: str) -> dict[str, Any] | None:
    """What a note in a folder says; None where there is none, or it cannot be read."""
    try:
        return read_note(folder, name)
    except DapError:
        return None


def _newer(path: Path, folder: Path, name: str, current: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a note of the set takes the place of the one in the folder of its results."""
    mine, theirs = _noted(folder, name), _noted(path, name)
    if not theirs or mine == theirs:
        return False
    if not mine or current(mine) != current(theirs):
        return not mine or current(theirs)
    return (path / name).stat().st_mtime_ns > (folder / name).stat().st_mtime_ns


def _copy(source: Path, name: str, folder: Path) -> bool:
    """Copy a file of a set that is there and lies inside the set, if the folder has other bytes. Says whether it is there."""
    try:
        file = inside(source, name)
    except DapError:
        return False
    target = folder / name
    if target.is_file() and filecmp.cmp(file, target, shallow=False):
        return True
    with file.open("rb") as read, replacing(target) as written:
        shutil.copyfileobj(read, written)
    return True
