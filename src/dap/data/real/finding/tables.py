"""Labels of loose images in a table beside them: `metadata.csv`, .jsonl or .parquet, `labels.csv`, `train.csv`."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dap.base.documents import read_lines, read_text, regular
from dap.base.errors import DapError
from dap.base.parsing import counted, shown
from dap.data.real.finding.parts import parting
from dap.data.real.finding.splits import ORDER, Split, split_of_file
from dap.data.real.finding.walking import is_image, visible

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
NAMES = ("metadata", "labels", "label", "annotations", "classes", "images", "index")
"""What the tables of labels are called, apart from the words for a split."""

FILES = [
    "file_name",
    "filename",
    "file",
    "image",
    "image_name",
    "imagename",
    "image_path",
    "imagepath",
    "img",
    "img_name",
    "img_path",
    "path",
    "filepath",
    "file_path",
    "image_id",
    "imageid",
    "id",
    "name",
    "fname",
]
LABELS = [
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "classname",
    "label_name",
    "category",
    "category_name",
    "target",
    "breed",
    "species",
    "diagnosis",
    "fine_label",
    "variety",
    "type",
    "level",
]

LARGEST = 512 * 2**20
"""How many bytes a table may have: some ten million rows."""


Rows = list[tuple[int, dict[str, Any]]]
"""The rows of a table with the numbers of their lines."""


@dataclass(frozen=True)
class Table:
    """Labelled files.

    Attributes:
        file: the table.
        root: the folder that the paths are relative to.
        files: class name -> its images, as sorted posix paths relative to `root`. Classes are in name order, or in the
            order of their numbers.
        unlisted: how many images of the folder the table does not name.
        explicit: whether the column of labels is called so.
        part: the split whose rows these are, where a column of the table parts its rows into splits; else None.
    """

    file: Path
    root: Path
    files: dict[str, list[str]]
    unlisted: int = 0
    explicit: bool = False
    part: Split | None = None

    def below(self, folder: Path) -> Table:
        """The part of this table whose images lie in a folder. Paths stay relative to `root`."""
        if folder == self.root or not folder.is_relative_to(self.root):
            return self
        start = f"{folder.relative_to(self.root).as_posix()}/"
        files = {name: [key for key in keys if key.startswith(start)] for name, keys in self.files.items()}
        return replace(self, files={name: keys for name, keys in files.items() if keys})

    def follows_folders(self) -> bool:
        """Whether the labels part the images as their topmost folders do, under these or other names."""
        pairs = {(label, key.split("/")[0]) for label, keys in self.files.items() for key in keys}
        return _one_to_one(pairs)

    def against(self, other: Table) -> tuple[str, str, str] | None:
        """An image to which two tables give other labels, relative to `root`, and both labels. None where the tables part the
        images that both name alike, under the same or other names."""
        mine, theirs = ({t.root / k: name for name, keys in t.files.items() for k in keys} for t in (self, other))
        pairs = {(mine[file], theirs[file]): file for file in sorted(mine.keys() & theirs.keys(), reverse=True)}
        if _one_to_one(pairs):
            return None
        file = min(file for (one, another), file in pairs.items() if one != another)
        return file.relative_to(self.root).as_posix(), mine[file], theirs[file]


def _one_to_one(pairs: Collection[tuple[str, str]]) -> bool:
    return len(pairs) == len({one for one, _ in pairs}) == len({another for _, another in pairs})


def candidates(folder: Path, split: str | None) -> list[Path]:
    """The tables in a folder that may label the images of a split: by their names, first those that say most."""
    found: list[tuple[int, Path]] = []
    for entry in visible(folder):
        stem, ending = os.path.splitext(entry.name.lower())
        if ending not in ENDINGS or not entry.is_file():
            continue
        words = [word for word in re.split(r"[^a-z]+", stem) if word]
        named, said = any(word in NAMES for word in words), split_of_file(entry.name)
        if ending == ".txt" and not named:
            continue
        if said is not None and said != split:
            continue
        if said is not None or named:
            found.append((0 if words == ["metadata"] else 1 if words == ["labels"] else 2, folder / entry.name))
    return [path for _, path in sorted(found)]


def read_table(file: Path, roots: Sequence[Path], split: str | None = None, always: bool = False) -> Table | str:
    """Read a table of labels.

    Where a column, such as `split`, gives words for several splits, the rows of one split are read: those of `split`, or of
    the next split of `splits.ORDER` that has labels.

    Args:
        file: the table.
        roots: the folders that its paths may be relative to, the likeliest first.
        split: the split whose images are wanted; None: all rows, whatever a column says.
        always: whether a column that gives all rows the same split counts too, as for a table above the folders of splits.

    Returns:
        The table; or, where it labels no images of these folders, a clause that says why.

    Raises:
        DapError: the table is damaged, names a file that is not there or leads out of the folder, gives an image two
            labels, or has in its column of splits a value that is no word for one.
    """
    rows = _rows(file)
    if not rows:
        return "has no rows"
    parts = parting(rows, file)
    for root in roots:
        there = _Files(root)
        chosen = _columns(rows, there, parts[0] if parts else None)
        if chosen is not None:
            break
    else:
        return "names no image here"
    if isinstance(chosen, str):
        return chosen
    names, labels, rows = chosen
    named = {key for _, row in rows if (key := there.find(row.get(names))) is not None}
    part: Split | None = None
    if parts is not None and split is not None and (always or len(set(parts[1].values())) > 1):
        column, said = parts
        for one in ORDER.get(split, ("validation",)):
            of = [(number, row) for number, row in rows if said.get(str(row.get(column))) == one]
            if any(row.get(labels) not in (None, "") for _, row in of):
                part, rows = one, of
                break
        else:
            return f"gives no image of the {split} split a label, as its column {column!r} has it"
    found: dict[str, str] = {}
    for number, row in rows:
        path, label = row.get(names), row.get(labels)
        where = f"{shown(file)}, line {number}"
        key = there.find(path)
        if key is None:
            raise DapError(
                f"{where}: there is no image {shown(str(path))!r} in {shown(root)}; add it, or take the line out"
            )
        text = "" if label is None else str(label).strip()
        if isinstance(label, (list, dict, float)) or not text:
            what = "no label" if not text else f"the label {text[:60]}"
            raise DapError(f"{where} gives {what}; a label is a name or a whole number")
        if found.setdefault(key, text) != text:
            raise DapError(
                f"{where} gives {shown(key)!r} the label {text!r}, and an earlier line gives {found[key]!r}; "
                "an image has one label here"
            )
    counts = len(set(found.values()))
    if counts > len(found) / 2 and counts > 2:
        return (
            f"gives {counted(len(found), 'image')} {counts} different values in its column {labels!r}, so these are "
            "captions or ids and no labels"
        )
    by_label: dict[str, list[str]] = {}
    for key in sorted(found):
        by_label.setdefault(found[key], []).append(key)
    numbers = all(re.fullmatch(r"-?\d{1,18}", name) for name in by_label)
    order = sorted(by_label, key=lambda name: (int(name) if numbers else 0, name))
    explicit = str(labels).lower() in LABELS[:9]
    return Table(file, root, {name: by_label[name] for name in order}, there.count - len(named), explicit, part)


def parted(file: Path, folder: Path) -> str | None:
    """The name of the column of a table that parts the images of a folder into several splits; None where no column does, and
    for a damaged table and one about something else.

    Raises:
        DapError: some values of the column are words for splits, and others are not.
    """
    try:
        rows = _rows(file)
    except DapError:
        return None
    there = _Files(folder)
    if all(there.find(value) is None for _, row in rows[:20] for value in row.values()):
        return None
    parts = parting(rows, file)
    return parts[0] if parts is not None and len(set(parts[1].values())) > 1 else None


class _Files:
    """The images below a folder, by the ways in which a table may name them."""

    def __init__(self, root: Path) -> None:
        self._root, self.count = root, 0
        self._paths: set[str] = set()
        self._stems: dict[str, str | None] = {}
        pending = [""]
        while pending:
            inner = pending.pop()
            for entry in visible(root / inner):
                path = f"{inner}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if path.count("/") < 3:
                        pending.append(f"{path}/")
                elif is_image(entry):
                    self._paths.add(path)
                    for short in {path.rpartition("/")[2], os.path.splitext(path)[0], Path(path).stem} - {path}:
                        self._stems[short] = None if short in self._stems else path
        self.count = len(self._paths)

    def find(self, name: Any) -> str | None:
        """The image that a table names: by its path, by its file name, or by either without its ending."""
        text = str(name).strip().replace("\\", "/").removeprefix("./") if isinstance(name, (str, int)) else ""
        if not text or text.startswith("/") or ".." in text.split("/"):
            return None
        return text if text in self._paths else self._stems.get(text)


def _columns(rows: Rows, there: _Files, parting: str | None) -> tuple[str, str, Rows] | str | None:
    """The columns of files and of labels, and the rows (a first line that is no heading is one); a clause that says what
    lacks; None where no column names images of the folder. The column `parting`, which says the split, holds neither."""
    if not there.count:
        return None
    sample = [row for _, row in rows[:20]]
    columns = [name for name in dict.fromkeys(name for row in sample for name in row) if name != parting]
    score = {name: sum(there.find(row.get(name)) is not None for row in sample) for name in columns}
    best = max(score.values(), default=0)
    if not best:
        return None
    usual = {name: place for place, name in enumerate(FILES)}
    files = min((c for c in columns if score[c] == best), key=lambda c: usual.get(c.lower(), len(usual)))
    bare = columns[0].startswith("column 1") or there.find(files) is not None  # there is no heading
    if there.find(files) is not None:
        rows = [(1, dict(zip(columns, columns, strict=True))), *rows]  # without `parting`, which has a heading
    named = [column for wanted in LABELS for column in columns if column.lower() == wanted and column != files]
    others = [column for column in columns if column != files]
    if bare and len(others) > 1:
        others = [c for c in others if not all(re.fullmatch(r"-?[\d.]+", str(row.get(c))) for row in sample)]
    if not named and len(others) != 1:
        return f"has no column of labels among {', '.join(map(shown, columns[:12]))}; call the right one 'label'"
    return files, (named or others)[0], rows


def _rows(file: Path) -> Rows:
    """The rows of a table with the numbers of their lines."""
    ending = file.suffix.lower()
    if ending == ".jsonl":
        found: Rows = []
        for line in read_lines(file, dict[str, Any]):
            if line.problem is not None or line.value is None:
                raise DapError(str(line.problem))
            found.append((line.number, line.value))
        return found
    if ending == ".parquet":
        from dap.data.real.parquet import plain_rows

        return list(enumerate(plain_rows(regular(file)), 1))
    return list(_separated(file))


def _separated(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(file, LARGEST)
    first = text[:10_000].split("\n", 1)[0]
    mark = max("\t;,", key=first.count) if any(sign in first for sign in "\t;,") else " "
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        heading = [name.strip() for name in next(lines, [])]
        if len(set(heading)) < len(heading):  # values and no names
            row, heading = heading, [f"column {place}" for place in range(1, len(heading) + 1)]
            yield 1, dict(zip(heading, row, strict=True))
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(heading):
                raise DapError(
                    f"{shown(file)}, line {lines.line_num}: there are {counted(len(cells), 'column')}, and the first line has "
                    f"{len(heading)}; put commas inside a text between quotes"
                )
            yield lines.line_num, dict(zip(heading, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise DapError(f"{shown(file)}, line {lines.line_num}: this is no table of values ({error})") from error
