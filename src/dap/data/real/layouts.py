"""Where the images of a data set lie: which layout a folder has, and which of its files belong to a split."""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from dap.base.errors import DapError
from dap.data.real.suffixes import IMAGE_SUFFIXES

SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}
"""The splits. Each split has the names that its folder, or the prefix of its files, may have, in order of
preference."""

LAYOUTS = (
    "one folder of images for each class, such folders under train/ and test/ (or val/, validation/), "
    "*.parquet files with an image and a label column, or the IDX files of an MNIST-like set"
)
"""The layouts that `locate` accepts, in words for messages."""

MAC = "__MACOSX"
"""The folder that a Mac adds to an archive. It holds no images, whatever its files are called."""

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}


@dataclass(frozen=True)
class Layout:
    """One split of a data set on disk: its kind, the folder it lies in, and, except for class folders, its files.

    `files` are the parquet files in name order, or the IDX pair (images, labels).
    """

    kind: Literal["folders", "parquet", "idx"]
    root: Path
    files: tuple[Path, ...] = ()


def locate(path: Path, split: str) -> Layout:
    """Find a split of the data set at `path`.

    A folder without splits counts as the train split. Such a folder also counts as the split that its own name says:
    `.../val` is a test split.

    Raises:
        DapError: there is no such split or folder, a folder cannot be read, or the layout is none of `LAYOUTS`.
    """
    if split not in SPLITS:
        raise DapError(f"unknown split {split!r}; known are {', '.join(map(repr, SPLITS))}")
    check_folder(path)
    names = {entry.name: entry for entry in visible(path)}
    if any(_idx_pair(path, names, stem) for stems in _IDX_STEMS.values() for stem in stems):
        for stem in _IDX_STEMS[split]:
            if pair := _idx_pair(path, names, stem):
                return Layout("idx", path, pair)
        stem = _IDX_STEMS[split][0]
        raise _no_split(path, split, f"add {stem}-images-idx3-ubyte and {stem}-labels-idx1-ubyte (or the same as .gz)")
    for folder in (path, path / "data"):
        if files := _parquet_files(folder):
            return Layout("parquet", folder, _of_split(path, files, split))

    folders = {entry.name.lower(): path / entry.name for entry in names.values() if is_folder(entry)}
    found = {name: folder for name, folder in folders.items() if name in _split_names() and _is_split(folder)}
    if found:
        for name in SPLITS[split]:
            if name in found:
                files = _parquet_files(found[name])
                return Layout("parquet" if files else "folders", found[name], files)
        raise _no_split(path, split, f"put its class folders into {path / split}")
    if not folders:
        loose = sum(is_image(entry) for entry in names.values())
        what = f"{loose} images but no class folders" if loose else "no class folders"
        raise DapError(f"{path} holds {what}; accepted are {LAYOUTS}")
    if split != "train" and path.resolve().name.lower() not in SPLITS[split]:
        raise _no_split(path, split, f"put the training classes into {path / 'train'} and its own into {path / split}")
    return Layout("folders", path)


def check_folder(path: Path) -> None:
    """Check that a data folder exists. The message of the error says what the folder above holds, and suggests a name.

    Raises:
        DapError: the folder does not exist, the path is a file, or the system does not let us look at the path.
    """
    try:
        if path.is_dir():
            return
        if path.exists():
            raise DapError(f"{path} is a file, not a folder; give the folder that holds the data set")
    except OSError as error:
        raise unreadable(path, error) from error
    missing, parent = path.absolute(), path.absolute().parent
    while not parent.is_dir():
        missing, parent = parent, parent.parent
    held = [entry.name + "/" * is_folder(entry) for entry in visible(parent)]
    close = get_close_matches(missing.name, [name.rstrip("/") for name in held], n=1)
    hint = f"; did you mean {parent / close[0]}?" if close else ""
    more = f" and {len(held) - 12} more" if len(held) > 12 else ""
    raise DapError(
        f"data path {path} does not exist{hint or ';'} {parent} holds {', '.join(held[:12]) or 'nothing'}{more}; "
        'say where the data lie with --data FOLDER (the embedded data set is called "fashion-mnist")'
    )


