"""Real images from parquet files as Hugging Face datasets writes them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.base import CACHE_BYTES, Source, by_class, select, some
from dap.data.real.decode import BrokenImage, Fit, decode
from dap.data.real.recent import Recent

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@final
class ParquetSource(Source):
    """Parquet files, read as one table in the given order.

    The image column holds encoded images, as binary or as a struct with the field `bytes`. The label column holds
    numbers or names. The class names come from the ClassLabel feature in the `huggingface` metadata of the schema.
    Without this feature, the classes are the sorted names, or the numbers from 0 to the largest. Where several columns
    hold images, the column `image` or `img` is taken. Where several columns could be labels, the column `label`,
    `labels`, `fine_label` or `class` is taken.

    Raises:
        DapError: pyarrow is not installed, a file is damaged, unreadable or without such columns, or a row has no
            label.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        size: int,
        fit: Fit = "crop",
        classes: Sequence[str] | None = None,
        name: str | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        check_pyarrow()
        self._files = list(files)
        self._groups: list[tuple[Path, int, int]] = []  # for each row group: file, number, first row in the file
        self._starts: list[int] = []  # for each row group: its first row, counted over all files
        values: list[Any] = []
        where = str(self._files[0])
        with _opened(self._files[0]) as table:
            features = _features(table.schema_arrow, where)
            self._column, label_column = _columns(table.schema_arrow, features, where)
        for file in self._files:
            first = start = len(values)
            with _opened(file) as table:
                for group in range(table.num_row_groups):
                    self._groups.append((file, group, first))
                    self._starts.append(start)
                    start += table.metadata.row_group(group).num_rows
                values += table.read(columns=[label_column]).column(label_column).to_pylist()
        names = features.get(label_column, {}).get("names")
        known, rows = by_class(*_numbered(values, names, f"column {label_column!r} of {where}"), where)
        chosen_names, chosen = select(known, classes, str(self._files[0].parent))
        self._rows = [rows[place] for place in chosen]
        self._recent: Recent[pa.ChunkedArray] = Recent(CACHE_BYTES)
        super().__init__(
            name or self._files[0].parent.name,
            chosen_names,
            [len(members) for members in self._rows],
            size=size,
            fit=fit,
            max_bad_fraction=max_bad_fraction,
        )

    def _key(self, label: int, index: int) -> str:
        row = int(self._rows[label][index])
        file, _, first = self._groups[bisect_right(self._starts, row) - 1]
        return f"{file.name}#{row - first}"

    def _decode(self, label: int, index: int) -> Tensor:
        return decode(self.encoded(label, index), self.size, self.fit)

    def encoded(self, label: int, index: int) -> bytes:
        """The image file that a row holds. Raises `BrokenImage` for a row without one."""
        row = int(self._rows[label][index])
        place = bisect_right(self._starts, row) - 1
        column = self._recent.get(place)
        if column is None:
            file, group, _ = self._groups[place]
            with _opened(file) as table:
                column = table.read_row_group(group, columns=[self._column]).column(self._column)
            self._recent.put(place, column, column.nbytes)
        value = column[row - self._starts[place]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise BrokenImage("its row holds no image bytes")
        return data

    def _listing(self) -> Iterator[str]:
        for file in self._files:
            yield f"{file.name}\t{file.stat().st_size}"


def check_pyarrow() -> None:
    """Raise `DapError` if pyarrow, which reads and writes parquet files, is not installed."""
    if find_spec("pyarrow") is None:
        raise DapError("Parquet files need the package pyarrow; pip install 'diffusion-as-priors[parquet]'.")


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """An open parquet file. Any error in it while it is open becomes a `DapError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DapError(f"{file} cannot be read as parquet: {' '.join(str(error).split())}") from error


def _features(schema: pa.Schema, where: str) -> dict[str, dict[str, Any]]:
    """The feature types that Hugging Face datasets notes in the schema, by column; empty for other files."""
    note = (schema.metadata or {}).get(b"huggingface")
    if note is None:
        return {}
    try:
        features = json.loads(note)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DapError(f"the 'huggingface' metadata of {where} is damaged ({error!r}); write the file again") from error


def _columns(schema: pa.Schema, features: dict[str, dict[str, Any]], where: str) -> tuple[str, str]:
    """The names of two columns: the column of the images and the column of the labels."""
    import pyarrow.types as kinds

    def of_type(name: str) -> list[str]:
        return [column for column in schema.names if features.get(column, {}).get("_type") == name]

    def is_image(kind: pa.DataType) -> bool:
        blob = kinds.is_binary(kind) or kinds.is_large_binary(kind)
        return blob or (kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    def is_label(kind: pa.DataType) -> bool:
        text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_dictionary(kind)
        return text or kinds.is_integer(kind)

    images = of_type("Image") or [field.name for field in schema if is_image(field.type)]
    labels = of_type("ClassLabel") or [field.name for field in schema if is_label(field.type)]
    found: list[str] = []
    for what, columns, usual in (
        ("image", images, ("image", "img")),
        ("label", labels, ("label", "labels", "fine_label", "class")),
    ):
        column = next((name for name in usual if name in columns), columns[0] if len(columns) == 1 else None)
        if column is None:
            problem = f"several columns that could be the {what}s" if columns else f"no column of {what}s"
            raise DapError(f"{where} has {problem} among {', '.join(schema.names)}; call the right one {what!r}")
        found.append(column)
    return found[0], found[1]


def _numbered(values: list[Any], names: list[str] | None, where: str) -> tuple[np.ndarray, list[str] | None]:
    """The labels as numbers (n,), and the class names in label order. The names are None where labels are unnamed
    numbers."""
    kinds = {type(value) for value in values}
    if kinds <= {int}:
        return np.array(values, dtype=np.int64), names
    if kinds != {str}:
        missing = values.count(None)
        found = f"{missing} rows without a label" if missing else f"labels of several types ({len(kinds)})"
        raise DapError(f"{where} has {found}; labels are numbers or names")
    places = {name: place for place, name in enumerate(names or sorted(set(values)))}
    if strangers := sorted(set(values) - set(places)):
        raise DapError(f"{where} has {some(strangers)}, not among the names in its metadata")
    return np.array([places[value] for value in values]), list(places)
