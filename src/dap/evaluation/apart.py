"""Results of judging that are kept apart from the set, in a folder that a report reads like the folder of the set.

A folder that others made, and a set in a folder that cannot be written, get no file. Their results go into another folder. It
holds what a report asks of a set too: its classes, manifest and recipe, and the few images that a page shows.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dap.base.disk import aside_of
from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.files import dump, ended, inside, replacing, write_atomically
from dap.base.parsing import shown
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import as_read
from dap.evaluation.report.records import load
from dap.evaluation.training.trials import KEYS, TrialLine

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
RESULTS = (TRIALS, "protocols.json", "measures.json", "images.json", "map.npz", "zeroshot.json", "ranking.json")
"""Files that judging wrote beside the set before."""
CLASSES, SLOTS, FEW = 20, 10, 2
"""The images that a page shows: of how many classes, how many of each, and how many of each further class."""


def check_writable(folder: Path, advice: str) -> None:
    """Check, before any work, that files can be written into a folder, which is made where it does not exist.

    Args:
        folder: the folder.
        advice: what to do where it cannot be written, as a sentence.

    Raises:
        DapError: the folder cannot be made or written.
    """
    probe = aside_of(folder / "probe")  # a name of its own: several processes may judge one set
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DapError(f"{shown(folder)} cannot be written ({error.strerror}). {advice}") from error


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
    _copy_results(made.path, [line["path"] for line in lines if _on_a_page(line)], folder)
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
    _copy_results(path, [line["path"] for line in record.images if _on_a_page(line)], folder)


def _on_a_page(line: Mapping[str, Any]) -> bool:
    return line["slot"] < (SLOTS if line["label"] < CLASSES else FEW)


def _line(line: Mapping[str, object]) -> bytes:
    return dump(line).replace(b"\n", b"") + b"\n"


def _copy_results(path: Path, pictures: Sequence[str], folder: Path) -> None:
    """Copy the facts and pictures of a set, and those of its results that the folder does not have.

    The set may have been made anew since, or be another one in its place. So facts that it lacks are removed.
    """
    for name in (*FACTS, *pictures):
        if not _copy(path, name, folder) and name in FACTS:
            (folder / name).unlink(missing_ok=True)
    before = [file.relative_to(path).as_posix() for file in (path / "neighbours").glob("*.png")]
    for name in (*RESULTS, *before):
        if not (folder / name).exists():
            _copy(path, name, folder)
    _add_trials(path / TRIALS, folder / TRIALS)


def _add_trials(source: Path, target: Path) -> None:
    """Add the trials that were recorded beside the set since. Where the folder has other keys for a protocol and network, the
    images, the test data or the protocol have changed, so those of the set do not count."""
    with contextlib.suppress(DapError):  # a file that is no file of the folder is told where it is read
        mine, theirs = (
            [line.value for line in read_lines(inside(file.parent, file.name), as_read(TrialLine)) if line.value]
            for file in (target, source)
        )
        keys = {(one["protocol"], one["network"]): _keys(one) for one in mine}
        known = {(one["protocol"], one["network"], one.get("seed")) for one in mine}
        new = [
            one
            for one in theirs
            if (one["protocol"], one["network"], one.get("seed")) not in known
            and keys.get((one["protocol"], one["network"]), _keys(one)) == _keys(one)
        ]
        if new:
            lines = "".join(json.dumps(one) + "\n" for one in new).encode()
            write_atomically(target, target.read_bytes() + (b"" if ended(target) else b"\n") + lines)


def _keys(trial: Mapping[str, Any]) -> list[Any]:
    return [trial.get(name) for name in KEYS]


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
