"""Real images from class folders, parquet files or IDX files, and the embedded Fashion-MNIST.

`open_source` finds out which layout a path holds and opens a source. `dap.data.real.base.Source` says what sources
offer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image
from torch import Tensor

from dap import imagenet, starter
from dap.base.documents import read_names
from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.parsing import counted, shown
from dap.data.real.base import Source
from dap.data.real.clips.finding import locate_clips
from dap.data.real.clips.source import ClipSource
from dap.data.real.decode import Fit, check_fit, fit_square
from dap.data.real.finding.doubts import check_outside
from dap.data.real.finding.facts import classes_of
from dap.data.real.finding.listed import FileSource, filled
from dap.data.real.finding.made import real_classes
from dap.data.real.finding.splits import Split, split_of
from dap.data.real.finding.tables import Table
from dap.data.real.finding.walking import LAYOUTS, Left, check_folder, class_folders, image_files, unreadable
from dap.data.real.idx import read_idx
from dap.data.real.layouts import Layout, locate
from dap.data.real.names import by_class, select
from dap.data.real.parquet import ParquetSource
from dap.data.real.sizes import LARGEST_SIDE
from dap.starter import CLASS_NAMES, verify_data

__all__ = ["FolderSource", "IdxSource", "ParquetSource", "Source", "TableSource", "check_path", "open_source"]

EMBEDDED = "fashion-mnist"


def open_source(
    path: str | Path,
    split: str = "train",
    *,
    size: int,
    classes: str | Sequence[str] | None = None,
    max_bad_fraction: float = 0.01,
    fit: Fit = "crop",
    chosen: Mapping[str, str] | None = None,
    frames: int | None = None,
) -> Source:
    """Open a data set: `"fashion-mnist"` (embedded, 28 px padded to 32), or a folder in any layout of `locate`.

    Args:
        path: the name or the folder. Write `./fashion-mnist` for a folder that is called fashion-mnist.
        split: `train` or `test`. The folder of a test split may also be called `val`, `validation`, `testing` and so on;
            a test split without labels is passed over for a validation split. See `layouts.locate`.
        size, fit: height and width of the images in pixels, and how images are made square; see
            `dap.data.real.decode.square`.
        classes: the classes in label order, or the name of a subset of ImageNet such as "imagenette", whose classes are
            WordNet ids. By default all classes are taken, in name order or in the order that the files give. For a test
            split, give the `class_names` of the train split, so that a class without test images cannot shift the
            labels. A WordNet id also finds a class that has its ImageNet name in the data; the class is then called by
            the id.
        max_bad_fraction: the largest share of broken images among the images read. A single broken image is always
            allowed.
        chosen: where splits lie, by the user's own word: split -> folder, table, file or name of another split.
        frames: how many frames of each file are taken: the source is then one of clips, in the layouts of
            `clips.finding.locate_clips`. None: images.

    Raises:
        DapError: the path, the split, the layout or a class does not exist, is empty or cannot be read.
    """
    check_fit(size, fit)
    wanted = imagenet.expand(classes)
    options: dict[str, Any] = {"size": size, "fit": fit, "classes": wanted, "max_bad_fraction": max_bad_fraction}
    if str(path) == EMBEDDED:
        if frames is not None:
            raise DapError(
                f"the embedded {EMBEDDED} has images and no clips; leave out --frames, or give --data FOLDER"
            )
        if chosen:
            raise DapError(f"the embedded {EMBEDDED} has its splits; leave out --split, or give a folder as --data")
        layout = locate(_starter_data(), split)
        facts = {"name": EMBEDDED, "licence": "MIT (Zalando SE, 2017)", "class_names": CLASS_NAMES}
        embedded = IdxSource(*layout.files, split=split, border=2, **facts, **options)
        embedded.opened = (split, {"data": EMBEDDED})
        return embedded
    path = expanded(path)
    options["name"] = path.resolve().name
    find = locate if frames is None else locate_clips
    layout = find(path, split, chosen)
    for other in {*(chosen or ())} - {split}:
        try:
            beside = find(path, other, chosen)
        except DapError:
            continue  # it is told where that split is opened
        check_outside({split: layout, other: beside}, wanted)

    def elsewhere() -> set[str]:
        try:
            return classes_of(find(path, "test" if split == "train" else "train", chosen), frames is not None)
        except DapError:
            return set()

    more = {**options, **({"elsewhere": elsewhere} if layout.kind == "folders" else {})}
    source = _of(layout, split, more) if frames is None else _of_clips(layout, frames, more)
    source.notes, source.place = (*layout.notes, *source.notes), (*layout.place, frames)
    source.root = layout.root.resolve()
    places = {name: str(place) for name, place in (chosen or {}).items() if name in ("train", "test")}
    source.opened = (split, {"data": str(path.absolute()), **({"split": places} if places else {})})
    return source


def _of(layout: Layout, split: str, options: dict[str, Any]) -> Source:
    """The source of a layout."""
    if layout.kind == "idx":
        file = layout.root / "classes.json"
        names = read_names(file) if os.path.lexists(file) else None
        return IdxSource(*layout.files, split=split, class_names=names, **options)
    if layout.kind == "parquet":
        return ParquetSource(layout.files, **options)
    if layout.table is not None:
        return TableSource(layout.table, **options)
    return FolderSource(layout.root, inner=layout.inner, **options)


def _of_clips(layout: Layout, frames: int, options: dict[str, Any]) -> Source:
    """The source of clips of a layout."""
    if layout.kind == "parquet":
        return ParquetSource(layout.files, frames=frames, **options)
    return ClipSource(layout.root, frames, **options)


def check_path(path: str | Path) -> None:
    """Check that a path is the embedded data set or an existing folder, without reading the data.

    Raises:
        DapError: there is no such folder.
    """
    if str(path) != EMBEDDED:
        check_folder(expanded(path))


@final
class FolderSource(FileSource):
    """A folder of class folders. Images may lie at any depth in a class folder. Classes and images are in name order.

    Image files have an ending of `walking.IMAGE_SUFFIXES`, in upper or lower case. Hidden files are left out; `notes`
    counts what is left out.

    Args:
        inner: the split whose folders inside each class folder are read, as cat/train; None: each class folder as a whole.
        elsewhere: gives the classes of which the other split holds images, see `filled`.
    """

    def __init__(
        self,
        root: Path,
        *,
        size: int,
        fit: Fit = "crop",
        classes: Sequence[str] | None = None,
        name: str | None = None,
        max_bad_fraction: float = 0.01,
        inner: Split | None = None,
        elsewhere: Callable[[], set[str]] = set,
    ) -> None:
        known = class_folders(root)
        if not known:
            raise DapError(f"{shown(root)} holds no class folders; accepted are {LAYOUTS}")
        names, folders = real_classes(root, known, classes)
        found = [_inside(root, folder, inner) for folder in folders]
        names, files, left, out = filled(names, found, (lambda: set(names)) if classes else elsewhere)
        how = {"size": size, "fit": fit, "max_bad_fraction": max_bad_fraction}
        super().__init__(name or root.name, names, root, files, **how)
        self.notes = tuple(filter(None, [out, left.told()]))


def _inside(root: Path, folder: str, inner: Split | None) -> tuple[list[str], Left]:
    """The images of a class folder, or of those folders in it that are the split `inner`, relative to `root`, and what is left
    out."""
    left = Left()
    if inner is None:
        return image_files(root / folder, left), left
    parts = [name for name in class_folders(root / folder) if split_of(name) == inner]
    return sorted(f"{folder}/{file}" for name in parts for file in image_files(root / folder / name, left)), left


@final
class TableSource(FileSource):
    """Loose images whose labels stand in a table beside them, see `tables.read_table`."""

    def __init__(
        self,
        table: Table,
        *,
        size: int,
        fit: Fit = "crop",
        classes: Sequence[str] | None = None,
        name: str | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        known = list(table.files)
        names, places = select(known, classes, shown(table.file))
        files = [table.files[known[place]] for place in places]
        how = {"size": size, "fit": fit, "max_bad_fraction": max_bad_fraction}
        super().__init__(name or table.root.name, names, table.root, files, **how)
        self.notes = table.notes


@final
class IdxSource(Source):
    """A pair of IDX files as MNIST has: grey images (n, h, w) of unsigned bytes, and labels (n,).

    Args:
        class_names: the names of the labels 0, 1, ... in the files; by default the numbers themselves.
        split: the first part of the keys of the images, as in `train/123`.
        border: the number of black pixels added on each side of every image before it is made square.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        *,
        size: int,
        fit: Fit = "crop",
        classes: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        licence: str | None = None,
        split: str = "train",
        border: int = 0,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self._files, self._split, self._border = (images, labels), split, border
        pixels, numbers = _idx(images), _idx(labels)
        if pixels.ndim != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape[1:]:
            raise DapError(f"{images} should hold bytes of shape (n, h, w), not {pixels.dtype} {pixels.shape}")
        if numbers.shape != pixels.shape[:1] or numbers.dtype.kind not in "iu":
            raise DapError(f"{labels} should hold {counted(len(pixels), 'label')}, not {numbers.dtype} {numbers.shape}")
        known, rows = by_class(numbers.astype(np.int64), class_names, str(labels))
        if class_names is None and rows and not len(rows[0]):
            known, rows = known[1:], rows[1:]  # the labels count from 1, as those of EMNIST's letters
        names, chosen = select(known, classes, str(images.parent))
        self._pixels = np.pad(pixels, ((0, 0), (border, border), (border, border)))
        self._rows = [rows[place] for place in chosen]
        super().__init__(
            name or images.parent.name,
            names,
            [len(members) for members in self._rows],
            size=size,
            fit=fit,
            licence=licence,
            max_bad_fraction=max_bad_fraction,
        )

    def _key(self, label: int, index: int) -> str:
        return f"{self._split}/{self._rows[label][index]}"

    def _decode(self, label: int, index: int) -> Tensor:
        return fit_square(Image.fromarray(self._pixels[self._rows[label][index]]), self.size, self.fit)

    def _look(self, label: int, index: int) -> tuple[int, int]:
        del label, index
        return self._pixels.shape[2] - 2 * self._border, self._pixels.shape[1] - 2 * self._border

    def side(self) -> int:
        return min(min(self._pixels.shape[1:]), LARGEST_SIDE)

    def _listing(self) -> Iterator[str]:
        yield f"border {self._border}"
        for file in self._files:
            yield hashlib.sha256(file.read_bytes()).hexdigest()


def _idx(file: Path) -> np.ndarray:
    try:
        return read_idx(file)
    except OSError as error:
        raise unreadable(file, error) from error
    except ValueError as error:
        raise DapError(str(error)) from error


@cache
def _starter_data() -> Path:
    verify_data()
    return starter.DATA
