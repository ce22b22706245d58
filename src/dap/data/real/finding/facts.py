"""What a folder holds, as far as it decides how the folder is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.shards import check_shards
from dap.data.real.finding.splits import Split, split_of_file
from dap.data.real.finding.tables import Table
from dap.data.real.finding.walking import class_folders, holds_images, is_folder, visible
from dap.data.real.names import composed, some
from dap.data.real.parquet import has_labels, parquet_files
from dap.data.real.suffixes import CLIP_SUFFIXES, IMAGE_SUFFIXES, container

UNSORTED = frozenset({"images", "image", "imgs", "unknown", "unlabeled", "unlabelled", "data", "all", "none", "0"})
"""Names, in lower case, of a folder that holds what nobody has sorted."""


_IDX = re.compile(
    r"(?P<stem>(?:.+[-_. ])?(?:train|t10k|test))-(?:(?P<images>images)[-.]idx3|(?P<labels>labels)[-.]idx1)-ubyte(?:\.gz)?"
)
"""The names of MNIST's files, also behind a name of their own, as in `emnist-letters-train-images-idx3-ubyte.gz`."""


@dataclass(frozen=True)
class Layout:
    """One split of a data set on disk.

    Attributes:
        kind: what the split is made of.
        root: the folder it lies in.
        files: the parquet files in name order, or the IDX pair (images, labels); () for class folders.
        table: the labels of the images, where they stand in a table.
        inner: the split whose folders inside each class folder are taken; None: the whole class folder.
        notes: sentences on what was understood and is not plain, such as a test split that was passed over.
    """

    kind: Literal["folders", "parquet", "idx", "table"]
    root: Path
    files: tuple[Path, ...] = ()
    table: Table | None = None
    inner: Split | None = None
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[object, ...]:
        """What two layouts share if they hold the same images."""
        files = tuple(str(file.resolve()) for file in self.files)
        table = self.table and (str(self.table.file), self.table.part)
        return (self.kind, str(self.root.resolve()), files, self.inner, table)


def in_parquet(folder: Path, files: tuple[Path, ...]) -> Layout:
    """The layout of a split in parquet files. Raises `DapError` where the files are parts and some parts are absent."""
    check_shards(files, "name the split, as in --split train=train")
    return Layout("parquet", folder, files)


class Unlabelled(DapError):
    """A split whose images have no labels."""


def holds_data(folder: Path) -> bool:
    return holds_images(folder) or holds_parquet(folder)


def holds_parquet(folder: Path) -> bool:
    return bool(parquet_files(folder)) or any(parquet_files(folder / name) for name in class_folders(folder))


def classes_of(layout: Layout, clips: bool = False) -> set[str]:
    """The classes of which a split holds images, or clips; none where they do not stand in the names of folders or in a table."""
    if layout.table is not None:
        return set(map(composed, layout.table.files))
    if layout.kind != "folders":
        return set()
    endings = IMAGE_SUFFIXES | CLIP_SUFFIXES if clips else IMAGE_SUFFIXES
    return {composed(name) for name in class_folders(layout.root) if holds_images(layout.root / name, suffixes=endings)}


def unlabelled(layout: Layout, known: set[str]) -> str | None:
    """Why a test split has no labels, as a clause; None where it has some.

    Args:
        layout: the split.
        known: the classes of the training images; empty where they are unknown.
    """
    if layout.kind == "parquet":
        return None if has_labels(layout.files) else f"{shown(layout.root)}/ has no labels"
    names = classes_of(layout)
    if layout.kind != "folders" or names & known:
        return None
    if all(name.lower() in UNSORTED for name in names) or (known and len(names) <= 1):
        held = f"only the folder {some(sorted(names))}" if names else "no class folders"
        return f"{shown(layout.root)}/ has no labels: it holds {held}"
    return None


def by_split(files: Sequence[Path]) -> dict[Split | None, tuple[Path, ...]]:
    """Parquet files by the split that their names mean; None for those that mean none."""
    found: dict[Split | None, tuple[Path, ...]] = {}
    for file in files:
        said = split_of_file(file.name)
        found[said] = (*found.get(said, ()), file)
    return found


def instead(path: Path) -> str:
    """A clause on what a folder without images holds, and what to do with it; "" where there is nothing to say."""
    below = class_folders(path)
    if inner := [name for name in below if holds_parquet(path / name)]:
        return f"; parquet files lie in {some(inner)}: give {shown(path / inner[0])}"
    if inner := idx_below(path):
        return f"; IDX files lie in {some(inner)}: give {shown(path / inner[0])}"
    endings: dict[str, str] = {}
    for folder in (path, *(path / name for name in _two_deep(path))):
        for entry in visible(folder):
            if not is_folder(entry):
                endings.setdefault(Path(entry.name).suffix.lower(), entry.name)
    if ".arrow" in endings:
        return (
            ", but Arrow files of Hugging Face's save_to_disk. Write them as parquet: "
            "datasets.load_from_disk(FOLDER)[SPLIT].to_parquet('SPLIT.parquet') for each split"
        )
    held = next((endings[ending] for ending in sorted(endings) if container(endings[ending])), None)
    found = held and container(held)
    return f", but files such as {shown(held)}, {found[0]}; unpack or convert them first" if held and found else ""


def idx_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The IDX files of images and of labels by the beginning of their names, such as "t10k" or "emnist-letters-train"; of files
    that are there twice, unpacked and as .gz, the unpacked one."""
    found: dict[str, dict[str, Path]] = {}
    for entry in reversed(visible(folder)):  # so that the files that are taken come last
        if (said := _IDX.fullmatch(entry.name)) and not is_folder(entry):
            found.setdefault(said["stem"], {})[said["images"] or said["labels"]] = folder / entry.name
    return {stem: (pair["images"], pair["labels"]) for stem, pair in sorted(found.items()) if len(pair) == 2}


def idx_below(folder: Path) -> list[str]:
    """The folders with pairs of IDX files in a folder and in its folders, relative to it, as MNIST/raw of torchvision."""
    return [name for name in _two_deep(folder) if idx_pairs(folder / name)]


def _two_deep(folder: Path) -> list[str]:
    """The first folders in a folder, and the first ones in these, relative to it."""
    below = class_folders(folder)[:20]
    return [*below, *(f"{name}/{inner}" for name in below for inner in class_folders(folder / name)[:20])]
