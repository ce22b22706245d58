"""Where the images of a data set lie: which layout a folder has, and which of its files belong to a split.

A doubtful reading stops the run. The message names both readings, and the flag `--split` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.parsing import shown
from dap.data.real.finding.advice import into_train
from dap.data.real.finding.beside import Doubt
from dap.data.real.finding.facts import Layout
from dap.data.real.finding.reader import Reader
from dap.data.real.finding.splits import ORDER, split_of
from dap.data.real.finding.tables import Table, read_table
from dap.data.real.finding.walking import check_folder
from dap.data.real.names import some

__all__ = ["Layout", "locate"]


def locate(path: Path, split: str, chosen: Mapping[str, str] | None = None) -> Layout:
    """Find a split of the data set at `path`.

    A folder without splits counts as the train split. Such a folder also counts as the split that its own name says:
    `.../val` is a test split. The test split is the one with labels: a folder `test` whose images are not sorted, or a
    parquet file whose labels are all -1, is passed over for the validation split.

    Args:
        path: the folder.
        split: "train" or "test".
        chosen: the user's own word: split -> a folder, a table or a parquet file, relative to `path` or absolute, or the
            name of another split, such as {"test": "val"}.

    Raises:
        DapError: there is no such split or folder, a folder cannot be read, the layout is none of `LAYOUTS`, or it can be
            read in two ways.
    """
    if split not in ORDER:
        raise DapError(f"unknown split {split!r}; known are {', '.join(map(repr, ORDER))}")
    check_folder(path)
    if chosen and split in chosen:
        return _chosen(path, split, chosen[split])
    if not chosen:
        return Reader(path).find(split)
    other = next(iter(chosen))
    reader = Reader(path)
    try:
        return reader.find(split)
    except Doubt:
        raise
    except DapError as error:  # the user knows where one split lies, so the folder is not read by itself
        beside = [name for name in reader.with_images if split == "train" and split_of(name) is None]
        more = f", or {into_train(path, beside)}" if beside else ""
        raise DapError(
            f"{shown(path)} has no {split} split that is plain to see; say where it lies, as in "
            f"--split {other}={chosen[other]},{split}=FOLDER{more}"
        ) from error


def _chosen(path: Path, split: str, value: str) -> Layout:
    """The layout at the place that the user named."""
    place = (path / expanded(value)) if value != "." else path
    if place.is_file():
        if place.suffix.lower() == ".parquet":
            return Layout("parquet", place.parent, (place,))
        classes = Reader(path).classes() or Reader(place.parent).classes()
        roots = [place.parent, place.with_suffix(""), path, *([classes] if classes else [])]
        roots = [root for root in dict.fromkeys(roots) if root.is_dir()]
        table = read_table(place, roots, split, classes=classes)
        if isinstance(table, Table):
            return Layout("table", table.root, table=table)
        raise DapError(f"{shown(place)} {table}; its paths were looked for in {some(map(shown, roots), 4)}")
    if place.is_dir():
        return Reader(place).whole(split)
    said = split_of(value)
    if said is not None:
        return Reader(path).named(said, split)
    check_folder(place)  # says what there is
    raise DapError(f"--split {split}={value} is neither a folder nor a file in {shown(path)}")
