"""Results of judging that are kept apart from the set, in a folder that a report reads like the folder of the set.

A folder that others made, and a set in a folder that cannot be written, get no file. Their results go into another folder. It
holds what a report asks of a set too: its classes, manifest and recipe, and the few images that a page shows.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from dap.base.errors import DapError
from dap.base.files import dump, inside, write_atomically
from dap.base.parsing import shown
from dap.data.sets.distilled import DistilledSet

FACTS = ("recipe.json", "inputs.json", "import.json", "cost.json", "env.json", "command.txt")
"""Files that say how a set was made."""
RESULTS = ("trials.jsonl", "protocols.json", "measures.json", "images.json", "map.npz", "zeroshot.json", "ranking.json")
"""Files that judging wrote beside the set before."""
CLASSES, SLOTS = 20, 10
"""The images that a page shows: of how many classes, and how many of each."""


def check_writable(folder: Path, advice: str) -> None:
    """Check, before any work, that files can be written into a folder, which is made where it does not exist.

    Args:
        folder: the folder.
        advice: what to do where it cannot be written, as a sentence.

    Raises:
        DapError: the folder cannot be made or written.
    """
    probe = folder / ".writable"
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
    before = [file.relative_to(made.path).as_posix() for file in (made.path / "neighbours").glob("*.png")]
    pictures = [line["path"] for line in lines if line["label"] < CLASSES and line["slot"] < SLOTS]
    for name in (*FACTS, *RESULTS, *before, *pictures):
        if name in FACTS or not (folder / name).exists():
            _copy(made.path, name, folder)
    made.results = folder


def _line(line: Mapping[str, object]) -> bytes:
    return dump(line).replace(b"\n", b"") + b"\n"


def _copy(source: Path, name: str, folder: Path) -> None:
    """Copy a file of a set that is there and lies inside the set."""
    with contextlib.suppress(DapError):
        file = inside(source, name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
