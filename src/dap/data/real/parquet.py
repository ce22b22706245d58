"""Real images, or clips, from parquet files as Hugging Face datasets writes them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from dap.base.documents import check_fetched
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.base import CACHE_BYTES, Source
from dap.data.real.clips.pictures import sized
from dap.data.real.clips.times import check_frames, told_frames
from dap.data.real.columns import (
    USUAL,
    check_groups,
    columns_of,
    features_of,
    image_columns,
    is_text,
    is_words,
    label_columns,
    label_of,
    names_of,
    numbered,
    renumbered,
)
from dap.data.real.decode import BrokenImage, Fit, read_file
from dap.data.real.finding.parts import PARTS
from dap.data.real.finding.splits import split_of
from dap.data.real.finding.walking import is_folder, visible
from dap.data.real.identity import DECODING, hashes
from dap.data.real.names import by_class, select
from dap.data.real.recent import Recent
from dap.data.real.sizes import size_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@final
class ParquetSource(Source):
    """Parquet files, read as one table in the given order.

    The image column holds encoded images, as binary or as a struct with the field `bytes`; or paths of image files, as
    text or in the field `path`, relative to the folder of the parquet file or to the folder above it. The label column
    holds numbers or names. The class names come from the ClassLabel feature in the `huggingface` metadata of the schema.
    Files whose names have another order are read by the names. Without this feature, the classes are the sorted names, or the
    numbers from 0 to the largest. Where several columns
    hold images, the column `image` or `img` is taken. Where several columns could be labels, the column `label`,
    `labels`, `fine_label` or `class` is taken. A column that is called as an id, a size or a caption is no label.

    Where `frames` is a number the files are clips, and that many frames are taken of each. Then the column is one of the type
    Video, or else one that holds files: `video`, `clip`, `image` or `img` where there are several.

    Raises:
        DapError: pyarrow is not installed, a file is damaged, unreadable or without such columns, a row has no label, nearly
            every row has a label of its own, or the files number different classes.
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
        frames: int | None = None,
    ) -> None:
        check_pyarrow()
        if frames is not None:
            check_frames(frames)
        self.frames = frames
        self._files = list(files)
        self._groups: list[tuple[Path, int, int]] = []  # for each row group: file, number, first row in the file
        self._renumbered: set[Path] = set()
        self._starts: list[int] = []  # for each row group: its first row, counted over all files
        values: list[Any] = []
        where = str(self._files[0])
        with _opened(self._files[0]) as table:
            features = features_of(table.schema_arrow, where)
            what = "image" if frames is None else "clip"
            self._column, label_column = columns_of(table.schema_arrow, features, where, (what, "label"))
            if is_text(table.schema_arrow.field(self._column).type) and table.num_row_groups:
                _check_beside(self._files[0], table, self._column)
        names = names_of(features.get(label_column, {}), where)
        for file in self._files:
            first = start = len(values)
            with _opened(file) as table:
                for group in range(table.num_row_groups):
                    self._groups.append((file, group, first))
                    self._starts.append(start)
                    start += table.metadata.row_group(group).num_rows
                own = names_of(features_of(table.schema_arrow, str(file)).get(label_column, {}), str(file))
                read = table.read(columns=[label_column]).column(label_column).to_pylist()
                values += (fitting := renumbered(read, own, names, (str(file), where)))
                self._renumbered |= {file} if fitting is not read else set()
        told = check_groups(values, label_column, names, where)
        known, rows = by_class(*numbered(values, names, f"column {label_column!r} of {where}"), where)
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
        self.notes = (told,) if told else ()

    def _key(self, label: int, index: int) -> str:
        row = int(self._rows[label][index])
        file, _, first = self._groups[bisect_right(self._starts, row) - 1]
        return f"{file.name}#{row - first}"

    def _decode(self, label: int, index: int) -> Tensor:
        return sized(self.encoded(label, index), self.frames, self.size, self.fit)

    def encoded(self, label: int, index: int) -> bytes:
        """The file of an image or clip that a row holds or names. Raises `BrokenImage` for a row without one that can be read."""
        value, file = self._value(int(self._rows[label][index]))
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            return data
        named = value.get("path") if isinstance(value, dict) else value
        if not isinstance(named, str):
            raise BrokenImage("its row holds no image bytes")
        place = beside(file, named)
        if place is None:
            raise BrokenImage(f"its row holds no image bytes, and its file {shown(named)!r} is not beside {file.name}")
        try:
            return read_file(place)
        except BrokenImage as error:
            raise BrokenImage(f"its file {shown(named)!r} cannot be read: {error.reason}") from error

    def _value(self, row: int) -> tuple[Any, Path]:
        """What the image column holds in a row, and the file of the row."""
        place = bisect_right(self._starts, row) - 1
        column = self._recent.get(place)
        if column is None:
            file, group, _ = self._groups[place]
            with _opened(file) as table:
                column = table.read_row_group(group, columns=[self._column]).column(self._column)
            self._recent.put(place, column, column.nbytes)
        file, index = self._groups[place][0], row - self._starts[place]
        if index >= len(column):
            raise BrokenImage(f"{shown(file)} holds fewer rows than it says")
        try:
            return column[index].as_py(), file
        except UnicodeDecodeError as error:
            raise BrokenImage("its row holds a text that is not UTF-8") from error

    def _paths(self) -> list[tuple[Path, str]]:
        """The file and the path of each row that names a file and holds no bytes."""
        found: list[tuple[Path, str]] = []
        for file in self._files:
            with _opened(file) as table:
                kind = table.schema_arrow.field(self._column).type
                if not is_text(kind) and kind.num_fields == 0:
                    return []
                leaf = self._column if is_text(kind) else f"{self._column}.path"
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
        if self.frames is not None:
            yield told_frames(self.frames)
        yield f"decoding {DECODING}"
        # One call for all files, because the index remembers of a folder what one call asks.
        for file, digest in zip(self._files, _hashes(self._files), strict=True):
            yield f"{file.name}\t{digest}"
            if file in self._renumbered:  # before, these rows had the labels of other classes
                yield "its classes are numbered as in the first file"
        groups: dict[Path, list[str]] = {}
        for file, name in self._paths():
            place = beside(file, name)
            if place is not None:
                groups.setdefault(place.parent, []).append(place.name)
        named = [folder / name for folder, names in sorted(groups.items()) for name in names]
        for file, digest in zip(named, _hashes(named), strict=True):
            yield f"{file.name}\t{digest}"

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        try:
            return size_of(self.encoded(label, index))
        except BrokenImage:
            return None


