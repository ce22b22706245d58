"""The layout of FiftyOne's `FiftyOneImageClassificationDataset`: PNG files in data/, and their labels in labels.json.

FiftyOne itself is not needed, which brings a data base with it. Its documentation has the format: `classes` lists the names in
label order, and `labels` has for each file, named without its ending, a position in that list; or a mapping with that `label`
and further `attributes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.fields import FromFile, Name
from dap.base.files import dump, write_atomically
from dap.base.parsing import shown
from dap.data.sets.layouts.base import HOW_SOFT, Job, Written, one_split
from dap.data.sets.notes import MOST_IMAGES, Names, Plain, there

LABELS, DATA = "labels.json", "data"
ATTRIBUTES = ("slot", "seed", "sha256", "weight")
"""The parts of a manifest line that become attributes of an image's label."""


class FiftyOneLabel(FromFile, frozen=True):
    """The label of one image with its attributes."""

    label: Annotated[int, Field(ge=0, le=10**6)] | Name
    confidence: float | None = None
    attributes: Plain = {}


class FiftyOneLabels(FromFile, frozen=True):
    """`labels.json`, for one label an image. Without `classes` the labels are names."""

    classes: Names | None = None
    labels: Annotated[
        dict[Name, Annotated[int, Field(ge=0, le=10**6)] | Name | FiftyOneLabel], Field(max_length=MOST_IMAGES)
    ]


def is_fiftyone(source: Path) -> bool:
    """Whether a folder has this layout."""
    return source.is_dir() and (source / DATA).is_dir() and there(source, LABELS)


def labels_of(source: Path) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and the label of each image by the name of its file without the ending.

    Raises:
        DapError: labels.json cannot be read, or holds a label that is no class.
    """
    said = read_json(source / LABELS, FiftyOneLabels)
    found = {stem: one.label if isinstance(one, FiftyOneLabel) else one for stem, one in said.labels.items()}
    names = list(said.classes or sorted({str(label) for label in found.values()}))
    places = {name: label for label, name in enumerate(names)}
    labels = {stem: label if isinstance(label, int) else places.get(label, -1) for stem, label in found.items()}
    if wrong := [stem for stem, label in labels.items() if not 0 <= label < len(names)]:
        raise DapError(f"{shown(source / LABELS)} gives {shown(wrong[0])} a label that is none of its classes.")
    return names, labels


def write_fiftyone(job: Job) -> Written:
    """Write `data/<label>_<slot>.png` and `labels.json`."""
    files, labels = [], dict[str, Any]()
    for record, png in job.images():
        stem = f"{record['label']:05d}_{record['slot']:05d}"
        files.append(f"{DATA}/{stem}.png")
        write_atomically(job.folder / files[-1], png)
        attributes = {name: record[name] for name in ATTRIBUTES if record.get(name) is not None}
        labels[stem] = {"label": record["label"], "attributes": attributes}
    write_atomically(job.folder / LABELS, dump({"classes": list(job.made.class_names), "labels": labels}))
    soft = job.write_soft()
    how = """    import fiftyone as fo

    fo.Dataset.from_dir(dataset_dir=".", dataset_type=fo.types.FiftyOneImageClassificationDataset)

`labels.json` has the names in label order, and for each image its label, slot, seed and sha256."""
    how += f"\n{HOW_SOFT}" if soft else ""
    return Written(how, one_split(f"{DATA}/*.png"), {}, [], [*files, LABELS, *soft], _path)


def _path(record: Any) -> str:
    return f"{DATA}/{record['label']:05d}_{record['slot']:05d}.png"
