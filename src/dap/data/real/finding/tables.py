"""Labels of loose images in a table beside them: `metadata.csv`, .jsonl or .parquet, `labels.csv`, `train.csv`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.parsing import counted, shown
from dap.data.real.columns import crowded, is_sure, label_of, said_crowded
from dap.data.real.finding.headings import EXPLICIT, Columns, columns_of
from dap.data.real.finding.named import Named
from dap.data.real.finding.parts import parting
from dap.data.real.finding.rows import ENDINGS, Rows, lines_of, rows_of
from dap.data.real.finding.splits import ORDER, Split, split_of_file
from dap.data.real.finding.walking import visible
from dap.data.real.names import composed

NAMES = ("metadata", "labels", "label", "annotations", "classes", "images", "index")
"""What the tables of labels are called, apart from the words for a split."""


@dataclass(frozen=True)
class Table:
    """Labelled files.

    Attributes:
        file: the table.
        root: the folder that the paths are relative to.
        files: class name -> its images, as sorted posix paths relative to `root`. Classes are in name order, or in the
            order of their numbers.
        unlisted: how many images of the folder the table does not name.
        column: the column of labels; None where the folders of the images are their labels.
        part: the split whose rows these are, where a column of the table parts its rows into splits; else None.
    """

    file: Path
    root: Path
    files: dict[str, list[str]]
    unlisted: int = 0
    column: str | None = None
    part: Split | None = None

    @property
    def explicit(self) -> bool:
        """Whether the column of labels is called so."""
        return self.column is not None and self.column.lower() in EXPLICIT

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was understood."""
        of = f", in the rows of the {self.part} split" if self.part else ""
        total = sum(map(len, self.files.values()))
        told = [f"the labels are those of {shown(self.file.name)}{of}"]
        if self.column is None:
            told = [f"the images are those that {shown(self.file.name)} lists, and their folders are the labels"]
        elif crowded(total, len(self.files)):
            told.append(said_crowded(self.column, total, len(self.files)))
        if self.unlisted:
            told.append(f"left out: {counted(self.unlisted, 'image')} that it does not name")
        return tuple(told)

    def below(self, folder: Path) -> Table:
        """The part of this table whose images lie in a folder. Paths stay relative to `root`."""
        if folder == self.root or not folder.is_relative_to(self.root):
            return self
        start = f"{folder.relative_to(self.root).as_posix()}/"
        files = {name: [key for key in keys if key.startswith(start)] for name, keys in self.files.items()}
        return replace(self, files={name: keys for name, keys in files.items() if keys})

    def against(self, other: Table) -> tuple[str, str, str] | None:
        """An image to which two tables give other labels, relative to `root`, and both labels. None where the tables part the
        images that both name alike, under the same or other names."""
        mine, theirs = ({t.root / k: name for name, keys in t.files.items() for k in keys} for t in (self, other))
        pairs = {(mine[file], theirs[file]): file for file in sorted(mine.keys() & theirs.keys(), reverse=True)}
        if one_to_one(pairs):
            return None
        file = min(file for (one, another), file in pairs.items() if one != another)
        return file.relative_to(self.root).as_posix(), mine[file], theirs[file]


def one_to_one(pairs: Collection[tuple[str, str]]) -> bool:
    """Whether each one stands with one other, and each other with one."""
    return len(pairs) == len({one for one, _ in pairs}) == len({another for _, another in pairs})


def is_usual(name: str) -> bool:
    """Whether a file is called as tables of labels are, as in labels.csv and cat-annotations.txt."""
    return any(word in NAMES for word in re.split(r"[^a-z]+", os.path.splitext(name.lower())[0]))


def candidates(folder: Path, split: str | None) -> list[Path]:
    """The tables in a folder that may label the images of a split: by their names, first those that say most."""
    found: list[tuple[int, Path]] = []
    for entry in visible(folder):
        stem, ending = os.path.splitext(entry.name.lower())
        if ending not in ENDINGS or not entry.is_file():
            continue
        words = [word for word in re.split(r"[^a-z]+", stem) if word]
        named, said = is_usual(entry.name), split_of_file(entry.name)
        if ending == ".txt" and not named:
            continue
        if said is not None and said != split:
            continue
        if said is not None or named:
            found.append((0 if words == ["metadata"] else 1 if words == ["labels"] else 2, folder / entry.name))
    return [path for _, path in sorted(found)]


