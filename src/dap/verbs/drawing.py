"""Random draws from a distilled set, which `compare` judges as sets of their own."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path

from dap.base.files import inside, write_atomically
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.cost import NOTE as COST
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.data.sets.notes import there
from dap.evaluation.recorded import BEFORE


def draw(made: DistilledSet, folder: Path, ipc: int, seed: int, watcher: Watcher) -> DistilledSet:
    """The random draw from a set. One that is there is kept, if its images are still those of the set.

    Else it is drawn anew. The trials of the earlier draw are kept in `BEFORE`.

    Args:
        made: the set.
        folder: the folder of the draw.
        ipc: how many images of each class are drawn.
        seed: of the draw.
        watcher: is told if the draw is made anew.
    """
    anew, gone = (folder.with_name(f".{folder.name}.{end}") for end in ("anew", "gone"))
    if not folder.is_dir() and anew.is_dir():  # a process was killed before the last step
        anew.rename(folder)
    if not folder.is_dir():
        import_set(made.path, folder, ipc=ipc, pick="random", seed=seed)
    elif not _is_of(DistilledSet.open(folder), made):
        for left in (anew, gone):
            shutil.rmtree(left, ignore_errors=True)
        import_set(made.path, anew, ipc=ipc, pick="random", seed=seed)
        if trials := b"".join(_lines(folder, name) for name in (BEFORE, "trials.jsonl")):
            write_atomically(anew / BEFORE, trials)
        folder.rename(gone)
        anew.rename(folder)
        kept = f" The trials of the earlier draw are kept in {BEFORE}." if trials else ""
        watcher.note(f"{shown(folder)} was drawn from an earlier set, and is drawn and judged anew.{kept}")
    shutil.rmtree(gone, ignore_errors=True)
    drawn = DistilledSet.open(folder)
    if drawn.noted(COST) is None:  # a draw has the cost of the set it comes from
        drawn.note(COST, made.noted(COST))
    return drawn


def _lines(folder: Path, name: str) -> bytes:
    """The lines of a file of a folder, each with its end; none where there is no such file."""
    data = inside(folder, name).read_bytes() if there(folder, name) else b""
    return data if not data or data.endswith(b"\n") else data + b"\n"


def _is_of(drawn: DistilledSet, made: DistilledSet) -> bool:
    """Whether the images of a draw are those of the set, and have the weights that a draw would have now."""
    whole = {shown(line["path"]): line for line in made.records}
    weights: dict[int, list[tuple[float | None, float | None]]] = defaultdict(list)
    for line in drawn.records:
        source = whole.get(line.get("source", ""), {})
        if source.get("sha256") != line.get("source_sha256"):
            return False
        weights[line["label"]].append((line.get("weight"), source.get("weight")))
    return all(map(_weighed, weights.values()))


def _weighed(pairs: list[tuple[float | None, float | None]]) -> bool:
    """Whether the weights of the drawn images of a class (first) are those in the set (second), divided by their mean."""
    before, now = [one for one, _ in pairs if one is not None], [one for _, one in pairs if one is not None]
    if len(now) < len(pairs):
        return len(before) == len(now)
    mean = sum(now) / len(now)
    return len(before) == len(now) and all(math.isclose(a, b / mean) for a, b in zip(before, now, strict=True))
