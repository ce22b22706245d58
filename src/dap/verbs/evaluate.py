"""`dap evaluate`: train networks on distilled sets and test them on real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.judge import judge
from dap.recipe import Data, Recipe
from dap.verbs.judges import loader, open_workshop
from dap.verbs.options import Judging, Machine
from dap.verbs.report import Results, write_page


def evaluate(
    sets: Sequence[str | Path | DistilledSet] | str | Path | DistilledSet,
    *,
    data: str | Path | None = None,
    classes: Sequence[str] | None = None,
    out: str | Path | None = None,
    title: str = "Distilled sets judged",
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Results:
    """Train networks on sets, test them on real images, and measure the images of the sets.

    Trials and measures are kept beside the images of each set. Those that are there already are not made again, so a call
    that was interrupted goes on where it was.

    Args:
        sets: distilled sets, or any folders of class folders.
        data: the real images: "fashion-mnist" or a folder. By default each set is tested on the data it was made of.
        classes: for folders that others made, the names of the class folders in label order, or a subset of ImageNet.
        out: where a page on these sets is written, a name ending in .html or a folder; None writes none.
        title: the heading of the page.
        judging: the protocol, networks and trials.
        machine: the device and its like.
        watcher: told of every epoch and trial.

    Raises:
        DapError: there is no such set or data, the classes differ, the protocol is unknown or needs what is not given.
    """
    workshop = open_workshop(machine)
    given = [sets] if isinstance(sets, (str, Path, DistilledSet)) else sets
    opened = [one if isinstance(one, DistilledSet) else DistilledSet.from_folder(one, classes) for one in given]
    loaded_for = loader(judging, machine, workshop)
    for made in opened:
        judge(made, loaded_for(_data_of(made, None if data is None else str(data))), watcher)
    paths = tuple(made.path for made in opened)
    return Results(paths, None if out is None else write_page(paths, Path(out), title))


def _data_of(made: DistilledSet, path: str | None) -> Data:
    """The real data to judge a set by: those at the path, or those it was made of."""
    recorded = (made.recipe or {}).get("data", {})
    if not (path or recorded):
        raise DapError(f"{made.path} does not say what real images to test on; give --data.")
    classes = recorded.get("classes") if recorded and not path else list(made.class_names)
    held = {"held_out": recorded.get("held_out", 0.0)} if path in (None, recorded.get("path")) else {}
    return Recipe.parse({"data": {"path": path or recorded["path"], "classes": classes, **held}}).data