def _hashes(files: Sequence[Path]) -> list[str]:
    """The sha256 of files of any folders, see `identity.hashes`."""
    return hashes(files[0].parent, [file.absolute().as_posix() for file in files]) if files else []


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
        with pq.ParquetFile(check_fetched(file)) as table:  # the open of a pipe would never end
            yield table
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DapError(f"{shown(file)} cannot be read as parquet: {shown(' '.join(str(error).split()))}") from error


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
            return bool(image_columns(schema, features_of(schema, str(file))))
    except DapError:
        return True


def has_labels(files: Sequence[Path]) -> bool:
    """Whether a row of parquet files has a label: not null and, for a number, not below 0."""
    check_pyarrow()
    for file in files:
        with _opened(file) as table:
            schema = table.schema_arrow
            features = features_of(schema, str(file))
            if not label_columns(schema, features):
                if set(USUAL["label"]) & set(schema.names):
                    return True  # there is such a column, of a type that opening the file tells
                continue
            (column,) = columns_of(schema, features, str(file), ("label",))
            for group in range(table.num_row_groups):
                values = table.read_row_group(group, columns=[column]).column(column).to_pylist()
                if any(label_of(value) is not None for value in values):
                    return True
    return False


def check_parted(files: Sequence[Path]) -> None:
    """Check that no column says of the rows of files that they are of several splits.

    Raises:
        DapError: such a column is there, pyarrow is not installed, or a file cannot be read.
    """
    check_pyarrow()
    found: dict[str, set[str | None]] = {}
    for file in files:
        with _opened(file) as table:
            columns = [f.name for f in table.schema_arrow if f.name.lower() in PARTS and is_words(f.type)]
            for column in columns:
                values = table.read(columns=[column]).column(column).unique().to_pylist()
                found.setdefault(column, set()).update(split_of(str(value)) for value in values)
    for column, splits in found.items():
        if len(splits) > 1 and (known := sorted(filter(None, splits))):
            named = f"{shown(files[0].name)}" if len(files) == 1 else "."
            raise DapError(
                f"column {column!r} of {shown(files[0])} gives some of its rows to the split {known[0]} and others to "
                f"{known[1] if len(known) > 1 else 'none'}. Write the rows of each split into a file of its own, such as "
                f"train.parquet; or, to take all rows as one split, give --split train={named}"
            )


def plain_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file without its columns of bytes and lists."""
    check_pyarrow()
    with _opened(file) as table:
        import pyarrow.types as kinds

        columns = [f.name for f in table.schema_arrow if is_text(f.type) or kinds.is_primitive(f.type)]
        return table.read(columns=columns).to_pylist()


def beside(file: Path, name: str) -> Path | None:
    """The file that a row of a parquet file names: relative to the folder of the parquet file or the folder above. None
    where there is none, and for a path that leads out of these folders."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        return None
    for folder in (file.parent, file.parent.parent):
        place = folder / name
        # `Path.is_file` raises for a name that is too long and for a folder without permission.
        if os.path.isfile(place) and place.resolve().is_relative_to(folder.resolve()):
            return place
    return None


def _check_beside(file: Path, table: pq.ParquetFile, column: str) -> None:
    """Raise `DapError` where a column of paths leads to none of the first images."""
    names = table.read_row_group(0, columns=[column]).column(column)[:20].to_pylist()
    if names and not any(isinstance(name, str) and beside(file, name) for name in names):
        raise DapError(
            f"column {column!r} of {file} holds paths such as {shown(str(names[0]))!r}, and no such file lies beside it; put the "
            "image files there, at relative paths, or write their bytes into the column"
        )


def _has_bytes(table: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether the struct column of a row group holds bytes in its first row. Where all rows are alike, the statistics of the
    file say so, and no image is read."""
    about = table.metadata.row_group(group)
    for k in range(about.num_columns):
        chunk = about.column(k)
        seen = chunk.statistics if chunk.path_in_schema == f"{column}.bytes" else None
        if seen is not None and seen.has_null_count and seen.null_count in (0, about.num_rows):
            return not about.num_rows or seen.null_count == 0
    found = table.read_row_group(group, columns=[column]).column(column)
    return not len(found) or (found[0].as_py() or {}).get("bytes") is not None
