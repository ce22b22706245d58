"""Real images from parquet files as Hugging Face datasets writes them."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from torch import Tensor

from dap.base.documents import read_bytes
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.base import CACHE_BYTES, Source, size_of
from dap.data.real.decode import BrokenImage, Fit, decode
from dap.data.real.identity import DECODING, hashes
from dap.data.real.names import by_class, select, some
from dap.data.real.recent import Recent
from dap.data.real.walking import is_folder, visible

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@final
class ParquetSource(Source):
    """Parquet files, read as one table in the given order.

    The image column holds encoded images, as binary or as a struct with the field `bytes`; or paths of image files, as
    text or in the field `path`, relative to the folder of the parquet file or to the folder above it. The label column
    holds numbers or names. The class names come from the ClassLabel feature in the `huggingface` metadata of the schema.
    Without this feature, the classes are the sorted names, or the numbers from 0 to the largest. Where several columns
    hold images, the column `image` or `img` is taken. Where several columns could be labels, the column `label`,
    `labels`, `fine_label` or `class` is taken. A column that is called as an id, a size or a caption is no label.

    Raises:
        DapError: pyarrow is not installed, a file is damaged, unreadable or without such columns, a row has no label, or
            nearly every row has a label of its own.
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
        _check_groups(values, label_column, names, where)
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
        """The image file that a row holds or names. Raises `BrokenImage` for a row without one."""
        value, file = self._value(int(self._rows[label][index]))
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            return data
        named = value.get("path") if isinstance(value, dict) else value
        if not isinstance(named, str):
            raise BrokenImage("its row holds no image bytes")
        place = beside(file, named)
        if place is None:
            raise BrokenImage(f"its row names the file {shown(named)!r}, which is not beside {file.name}")
        return read_bytes(place)

    def _value(self, row: int) -> tuple[Any, Path]:
        """What the image column holds in a row, and the file of the row."""
        place = bisect_right(self._starts, row) - 1
        column = self._recent.get(place)
        if column is None:
            file, group, _ = self._groups[place]
            with _opened(file) as table:
                column = table.read_row_group(group, columns=[self._column]).column(self._column)
            self._recent.put(place, column, column.nbytes)
        return column[row - self._starts[place]].as_py(), self._groups[place][0]

    def _paths(self) -> list[tuple[Path, str]]:
        """The file and the path of each row that names a file and holds no bytes."""
        found: list[tuple[Path, str]] = []
        for file in self._files:
            with _opened(file) as table:
                kind = table.schema_arrow.field(self._column).type
                if not _is_text(kind) and kind.num_fields == 0:
                    return []
                leaf = self._column if _is_text(kind) else f"{self._column}.path"
                if kind.num_fields and kind.get_field_index("path") < 0:
                    return []
                if kind.num_fields and all(
                    _has_bytes(table, group, self._column) for group in range(table.num_row_groups)
                ):
                    continue
                rows = table.read(columns=[leaf]).column(self._column).to_pylist()
            named = [row.get("path") if isinstance(row, dict) else row for row in rows]
            found += [(file, name) for name in named if isinstance(name, str)]
        return found

    def _listing(self) -> Iterator[str]:
        yield f"decoding {DECODING}"
        for file, digest in zip(self._files, [hashes(f.parent, [f.name])[0] for f in self._files], strict=True):
            yield f"{file.name}\t{digest}"
        groups: dict[Path, list[str]] = {}
        for file, name in self._paths():
            place = beside(file, name)
            if place is not None:
                groups.setdefault(place.parent, []).append(place.name)
        for folder, names in sorted(groups.items()):
            for name, digest in zip(names, hashes(folder, names), strict=True):
                yield f"{name}\t{digest}"

    def _look(self, label: int, index: int) -> tuple[int, int]:
        return size_of(self.encoded(label, index))


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


def parquet_files(folder: Path) -> tuple[Path, ...]:
    """The parquet files in a folder, in name order; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    found = visible(folder)
    return tuple(folder / e.name for e in found if e.name.lower().endswith(".parquet") and not is_folder(e))


def has_images(file: Path) -> bool:
    """Whether a parquet file has a column of images or of paths of images. True for a file that cannot be read, so that it
    is named when it is opened."""
    try:
        check_pyarrow()
        with _opened(file) as table:
            schema = table.schema_arrow
            return bool(_image_columns(schema, _features(schema, str(file))))
    except DapError:
        return True


def has_labels(files: Sequence[Path]) -> bool:
    """Whether a row of parquet files has a label: not null and, for a number, not below 0."""
    check_pyarrow()
    for file in files:
        with _opened(file) as table:
            schema = table.schema_arrow
            features = _features(schema, str(file))
            if not _label_columns(schema, features):
                continue
            column = _columns(schema, features, str(file))[1]
            for group in range(table.num_row_groups):
                values = table.read_row_group(group, columns=[column]).column(column).to_pylist()
                if any(value is not None and not (isinstance(value, int) and value < 0) for value in values):
                    return True
    return False


def plain_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file without its columns of bytes and lists."""
    check_pyarrow()
    with _opened(file) as table:
        import pyarrow.types as kinds

        columns = [f.name for f in table.schema_arrow if _is_text(f.type) or kinds.is_primitive(f.type)]
        return table.read(columns=columns).to_pylist()