def class_folders(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted, without hidden folders and without what a Mac adds to archives.
    Raises `DapError` where `root` cannot be read."""
    return [entry.name for entry in visible(root) if is_folder(entry) and entry.name != MAC]


def image_files(folder: Path) -> list[str]:
    """Every image file at any depth below a class folder, as sorted posix paths relative to the folder's parent.

    Links to files and to folders are followed, and each folder is read once. A link to a folder that contains the class
    folder is not followed, because the class would then get the images of other classes. Image links that lead nowhere
    are listed, so that they are reported as broken.

    Raises:
        DapError: a folder cannot be read.
    """
    found: list[str] = []
    visited = {os.path.realpath(parent) for parent in folder.absolute().parents}
    pending = deque([folder])
    while pending:
        here = pending.popleft()
        real = os.path.realpath(here)
        if real in visited:
            continue
        visited.add(real)
        for entry in visible(here):
            if is_folder(entry):
                pending.append(here / entry.name)
            elif is_image(entry):
                found.append((here / entry.name).relative_to(folder.parent).as_posix())
    return sorted(found)


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden entries. Raises `DapError` where the folder cannot be
    read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> DapError:
    """The error to raise for a folder or file that the system does not let us read."""
    return DapError(f"cannot read {path}: {(error.strerror or str(error)).lower()}; check the path and its permissions")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to a folder. A circular link is not a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is no folder, and its name ends as the name of an image file does.

    A link that leads nowhere, a pipe, a socket and a device count too. They are no images, so reading them names them as
    broken.
    """
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not is_folder(entry)


def _no_split(path: Path, split: str, remedy: str) -> DapError:
    return DapError(
        f"{path} has no {split} split; {remedy}, or give the path of the folder that holds them "
        "and ask for split 'train', which reads a folder without splits whole"
    )


def _split_names() -> set[str]:
    return {name for names in SPLITS.values() for name in names}


def _is_split(folder: Path) -> bool:
    """Whether the folder is a split, that is, whether it holds folders or parquet files. A folder called `train` that
    holds neither may be a class, with images of trains."""
    return bool(class_folders(folder) or _parquet_files(folder))


def _idx_pair(path: Path, names: dict[str, os.DirEntry[str]], stem: str) -> tuple[Path, Path] | None:
    def find(what: str, rank: int) -> Path | None:
        spellings = (f"{stem}-{what}{mark}ubyte{gz}" for mark in (f"-idx{rank}-", f".idx{rank}-") for gz in ("", ".gz"))
        return next((path / name for name in spellings if name in names), None)

    images, labels = find("images", 3), find("labels", 1)
    return (images, labels) if images and labels else None


def _parquet_files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(folder / entry.name for entry in visible(folder) if entry.name.lower().endswith(".parquet"))


def _of_split(path: Path, files: tuple[Path, ...], split: str) -> tuple[Path, ...]:
    """The files of a split. These files have the split's prefix, as in `train-00000-of-00001.parquet`. Where no file
    has the prefix of any split, all files belong to the train split, and to the split that the folder's own name
    says."""
    by_prefix: dict[str, list[Path]] = {}
    for file in files:
        prefix = re.split(r"[-_.]", file.name.lower(), maxsplit=1)[0]
        by_prefix.setdefault(prefix if prefix in _split_names() else "", []).append(file)
    if set(by_prefix) == {""} and (split == "train" or path.resolve().name.lower() in SPLITS[split]):
        return files
    for prefix in SPLITS[split]:
        if prefix in by_prefix:
            return tuple(by_prefix[prefix])
    raise _no_split(path, split, f"name its files {split}-*.parquet")
