"""What goes with the images of an export beside their labels: a weight of each image, and soft labels of each image.

Readers of layouts ask here, by the names that they give to the images. What is missing is no error; what is there and cannot be
used is one, because a set without its weights is another set.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.fields import Inside
from dap.base.files import dump, inside
from dap.base.parsing import shown
from dap.data.sets.contents import MOST_IMAGES
from dap.data.sets.notes import Open, as_read, there

SOFT = "soft_labels.npy"
"""The file of the soft labels, for layouts whose images are files. Its rows have the order of the lines of manifest.jsonl."""
KEPT, FILE, INDEX, FORMAT = "soft-labels", "labels.safetensors", "index.json", "image labels 1"
"""The folder of a set that holds the soft labels which came with an import, and the files of such a folder: a protocol with soft
labels takes the folder as its teacher, see `evaluation.image_labels`."""
LARGEST_ROW = 2**24
"""How many bytes the soft labels of one image may have in a shard."""
Weight = Annotated[float, Field(gt=0, le=MOST_IMAGES)]


@dataclass
class Beside:
    """The weights and the soft labels of a source, by the names of its images.

    Attributes:
        weights: of the images that have one.
        logits: (classes,) of the images that have some, before the softmax.
        columns: the class of each column of the logits; default: the classes of the source in its own order.
    """

    weights: dict[str, float] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    columns: Sequence[str] = ()

    def add(self, key: str, weight: object, logits: object, where: str) -> None:
        """What the source says of one image; None for what it does not say.

        Raises:
            DapError: the weight is no positive number, or the logits are no finite numbers.
        """
        if weight is not None:
            usable = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight <= MOST_IMAGES
            if not usable:  # neither is what is no number of its own, which compares with none
                raise DapError(f"{where}: the weight of {shown(key)} is no positive number; export the set again.")
            self.weights[key] = float(weight)  # pyright: ignore[reportArgumentType]
        if logits is not None:
            try:
                row = np.asarray(logits, np.float32)
            except (TypeError, ValueError) as error:
                raise DapError(
                    f"{where}: the soft labels of {shown(key)} are no numbers; export the set again."
                ) from error
            if row.ndim != 1 or not np.isfinite(row).all():
                raise DapError(f"{where}: the soft labels of {shown(key)} are no row of finite numbers.")
            self.logits[key] = row

    def rows_for(self, keys: Sequence[str], names: Sequence[str], where: str) -> np.ndarray | None:
        """The logits (n, classes) of these images, with a column for each of these classes; None where no image has any.

        Raises:
            DapError: some images have soft labels and some have none, or the columns are of other classes.
        """
        found = [self.logits[key] for key in keys if key in self.logits]
        if not found:
            return None
        known = list(self.columns or names)
        if len(found) < len(keys) or {len(row) for row in found} != {len(known)} or not set(names) <= set(known):
            raise DapError(
                f"{where} has soft labels of some of its images or of other classes only; export the set again."
            )
        return np.stack(found)[:, [known.index(name) for name in names]]


def label_files(
    logits: np.ndarray,
    hashes: Sequence[str],
    class_names: Sequence[str],
    teacher: str,
    accuracy: float | None,
    how: Any,
) -> dict[str, bytes]:
    """The files of a folder with soft labels: `FILE` and `INDEX`.

    Args:
        logits: (n, classes) before the softmax.
        hashes: the sha256 of the n images.
        class_names: the classes of the columns.
        teacher: who gave the labels.
        accuracy: of the teacher on real test images, a fraction; None where it is not known.
        how: how the labels were made, as JSON values.
    """
    from safetensors.numpy import save

    facts = {"format": FORMAT, "teacher": teacher, "accuracy": accuracy, "classes": list(class_names)}
    index = dump({**facts, "images": list(hashes), "how": how})
    return {FILE: save({"logits": np.ascontiguousarray(logits, np.float32)}), INDEX: index}


class _Line(Open, frozen=True):
    """A line of the manifest of an export."""

    path: Inside
    weight: Weight | None = None


def of_files(source: Path, columns: Sequence[str]) -> Beside:
    """What the manifest of an export and its `soft_labels.npy` say of its image files, by their paths.

    Args:
        source: the folder.
        columns: the classes of the columns of the soft labels.

    Raises:
        DapError: the soft labels are no such file or do not fit the manifest.
    """
    found = Beside(columns=columns)
    if not there(source, "manifest.jsonl"):
        return found
    lines = [line.value for line in read_lines(inside(source, "manifest.jsonl"), as_read(_Line))]
    logits = _array(inside(source, SOFT)) if there(source, SOFT) else None
    if logits is not None and (None in lines or logits.shape != (len(lines), len(columns))):
        raise DapError(
            f"{shown(source / SOFT)} does not fit manifest.jsonl; export the set again, or remove both files."
        )
    for i, line in enumerate(lines):
        if line is not None:
            row = None if logits is None else logits[i]
            found.add(shown(line["path"]), line.get("weight"), row, shown(source))
    return found


def _array(file: Path) -> np.ndarray:
    """The array of numbers in a file of NumPy. The file is mapped, so that a false shape takes no memory."""
    try:
        held = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python, so a damaged one can raise nearly anything
        raise DapError(
            f"{shown(file)} is no file of NumPy with numbers; export the set again, or remove it."
        ) from error
    if not isinstance(held, np.ndarray) or held.dtype.kind != "f" or held.ndim != 2:
        raise DapError(f"{shown(file)} holds no table of numbers; export the set again, or remove it.")
    return held


def of_tensors(held: Any, name: str, n: int, columns: Sequence[str]) -> Beside:
    """What a dictionary of tensors says of its n images, by `name#row`: its `weights` (n,) and `logits` (n, classes).

    Raises:
        DapError: they do not fit the images.
    """
    found = Beside(columns=columns)
    if not isinstance(held, Mapping):
        return found
    values: dict[str, Any] = {}
    for key in ("weights", "logits"):
        value = held.get(key)
        if isinstance(value, (torch.Tensor, np.ndarray)):
            if len(value) != n or value.ndim != (1 if key == "weights" else 2):
                raise DapError(f"{name} has {n} images and {key} of the shape {tuple(value.shape)}; save them alike.")
            values[key] = torch.as_tensor(value).float().numpy()
    for row in range(n if values else 0):
        weight = values["weights"][row].item() if "weights" in values else None
        found.add(f"{name}#{row}", weight, values["logits"][row] if "logits" in values else None, name)
    return found


def of_parquet(files: Sequence[Path], columns: Sequence[str]) -> Beside:
    """What the columns `weight` and `logits` of parquet files say, by `file#row`.

    Raises:
        DapError: a file is damaged, or a value is no number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Beside(columns=columns)
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                kinds = {one.name: one.type for one in table.schema_arrow}
                wanted = [name for name, fits in _COLUMNS.items() if name in kinds and fits(kinds[name])]
                rows = table.read(columns=wanted).to_pylist() if wanted else []
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DapError(f"{shown(file)} cannot be read: {next(iter(str(error).splitlines()), '')}") from error
        for i, row in enumerate(rows):
            found.add(f"{file.name}#{i}", row.get("weight"), row.get("logits"), shown(file))
    return found


def _is_float(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind)


def _is_floats(kind: Any) -> bool:
    import pyarrow as pa

    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_float(kind.value_type)


_COLUMNS: dict[str, Callable[[Any], bool]] = {"weight": _is_float, "logits": _is_floats}


def of_shard(parts: Mapping[str, Callable[[], bytes]], said: Any, where: str) -> tuple[object, np.ndarray | None]:
    """The weight and the soft labels of one sample of a WebDataset; None for what it does not say.

    Args:
        parts: the files of the sample by their suffixes.
        said: what its .json says.
        where: names the sample in a message.

    Raises:
        DapError: the soft labels are no array of NumPy.
    """
    weight = said.get("weight") if isinstance(said, dict) else None
    if "logits.npy" not in parts:
        return weight, None
    data = parts["logits.npy"]()
    try:
        if len(data) > LARGEST_ROW:
            raise ValueError
        return weight, np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as above
        raise DapError(f"{where}: logits.npy is no array of NumPy; export the set again.") from error