def beside(file: Path, name: str) -> Path | None:
    """The file that a row of a parquet file names: relative to the folder of the parquet file or the folder above. None
    where there is none, and for a path that leads out of these folders."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        return None
    for folder in (file.parent, file.parent.parent):
        place = folder / name
        if place.is_file() and place.resolve().is_relative_to(folder.resolve()):
            return place
    return None


def _has_bytes(table: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether the struct column of a row group holds bytes in its first row."""
    found = table.read_row_group(group, columns=[column]).column(column)
    return not len(found) or (found[0].as_py() or {}).get("bytes") is not None


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


USUAL = {"image": ("image", "img"), "label": ("label", "labels", "fine_label", "class")}

_NO_LABEL = re.compile(
    r"(^|_)(id|ids|idx|index|key|url|path|file|filename|name|width|height|size|hash|md5|sha\d*|text|caption|captions|prompt|"
    r"description|title|sentence|source|license|split)$"
)
"""Names of columns that a reader must not take for labels because nothing else is there."""


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _image_columns(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    import pyarrow.types as kinds

    def is_image(kind: pa.DataType) -> bool:
        blob = kinds.is_binary(kind) or kinds.is_large_binary(kind)
        return blob or (kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    said = [column for column in schema.names if features.get(column, {}).get("_type") == "Image"]
    found = said or [field.name for field in schema if is_image(field.type)]
    named = [
        f.name for f in schema if f.name.lower() in ("image", "img", "image_path", "img_path") and _is_text(f.type)
    ]
    return found or named[:1]


def _label_columns(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    import pyarrow.types as kinds

    def is_label(field: pa.Field) -> bool:
        fits = _is_text(field.type) or kinds.is_dictionary(field.type) or kinds.is_integer(field.type)
        return fits and (field.name in USUAL["label"] or not _NO_LABEL.search(field.name.lower()))

    said = [column for column in schema.names if features.get(column, {}).get("_type") == "ClassLabel"]
    return said or [field.name for field in schema if is_label(field)]


def _columns(schema: pa.Schema, features: dict[str, dict[str, Any]], where: str) -> tuple[str, str]:
    """The names of two columns: the column of the images and the column of the labels."""
    images = _image_columns(schema, features)
    labels = [name for name in _label_columns(schema, features) if name not in images]
    found: list[str] = []
    for what, columns in (("image", images), ("label", labels)):
        usual = USUAL[what]
        column = next((name for name in usual if name in columns), columns[0] if len(columns) == 1 else None)
        if column is None and not columns and (odd := next((name for name in usual if name in schema.names), None)):
            raise DapError(f"column {odd!r} of {where} holds {schema.field(odd).type}, {_WANTED[what]}")
        if column is None and columns:
            raise DapError(
                f"{where} has several columns that could be the {what}s: {some(columns, 6)}; call the right one {what!r}"
            )
        if column is None:
            lists = [
                field.name for field in schema if field.type.num_fields and field.name.lower() in ("images", "pixels")
            ]
            hint = f"column {lists[0]!r} holds {schema.field(lists[0]).type}; " if lists and what == "image" else ""
            raise DapError(f"{where} has no column of {what}s among {', '.join(schema.names)}; {hint}{_LACKING[what]}")
        found.append(column)
    return found[0], found[1]


_WANTED = {
    "image": "and images are the bytes of image files (PNG, JPEG, …) or their paths; encode each image as one file",
    "label": "and labels are whole numbers or names; write it as one of these",
}
_LACKING = {
    "image": "write the images as bytes of image files (PNG, JPEG, …) or as paths, in a column 'image'",
    "label": "captions, ids and sizes are no labels: write the class of each image, a name or a whole number, into a column "
    "'label'",
}


def _check_groups(values: list[Any], column: str, names: list[str] | None, where: str) -> None:
    """Raise `DapError` where nearly every row has a label of its own: then these are captions or ids.

    Numbers in a column that is called so are taken at their word: a set may have one image of each class.
    """
    kinds = set(map(type, values))
    if names or len(values) < 3 or not (kinds <= {str} or kinds <= {int}):
        return
    distinct = len(set(values))
    sure = column in USUAL["label"] and (kinds <= {int} or len(values) < 10)
    if distinct > len(values) / 2 and not sure:
        raise DapError(
            f"column {column!r} of {where} gives {len(values):,} images {distinct:,} different values, so it holds captions or "
            "ids and no labels; write the class of each image into a column 'label'"
        )


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
