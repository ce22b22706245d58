"""What to do where a split is missing. Whoever does what is said here gets a folder that is read as it was meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.made import is_made
from dap.data.real.finding.splits import WORDS, split_of
from dap.data.real.finding.walking import class_folders, holds_images
from dap.data.real.names import some
from dap.data.real.suffixes import IMAGE_SUFFIXES


def into_train(path: Path, names: Sequence[str]) -> str:
    """How class folders become the training images beside a test split, as in "move cat/, dog/ into pets/train"."""
    return f"move {some([f'{shown(name)}/' for name in names], 5)} into {shown(_train(path, names))}"


def _train(path: Path, names: Sequence[str]) -> Path:
    """A folder for training images beside others, one of which may be a class that is called train."""
    return path / next(word for word in (*WORDS, "train") if WORDS.get(word) == "train" and word not in names)


def missing(path: Path, split: str, top: Path, more: str = "", what: str = "images") -> DapError:
    """The error where a folder holds the folders of other splits, so that one more can lie beside them.

    Args:
        path: the folder.
        split: what is missing.
        top: the data set's own folder, from which --split is seen.
        more: what else can be meant.
        what: what its files are called, "images" or "clips".
    """
    which = f"the training {what}" if split == "train" else f"its {what}"
    return DapError(
        f"{shown(path)} has no {split} split; put {which}, one folder for each class, into {shown(path / split)}, or "
        f"{_said(split, top)}{more}"
    )


def missing_beside(
    path: Path, kind: str, split: str, top: Path, what: str = "images", suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> DapError:
    """The error where all that a folder holds is one split. A folder of another split among it would be one more class, or hide
    it, so that all of it has to go into a folder of its own first.

    Args:
        path: the folder.
        kind: what the split is made of, see `facts.Layout`.
        split: what is missing.
        top: the data set's own folder, from which --split is seen.
        what: what its files are called, "images" or "clips".
        suffixes: the endings of its files.
    """
    if is_made(made := path.resolve().parent):
        return DapError(
            f"{shown(path)} has no {split} split, as it holds the images of the distilled set {shown(made)}. Give a data set of "
            f"real images that has one, or {_said(split, top)}"
        )
    if kind == "folders":
        inner = class_folders(path)
        names = [name for name in inner if holds_images(path / name, suffixes=suffixes)]
        move, form = into_train(path, names or inner), ", one folder for each class,"
    else:
        files = "parquet files" if kind == "parquet" else f"{what} and the table of their labels"
        move, form = f"move its {files} into {shown(path / 'train')}", " in the same form"
    if path == top and split_of(path.resolve().name) == "train":  # the folder is one of the parts of a data set
        there = path.resolve().parent / split
        beside = shown(there)
        if there.is_dir() and any(holds_images(there / name, suffixes=suffixes) for name in class_folders(there)):
            return DapError(
                f"{shown(path)} has no {split} split, but {beside} is beside it; give {shown(path.parent)} as the data, or add "
                f"--split {split}=../{split}"
            )
        return DapError(
            f"{shown(path)} has no {split} split; put {what} to {split} on{form} into {beside} and give --split "
            f"{split}=../{split}, or put them elsewhere and {_said(split, top)}"
        )
    return DapError(
        f"{shown(path)} has no {split} split; {move} and put {what} to {split} on{form} into {shown(path / split)}, or put "
        f"them outside of {shown(top)} and {_said(split)}"
    )


def missing_inside(path: Path, split: str, top: Path, folders: Sequence[str]) -> DapError:
    """The error where each class folder holds the folders of the splits, and not all of them hold this one."""
    return DapError(
        f"{shown(path)} has no {split} split; put its images into a folder {split}/ in each class folder, as in "
        f"{shown(path / folders[0] / split)}, or put them outside of {shown(top)} and {_said(split)}"
    )


def missing_file(path: Path, split: str, top: Path) -> DapError:
    """The error where parquet files are called for their splits, and none is called for this one."""
    return DapError(
        f"{shown(path)} has no {split} split; put its images into {shown(path / f'{split}.parquet')}, or put them outside of "
        f"{shown(top)} and {_said(split)}"
    )


def _said(split: str, top: Path | None = None) -> str:
    """The words for `--split`. Without a folder they stand behind its name."""
    return f"say where they lie with --split {split}=FOLDER, a path relative to {'it' if top is None else shown(top)}"
