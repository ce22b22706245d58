"""What a writer of a layout gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dap.base.errors import DapError
from dap.base.files import replacing
from dap.data.real.decode import as_png, read_file
from dap.data.sets.beside import SOFT
from dap.data.sets.contents import Within, sha256
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there

Progress = Callable[[int, int, str], None]
HOW_SOFT = f"""`numpy.load("{SOFT}")` gives the logits (n, classes) of the images, in the order of the lines of
`manifest.jsonl`; their softmax are soft labels."""


@dataclass(frozen=True)
class Job:
    """The task that a writer of a layout gets.

    Attributes:
        made: the set, already checked to be whole.
        folder: an empty folder to write into. When the writer is done, this folder replaces the user's folder.
        shard_size: images per file, for layouts that have shards; 0 for other layouts.
        progress: called with (done, all, class name) after every image.
    """

    made: DistilledSet
    folder: Path
    shard_size: int
    progress: Progress | None = None
    logits: np.ndarray | None = None
    """Soft labels (n, classes) float32 before the softmax, in the order of the records of the set; None where there are none."""
    _rows: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def soft(self, record: Mapping[str, Any]) -> np.ndarray | None:
        """The logits (classes,) of the image of a record; None where there are none."""
        if self.logits is None:
            return None
        if not self._rows:
            self._rows.update({(line["label"], line["slot"]): i for i, line in enumerate(self.made.records)})
        return self.logits[self._rows[record["label"], record["slot"]]]

    def write_soft(self) -> list[str]:
        """Write the soft labels as one file of NumPy, if there are any. Returns the names of the files that were written."""
        if self.logits is None:
            return []
        with replacing(self.folder / SOFT) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(self.logits, np.float32), allow_pickle=False)
        return [SOFT]

    def images(self, by_slot: bool = False) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The manifest line and the PNG of every image, in the order of label and slot. With `by_slot`, the order is
        that of slot and label."""
        records, within = self.made.records, Within(self.made.path)
        if by_slot:
            records.sort(key=lambda record: (record["slot"], record["label"]))
        own = there(self.made.path, "classes.json")
        for done, record in enumerate(records, 1):
            # The links of a folder that others made may lead where they want; those of a set may not.
            data = within.read(record["path"]) if own else read_file(self.made.path / record["path"])
            if sha256(data) != record["sha256"]:
                raise DapError(f"{record['path']} has changed while the set was exported; export it again.")
            yield record, as_png(data)[0]
            if self.progress is not None:
                self.progress(done, len(records), record["class_name"])


@dataclass
class Written:
    """The texts and fields that a writer returns about the files that it wrote.

    Attributes:
        how: Markdown for the card, which says how to read the files.
        front: further fields for the front matter of the card, which the hub reads.
        extra: further fields for export.json.
        notes: sentences for the user.
        files: the names of the files that hold the images, to check at the end that all are there.
    """

    how: str
    front: dict[str, Any]
    extra: dict[str, Any]
    notes: list[str]
    files: list[str]
    path_of: Callable[[Mapping[str, Any]], str] | None = None
    """For layouts with a file for each image, the path of the file of a record."""


def weighed(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all images of a set have a weight."""
    return all(record.get("weight") is not None for record in records)


def one_split(pattern: str) -> dict[str, Any]:
    """Front matter that tells the hub that all files are the train split. Without it, a class called "test" could be
    taken for a split."""
    return {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}]}
