"""Which table labels the images of a folder. Where two tables, or two folders, could be meant, the run stops."""

from __future__ import annotations

from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.splits import split_of, split_of_file
from dap.data.real.finding.tables import Table, candidates, read_table
from dap.data.real.finding.walking import class_folders, holds_images, loose_images


def find_table(folder: Path, above: Path | None, split: str) -> tuple[Table | None, dict[Path, str]]:
    """The table that labels the images of a folder, and for each table that does not a clause that says why.

    Args:
        folder: a folder whose images no class folders sort.
        above: the folder that holds the folders of the splits, whose tables count too; None where the folder is no split.
        split: the split whose images are wanted.

    Raises:
        DapError: a table is damaged or names images that are not there, two tables contradict each other, or a table above the
            folders of the splits could be meant for several of them.
    """
    reasons: dict[Path, str] = {}
    found: Table | None = None
    for file in [*candidates(folder, split), *(candidates(above, split) if above not in (None, folder) else [])]:
        roots = [folder] if file.parent == folder else [folder, file.parent]
        try:
            table = read_table(file, roots, split, always=file.parent != folder)
        except DapError:
            if found is not None:
                continue  # it is not read, so what it lacks does no harm
            other = None if file.parent == folder else next(iter(_fitting(file, folder, file.parent)), None)
            if other is None:
                raise
            table = f"names the images of {shown(other.name)}/"
        if isinstance(table, str) or not (table := table.below(folder)).files:
            reasons[file] = f"{file.name} {table if isinstance(table, str) else 'names no image here'}"
            continue
        alike = _alike(table, folder)
        if found is None:
            if alike is not None:
                key = next(keys[0] for keys in table.files.values())
                here = next(iter(folder.relative_to(file.parent).parts))
                raise DapError(
                    f"{shown(file)} can be read in two ways: as the labels of the images in {shown(here)}/ and as those of the "
                    f"images in {shown(alike.name)}/, because it names {shown(key)} and such a file lies in both. Move it into "
                    f"the folder whose images it labels, or write the folders into its paths, as in {shown(here)}/{shown(key)}"
                )
            found = table
        elif alike is None and (table.explicit or not found.explicit):
            _check_alike(found, table, split)
    return found, reasons


def _check_alike(one: Table, another: Table, split: str) -> None:
    """Raise `DapError` where two tables give an image different labels."""
    if differs := one.against(another):
        key, label, other = differs
        kind = "train" if split == "train" else "test"
        raise DapError(
            f"Two tables contradict each other: {shown(one.file)} gives {shown(key)} the label {label!r}, and "
            f"{shown(another.file.name)} gives {other!r}. Say which counts with --split {kind}=TABLE, a path relative to the "
            "data, or remove the other"
        )


def _alike(table: Table, folder: Path) -> Path | None:
    """The folder of another split whose images a table above both names just as well; None where there is none."""
    if table.root != folder or table.file.parent == folder or table.part is not None or split_of_file(table.file.name):
        return None
    return next(iter(_fitting(table.file, folder, table.file.parent)), None)


def _fitting(file: Path, folder: Path, above: Path) -> list[Path]:
    """The folders of other splits whose images a table names, every row one of them."""
    found: list[Path] = []
    for name in class_folders(above):
        other = above / name
        if split_of(name) is None or folder.is_relative_to(other) or not _unsorted(other):
            continue
        try:
            if isinstance(read_table(file, [other]), Table):
                found.append(other)
        except DapError:
            continue
    return found


def _unsorted(folder: Path) -> bool:
    """Whether the images of a split lie in no class folders."""
    while not loose_images(folder):
        inner = [name for name in class_folders(folder) if holds_images(folder / name)]
        if len(inner) != 1:
            return False
        folder = folder / inner[0]
    return True