def read_table(
    file: Path, roots: Sequence[Path], split: str | None = None, always: bool = False, classes: Path | None = None
) -> Table | str:
    """Read a table of labels.

    Where a column, such as `split`, gives words for several splits, the rows of one split are read: those of `split`, or of
    the next split of `splits.ORDER` that has labels.

    Args:
        file: the table.
        roots: the folders that its paths may be relative to, the likeliest first.
        split: the split whose images are wanted; None: all rows, whatever a column says.
        always: whether a column that gives all rows the same split counts too, as for a table above the folders of splits.
        classes: the folder of the class folders, which label the images of a mere list of files; None where there is none.

    Returns:
        The table; or, where it labels no images of these folders, a clause that says why.

    Raises:
        DapError: the table is damaged, names a file that is not there or leads out of the folder, gives an image two
            labels, has in its column of splits a value that is no word for one, or has two columns of files.
    """
    try:
        rows = rows_of(file)
        if not rows:
            return "has no rows"
        found = _understood(file, rows, roots)
    except DapError:
        if classes is None or file.suffix.lower() != ".txt":
            raise
        found = "names no image here"
    if isinstance(found, str) and classes is not None and file.suffix.lower() == ".txt":
        found = _understood(file, lines_of(file), roots)  # the names of the files may hold blanks
    if isinstance(found, str):
        return found
    root, there, columns, parts = found
    rows, files, labels = columns.rows, columns.files, columns.labels
    by_folder = labels is None and not columns.others and classes is not None
    if labels is None and not by_folder:
        return columns.lacking

    def label_at(row: Mapping[str, Any]) -> str | int | None:
        if labels is not None:
            return label_of(row.get(labels))
        return _folder_of(root, there.find(row.get(files)), classes)

    named = {key for _, row in rows if (key := there.find(row.get(files))) is not None}
    part: Split | None = None
    if parts is not None and split is not None and (always or len(set(parts[1].values())) > 1):
        column, said = parts
        for one in ORDER.get(split, ("validation",)):
            of = [(number, row) for number, row in rows if said.get(str(row.get(column))) == one]
            if any(label_at(row) is not None for _, row in of):
                part, rows = one, of
                break
        else:
            return f"gives no image of the {split} split a label, as its column {column!r} has it"
    elif labels is not None and all(label_at(row) is None for _, row in rows):
        return f"labels none of its images: line {rows[0][0]} gives {_told(rows[0][1].get(labels))}"
    by_image: dict[str, str] = {}
    for number, row in rows:
        where = f"{shown(file)}, line {number}"
        key = there.find(row.get(files))
        if key is None:
            lack = there.several(row.get(files))
            raise DapError(
                f"{where}: {lack} in {shown(root)}; write the path of the one that is meant"
                if lack
                else f"{where}: there is no image {shown(str(row.get(files)))!r} in {shown(root)}; add it, or take the line out"
            )
        label = label_at(row)
        if label is None:
            what = f"{shown(key)!r} no class folder" if by_folder else _told(row.get(str(labels)))
            raise DapError(f"{where} gives {what}; a label is a name, or a whole number from 0 on")
        if by_image.setdefault(key, str(label)) != str(label):
            raise DapError(
                f"{where} gives {shown(key)!r} the label {str(label)!r}, and an earlier line gives {by_image[key]!r}; "
                "an image has one label here"
            )
    counts = len(set(by_image.values()))
    if labels is not None and crowded(len(by_image), counts) and not is_sure(labels):
        return f"{said_crowded(labels, len(by_image), counts)}, so these are captions or ids and no labels"
    by_label: dict[str, list[str]] = {}
    for key in sorted(by_image):
        by_label.setdefault(by_image[key], []).append(key)
    numbers = all(re.fullmatch(r"\d{1,18}", name) for name in by_label)
    order = sorted(by_label, key=lambda name: (int(name) if numbers else 0, name))
    return Table(file, root, {name: by_label[name] for name in order}, there.count - len(named), labels, part)


def _told(value: Any) -> str:
    """What a cell gives that is no label."""
    text = "" if value is None else str(value).strip()
    return f"the label {text[:60]}" if text else "no label"


def _folder_of(root: Path, key: str | None, classes: Path | None) -> str | None:
    """The class folder of an image; None where it lies in none."""
    place = root / key if key is not None else root
    parts = place.relative_to(classes).parts if classes is not None and place.is_relative_to(classes) else ()
    return composed(parts[0]) if len(parts) > 1 else None


def _understood(
    file: Path, rows: Rows, roots: Sequence[Path]
) -> tuple[Path, Named, Columns, tuple[str, dict[str, Split]] | None] | str:
    """The first folder whose images a table names, with what its columns hold and the column of the splits; or a clause that says
    that it names none."""
    parts = parting(rows, file)
    unclear = None
    for root in roots:
        there = Named(root)
        if columns := columns_of(file, rows, there, parts[0] if parts else None):
            return root, there, columns, parts
        unclear = unclear or next(
            (said for _, row in rows[:20] for cell in row.values() if (said := there.several(cell))), None
        )
    return f"names no image by a name that is its own: {unclear}" if unclear else "names no image here"
