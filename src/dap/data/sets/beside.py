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

from dap.base.documents import read_json, read_lines
from dap.base.errors import DapError
from dap.base.fields import FromFile, Inside, Name, Share
from dap.base.files import dump, inside
from dap.base.parsing import counted, shown
from dap.data.sets.contents import MOST_IMAGES
from dap.data.sets.notes import MOST_CLASSES, Open, Plain, as_read, there

SOFT = "soft_labels.npy"
"""The file of the soft labels, for layouts whose images are files. Its rows have the order of the lines of manifest.jsonl."""
KEPT, FILE, INDEX, FORMAT = "soft-labels", "labels.safetensors", "index.json", "image labels 1"
"""The folder of a set that holds the soft labels which came with an import, and the files of such a folder: a protocol with soft
labels takes the folder as its teacher, see `evaluation.image_labels`."""
LARGEST_INDEX = 2**30
"""How many bytes `INDEX` may have: 1 GiB, the sha256 of ten million images."""
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


class Index(FromFile, frozen=True):
    """The `INDEX` of a folder with soft labels."""

    format: Name
    teacher: Name
    accuracy: Share | None
    classes: Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
    images: Annotated[list[Name], Field(min_length=1, max_length=MOST_IMAGES)]
    how: Plain


def index_in(folder: Path) -> Index:
    """The `INDEX` of a folder with soft labels.

    Raises:
        DapError: it is damaged, or of another version.
    """
    index = read_json(folder / INDEX, Index, largest=LARGEST_INDEX)
    if index.format != FORMAT:
        raise DapError(f"{shown(folder)} holds {index.format[:40]!r}, and this version reads {FORMAT!r}.")
    return index


def logits_in(folder: Path, index: Index) -> torch.Tensor:
    """The logits (n, classes) of a folder with soft labels, as `index` orders them.

    Raises:
        DapError: they are missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(folder / FILE), framework="pt") as opened:
            values: torch.Tensor = opened.get_tensor("logits")
        if values.shape != (len(index.images), len(index.classes)) or not values.float().isfinite().all():
            raise ValueError(f"it should hold {len(index.images)} x {len(index.classes)} finite logits")
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DapError(
            f"{shown(folder / FILE)} is missing or damaged ({error}); make it again with dap export."
        ) from error
    return values


def of_set(source: Path, hashes: Mapping[str, str], weights: Mapping[str, float]) -> Beside:
    """What goes with the images of a set of this library: their weights, and the soft labels in its folder `KEPT`.

    Args:
        source: the folder of the set.
        hashes: the sha256 of each image, by its path.
        weights: the weights of images that have one, by their paths.

    Raises:
        DapError: the soft labels are damaged.
    """
    found = Beside(dict(weights))
    if there(source, KEPT):
        folder = inside(source, f"{KEPT}/{INDEX}").parent
        inside(source, f"{KEPT}/{FILE}")
        index = index_in(folder)
        values, rows = logits_in(folder, index).float().numpy(), {one: row for row, one in enumerate(index.images)}
        found.columns = index.classes
        found.logits = {key: values[rows[digest]] for key, digest in hashes.items() if digest in rows}
        if not found.logits:
            raise DapError(
                f"The soft labels in {shown(folder)} are of other images; remove that folder, or make them anew."
            )
    return found


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
        DapError: the soft labels are no such file or do not fit the manifest, or lines of a manifest with weights are damaged.
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
    if found.weights and None in lines:
        raise DapError(
            f"{shown(source / 'manifest.jsonl')} holds weights, and line {lines.index(None) + 1} is damaged; export the set "
            "again."
        )
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


_ROW = {"weights": "number", "logits": "row"}


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
        if (value := held.get(key)) is None:
            continue
        try:
            rows = [torch.as_tensor(one) for one in value] if isinstance(value, (list, tuple)) else None
            table = torch.as_tensor(value) if rows is None else torch.stack(rows)
            numbers = table.detach().float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DapError(
                f"{name} has {key} that are a {type(value).__name__} and no numbers, one {_ROW[key]} for each image; save them "
                "as a tensor, or leave them out."
            ) from error
        if numbers.ndim != (1 if key == "weights" else 2) or len(numbers) != n:
            raise DapError(
                f"{name} has {counted(n, 'image')} and {key} of the shape {tuple(numbers.shape)}; save them alike."
            )
        values[key] = numbers.numpy()
    for row in range(n if values else 0):
        weight = values["weights"][row].item() if "weights" in values else None
        found.add(f"{name}#{row}", weight, values["logits"][row] if "logits" in values else None, name)
    return found


def of_parquet(files: Sequence[Path], columns: Sequence[str]) -> Beside:
    """What the columns `weight` and `logits` of parquet files say, by `file#row`.

    Raises:
        DapError: a file is damaged, or such a column holds no numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Beside(columns=columns)
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                kinds = {one.name: one.type for one in table.schema_arrow}
                wanted = [name for name in _COLUMNS if name in kinds and not pa.types.is_null(kinds[name])]
                for name in wanted:
                    fits, needed = _COLUMNS[name]
                    if not fits(kinds[name]):
                        raise DapError(
                            f"{shown(file)} has a column {name} of {kinds[name]}, and {needed} is needed; rename or "
                            "remove the column."
                        )
                rows = table.read(columns=wanted).to_pylist() if wanted else []
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DapError(f"{shown(file)} cannot be read: {next(iter(str(error).splitlines()), '')}") from error
        for i, row in enumerate(rows):
            found.add(f"{file.name}#{i}", row.get("weight"), row.get("logits"), shown(file))
    return found


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _is_numbers(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and _is_number(kind.value_type)


_COLUMNS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weight": (_is_number, "a number for each image"),
    "logits": (_is_numbers, "a list of numbers for each image"),
}
"""The columns beside images and labels: which types they may have, and what such a type is, in words."""


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
