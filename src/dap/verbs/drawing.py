"""Random draws from a distilled set, which `compare` judges as sets of their own."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path

from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.files import inside
from dap.base.parsing import shown
from dap.base.watch import Watcher
from dap.cost import NOTE as COST
from dap.data.real.names import some
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.data.sets.notes import as_read, there
from dap.evaluation.plan import JudgingPlan
from dap.evaluation.training.trials import TrialLine


def draw(made: DistilledSet, folder: Path, ipc: int, seed: int, plan: JudgingPlan, watcher: Watcher) -> DistilledSet:
    """The random draw from a set. One that is there is kept, if its images are still those of the set.

    Args:
        made: the set.
        folder: the folder of the draw.
        ipc: how many images of each class are drawn.
        seed: of the draw.
        plan: how the draw is judged afterwards.
        watcher: is told if the draw is made anew.

    Raises:
        DapError: the set was made anew since, and the draw has trials that judging by the plan does not make again.
    """
    if folder.is_dir() and not _is_of(DistilledSet.open(folder), made):
        again = {(plan.protocol.name, network) for network in plan.all_networks}
        lost = [f"{network} by {protocol}" for protocol, network in _trials(folder) if (protocol, network) not in again]
        if lost:
            raise DapError(
                f"{shown(folder)} was drawn from an earlier set in {shown(made.path)}. It has trials ({some(lost)}) that would "
                "be lost if it was drawn anew. Remove the folder, or move it to another place to keep them, and run it again."
            )
        watcher.note(
            f"{shown(folder)} was drawn from an earlier set in {shown(made.path)}: it is drawn and judged anew."
        )
        shutil.rmtree(folder)
    if not folder.is_dir():
        import_set(made.path, folder, ipc=ipc, pick="random", seed=seed)
    drawn = DistilledSet.open(folder)
    if drawn.noted(COST) is None:  # a draw has the cost of the set it comes from
        drawn.note(COST, made.noted(COST))
    return drawn


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


def _trials(folder: Path) -> list[tuple[str, str]]:
    """The protocols and networks of the trials that are recorded in a folder, each pair once."""
    if not there(folder, "trials.jsonl"):
        return []
    lines = [line.value for line in read_lines(inside(folder, "trials.jsonl"), as_read(TrialLine))]
    return sorted({(line["protocol"], line["network"]) for line in lines if line is not None})
