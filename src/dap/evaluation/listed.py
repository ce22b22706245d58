"""The lines of a set's `manifest.jsonl` and `trials.jsonl`, and the images that lie in its folders, as a report reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dap.base.documents import read_lines
from dap.base.fields import Inside
from dap.base.files import natural_order
from dap.data.sets.contents import part_files
from dap.data.sets.notes import Count, Label, Open, as_read

Json = Mapping[str, Any]

CLASSES, SLOTS, FEW = 20, 10, 2
"""The images that a page shows: of how many classes, how many of each, and how many of each further class."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class _Image(Open, frozen=True):
    """A line of `manifest.jsonl`, as far as a report asks."""

    path: Inside
    label: Label
    slot: Count


def images_in(path: Path) -> tuple[list[Json], list[str]]:
    """The lines of a manifest and, while several processes make the set, of its parts; the last line of an image counts."""
    read = [lines_of(file, _Image) for file in part_files(path)]  # before the file into which they go
    read.insert(0, lines_of(path / "manifest.jsonl", _Image))
    found = {(line["label"], line["slot"]): line for good, _ in read for line in good}
    return list(found.values()), [problem for _, bad in read for problem in bad]


def lines_of(path: Path, model: type[Any]) -> tuple[list[Json], list[str]]:
    """The values of the lines of a file that fit the model, and why the others do not."""
    good, problems = list[Json](), list[str]()
    for line in read_lines(path, as_read(model)):
        if line.value is not None:
            good.append(line.value)
        else:
            problems.append(str(line.problem))
    return good, problems


def on_a_page(line: Json) -> bool:
    """Whether a page shows the image of this line."""
    return line["slot"] < (SLOTS if line["label"] < CLASSES else FEW)


def pictures(folder: Path) -> list[Path]:
    """The images of a folder in natural order: 2 before 10."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    return sorted(files, key=natural_order)


def listed(path: Path, root: Path, folders: Sequence[str]) -> list[Json]:
    """Lines as those of a manifest, for the images that lie in these folders of `root`."""
    return [
        {"path": os.fspath(file.relative_to(path)), "label": label, "slot": slot}
        for label, folder in enumerate(folders)
        for slot, file in enumerate(pictures(root / folder))
    ]
