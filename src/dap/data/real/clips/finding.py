"""Where the clips of a split lie: in class folders, which may lie in folders of splits, or in parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.parsing import shown
from dap.data.real.finding.advice import missing, missing_beside
from dap.data.real.finding.doubts import check_words, inside
from dap.data.real.finding.facts import Layout, holds_parquet
from dap.data.real.finding.splits import ORDER, SPLITS, Split, split_of
from dap.data.real.finding.walking import check_folder, class_folders, holds_images
from dap.data.real.layouts import locate
from dap.data.real.names import some
from dap.data.real.suffixes import CLIP_SUFFIXES

LAYOUTS = (
    "one folder of clips for each class, or such folders under train/ and test/ (or val/), or *.parquet files with a column of "
    f"clips and one of labels; a clip is a {', '.join(sorted(CLIP_SUFFIXES))} file, or in class folders a folder of its frames"
)
"""The layouts that `locate_clips` accepts, in words for messages."""


def locate_clips(path: Path, split: str, chosen: Mapping[str, str] | None = None) -> Layout:
    """Find a split: class folders, or parquet files where no class folder holds a clip.

    A folder without splits counts as the train split. Where there is no test split, a validation split takes its place. Parquet
    files are found as those of images are, see `layouts.locate`.

    Args:
        path: the folder of the data set.
        split: "train" or "test".
        chosen: the user's own word: split -> a folder, relative to `path` or absolute, or the name of another split.

    Raises:
        DapError: there is no such folder or split, no class folder holds a clip, or the folder can be read in two ways.
    """
    check_folder(path)
    said = (chosen or {}).get(split)
    place = path / expanded(said) if said else path
    if place.suffix.lower() == ".parquet" or _in_parquet(place if said and place.is_dir() else path):
        return locate(path, split, chosen)
    place, notes = _folder(path, split, said)
    return Layout("folders", place, notes=notes)


def _in_parquet(path: Path) -> bool:
    """Whether a folder has parquet files, and no class folder of it or of its splits holds a clip."""
    if not holds_parquet(path):
        return False
    inner = class_folders(path)
    return not any(_holds(path / name) for name in inner) and not _splits(path)


def _folder(path: Path, split: str, said: str | None) -> tuple[Path, tuple[str, ...]]:
    """The folder whose folders are the classes of a split, and what is to be told of the others."""
    splits = _splits(path)
    if said:
        place = path / expanded(said)
        named = split_of(said)
        if not place.is_dir() and named in splits:
            place = splits[named]
        check_folder(place)
        return _checked(place), ()
    if not splits:
        if split != "train" and split_of(path.resolve().name) not in ORDER[split]:
            raise missing_beside(path, "folders", split, path, "clips", CLIP_SUFFIXES)
        _check_inside(path)
        return _checked(path), ()
    others = [name for name in class_folders(path) if split_of(name) is None and _holds(path / name)]
    check_words(path, splits, others, [_classes(folder) for folder in splits.values()])
    fits: list[Split] = [one for one in ORDER[split] if one in splits]
    if not fits:
        raise missing(path, split, path, what="clips")
    left = f"{some([f'{name}/' for name in others])} in {shown(path)} belongs to no split and is not read"
    return _checked(splits[fits[0]]), (left,) if others else ()


def _check_inside(path: Path) -> None:
    """Raise `DapError` where class folders hold splits, whose clips would all be of one split."""
    folders = [name for name in class_folders(path) if _holds(path / name)]
    if len(folders) > 1 and inside(path, folders):
        raise DapError(
            f"{shown(path)} holds splits inside its class folders, such as {shown(folders[0])}/train, which is not read of "
            "clips. Put the class folders into the folders of the splits, as in train/CLASS, or take all clips as one split with "
            "--split train=."
        )


def _classes(folder: Path) -> set[str]:
    return {name for name in class_folders(folder) if _holds(folder / name)}


def _splits(path: Path) -> dict[Split, Path]:
    """The folders of splits: those that are called so and hold class folders with clips."""
    found: dict[Split, list[str]] = {}
    for name in class_folders(path):
        said = split_of(name)
        if said in SPLITS and any(_holds(path / name / inner) for inner in class_folders(path / name)):
            found.setdefault(said, []).append(name)
    for said, names in found.items():
        if len(names) > 1:
            raise DapError(
                f"{shown(path)} has several folders for its {said} split: {some(names, 5)}; say which with "
                f"--split {'train' if said == 'train' else 'test'}={names[0]}"
            )
    return {said: path / names[0] for said, names in found.items()}


def _checked(place: Path) -> Path:
    if not any(_holds(place / name) for name in class_folders(place)):
        raise DapError(f"no clips found in {shown(place)}; accepted are {LAYOUTS}")
    return place


def _holds(folder: Path) -> bool:
    """Whether a class folder holds a clip. What a folder that is called as a split holds are classes, not folders of frames."""
    if holds_images(folder, suffixes=CLIP_SUFFIXES):
        return True
    return split_of(folder.name) is None and any(holds_images(folder / name) for name in class_folders(folder))
