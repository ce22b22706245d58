"""What the recipe of a set says of its real images, and the real images that a set is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.files import expanded, same_place
from dap.base.parsing import shown
from dap.data.real.memory import UNPLACED
from dap.data.real.sources import EMBEDDED, IdxSource
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.suiting import side_of
from dap.recipe import Data, Recipe


def recorded_data(made: DistilledSet) -> dict[str, Any]:
    """What the recipe of a set says of its real images; {} where it says nothing. The path is left out where it is none.

    The images may have been given as objects. Then the recipe holds the absolute path that was opened, or words that no folder is
    looked for by. Earlier versions wrote the name of the folder alone, which another folder may have too.
    """
    found = dict((made.recipe or {}).get("data") or {})
    path, source = found.get("path"), ((made.noted("inputs.json") or {}).get("objects") or {}).get("source")
    if not isinstance(path, str):
        return found
    embedded = path == EMBEDDED and (source or {}).get("class") == f"{IdxSource.__module__}:{IdxSource.__qualname__}"
    only_name = source is not None and not embedded and not Path(path).is_absolute()
    if only_name or path == UNPLACED or path.startswith(f"{UNPLACED}: "):
        del found["path"]
    return found


def of_others(made: DistilledSet, path: str | None) -> bool:
    """Whether the user names other real images than those that the set was made of, however the path is spelt.

    What the recipe of the set says of the place of its data does then not hold. And a folder that is no more than a test split
    then stands for the training images too, which the measures need.
    """
    recorded = recorded_data(made).get("path")
    if path is None or not recorded:
        return path is not None
    return path != recorded and (EMBEDDED in (path, recorded) or not same_place(path, recorded))


def data_of(made: DistilledSet, path: str | None, max_bad_fraction: float | None = None, split: Any = None) -> Data:
    """The real data to judge a set by: the data at the path, or the data that the set was made of.

    What the recipe of the set says of its data holds here too, such as `max_bad_fraction`. What it says of one place, such as
    the part that was held out and where the splits lie, holds for that place alone.

    Args:
        made: the set.
        path: the real data; None for those of the recipe.
        max_bad_fraction: takes the place of the recipe's.
        split: where the splits lie; takes the place of the recipe's.

    Raises:
        DapError: there is no path, and the set does not say what data it was made of, or these are not where it says.
    """
    recorded = recorded_data(made)
    if not (path or recorded.get("path")):
        raise DapError(
            f"{made.path} does not say where its real images lie; say what to test on with --data FOLDER, or data=... in Python."
        )
    if path is None:
        check_there(made, recorded["path"])
    values = {"max_bad_fraction": recorded.get("max_bad_fraction")} if of_others(made, path) else recorded
    values = {name: value for name, value in values.items() if value is not None}
    if side := side_of(made):
        values |= {"size": side}
    values |= {} if path is None else {"path": path, "classes": list(made.class_names)}
    values |= {} if made.frames is None else {"frames": made.frames}
    values |= {} if max_bad_fraction is None else {"max_bad_fraction": max_bad_fraction}
    values["split"] = split or values.get("split")
    return Recipe.parse({"data": values}).data


def check_there(made: DistilledSet, path: str) -> None:
    """Check that the real images lie where the recipe of a set says. A recipe keeps a path as the user gave it, and a relative
    path is one of the folder that dap ran in.

    Raises:
        DapError: there is no such file or folder.
    """
    if path == EMBEDDED or expanded(path).exists():
        return
    where = "" if expanded(path).is_absolute() else f", relative to the folder in which {shown(made.path)} was made"
    raise DapError(
        f"The real images of {shown(made.path)} are not found: its recipe says that they lie in {path}{where}. Give --data "
        "FOLDER with their path as it is now."
    )
