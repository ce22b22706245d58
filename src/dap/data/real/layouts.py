"""Where the images of a data set lie: which layout a folder has, and which of its files belong to a split.

A doubtful reading stops the run. The message names both readings, and the flag `--split` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.names import composed, some
from dap.data.real.parquet import has_images, has_labels, parquet_files
from dap.data.real.splits import Split, exact, split_of, split_of_file
from dap.data.real.tables import Table, candidates, read_table
from dap.data.real.walking import (
    IMAGE_SUFFIXES,
    LAYOUTS,
    check_folder,
    class_folders,
    holds_images,
    image_files,
    is_folder,
    is_image,
    loose_images,
    unreadable,
    visible,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "SPLITS",
    "Layout",
    "check_folder",
    "class_folders",
    "image_files",
    "is_folder",
    "is_image",
    "locate",
    "unreadable",
    "visible",
]

SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}
"""The splits that can be opened, each with its usual names. `splits.WORDS` has all words."""

ORDER: dict[str, tuple[Split, ...]] = {"train": ("train",), "test": ("test", "validation")}
UNSORTED = frozenset({"images", "image", "imgs", "unknown", "unlabeled", "unlabelled", "data", "all", "none", "0"})
"""Names, in lower case, of a folder that holds what nobody has sorted."""

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_DEPTH = 4


@dataclass(frozen=True)
class Layout:
    """One split of a data set on disk.

    Attributes:
        kind: what the split is made of.
        root: the folder it lies in.
        files: the parquet files in name order, or the IDX pair (images, labels); () for class folders.
        table: the labels of the images, where they stand in a table.
        inner: the split whose folders inside each class folder are taken; None: the whole class folder.
        notes: sentences on what was understood and is not plain, such as a test split that was passed over.
    """

    kind: Literal["folders", "parquet", "idx", "table"]
    root: Path
    files: tuple[Path, ...] = ()
    table: Table | None = None
    inner: Split | None = None
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[object, ...]:
        """What two layouts share if they hold the same images."""
        files = tuple(str(file.resolve()) for file in self.files)
        return (self.kind, str(self.root.resolve()), files, self.inner, self.table and str(self.table.file))


def locate(path: Path, split: str, chosen: Mapping[str, str] | None = None) -> Layout:
    """Find a split of the data set at `path`.

    A folder without splits counts as the train split. Such a folder also counts as the split that its own name says:
    `.../val` is a test split. The test split is the one with labels: a folder `test` whose images are not sorted, or a
    parquet file whose labels are all -1, is passed over for the validation split.

    Args:
        path: the folder.
        split: "train" or "test".
        chosen: the user's own word: split -> a folder, a table or a parquet file, relative to `path` or absolute, or the
            name of another split, such as {"test": "val"}.

    Raises:
        DapError: there is no such split or folder, a folder cannot be read, the layout is none of `LAYOUTS`, or it can be
            read in two ways.
    """
    if split not in SPLITS:
        raise DapError(f"unknown split {split!r}; known are {', '.join(map(repr, SPLITS))}")
    check_folder(path)
    if chosen and split in chosen:
        return _chosen(path, split, chosen[split])
    try:
        return _Reader(path).find(split)
    except DapError as error:
        if split == "test" and chosen:  # one split was given, and the other is looked for in vain
            raise DapError(
                f"{error} (--split says where the {' and '.join(chosen)} split lies, not the test split)"
            ) from error
        raise


def _chosen(path: Path, split: str, value: str) -> Layout:
    """The layout at the place that the user named."""
    place = (path / Path(value).expanduser()) if value != "." else path
    if place.is_file():
        if place.suffix.lower() == ".parquet":
            return Layout("parquet", place.parent, (place,))
        table = read_table(place, [place.parent, place.with_suffix(""), path])
        if isinstance(table, Table):
            return Layout("table", table.root, table=table)
        raise DapError(f"{shown(place)} {table}")
    if place.is_dir():
        return _Reader(place).whole(split)
    said = split_of(value)
    if said is not None:
        return _Reader(path).named(said, split)
    check_folder(place)  # says what there is
    raise DapError(f"--split {split}={value} is neither a folder nor a file in {shown(path)}")


class _Reader:
    """Reads the layout of one folder."""

    def __init__(self, path: Path, depth: int = 0, notes: tuple[str, ...] = (), title: str | None = None) -> None:
        self.path, self.depth, self.notes = path, depth, notes
        self.title = path.resolve().name if title is None else title
        self.names = {entry.name: entry for entry in visible(path)}
        self.folders = [name for name, entry in self.names.items() if is_folder(entry)]
        self.parquet = parquet_files(path)

    # ---- one split

    def find(self, split: str) -> Layout:
        """The split, where nothing was chosen."""
        if idx := self._idx(split):
            return self._noted(idx)
        splits, others = self._parted()
        in_data = parquet_files(self.path / "data")
        if in_data and not self.parquet and any(map(has_images, in_data)):
            return _Reader(self.path / "data", self.depth + 1, self.notes, self.title).find(split)
        if (self.parquet and not (splits or len(others) > 1)) or any(map(has_images, self.parquet)):
            return self._noted(self._of_parquet(self.parquet, split))
        if splits:
            self._check_doubt(splits, others)
            if others:
                self._note(
                    f"{some([f'{name}/' for name in others])} in {shown(self.path)} belongs to no split and is not read"
                )
            return self._noted(self._of_splits(splits, split))
        if layout := self._inner(split, others):
            return self._noted(layout)
        if down := self._wrapper(others):
            return down.find(split)
        whole = self._noted(self._sorted(split))
        if split != "train" and split_of(self.title) not in ORDER[split]:
            raise self._no_split(split)
        return whole

    def whole(self, split: str) -> Layout:
        """All of the folder as one split: the user has named it."""
        if self.parquet and (any(has_images(file) for file in self.parquet) or not self.folders):
            return self._noted(Layout("parquet", self.path, self.parquet))
        if idx := self._idx(split):
            return self._noted(idx)
        with_images = [name for name in self.folders if holds_images(self.path / name)]
        if len(with_images) == 1 and (down := self._wrapper(with_images)):
            return down.whole(split)
        return self._noted(self._sorted(split))

    def named(self, said: Split, split: str) -> Layout:
        """The split of this name, for the user's `--split test=val`."""
        splits, others = self._parted()
        if splits:
            if said in splits:
                return self._noted(self._opened(splits[said]))
        elif self.parquet:
            files = _by_split(self.parquet).get(said)
            if files:
                return self._noted(Layout("parquet", self.path, files))
        elif down := self._wrapper(others):
            return down.named(said, split)
        raise DapError(f"{shown(self.path)} has no {said} split; it holds {some(self.names, 8) or 'nothing'}")

    # ---- folders of splits

    def _parted(self) -> tuple[dict[Split, Path], list[str]]:
        """The folder of each split, and the names of the other folders that hold images.

        A folder that is called as a split and has loose images is a class among other classes, as in bus/ and train/.
        """
        found: dict[Split, list[str]] = {}
        for name in self.folders:
            if (said := split_of(name)) is not None and _holds_data(self.path / name):
                found.setdefault(said, []).append(name)
        others = [name for name in self.folders if split_of(name) is None and holds_images(self.path / name)]
        if len(found) == 1 and others:
            only = next(iter(found.values()))
            if len(only) == 1 and not class_folders(self.path / only[0]) and not parquet_files(self.path / only[0]):
                return {}, sorted([*others, *only])
        picked: dict[Split, Path] = {}
        for said, names in found.items():
            best = names if len(names) == 1 else exact(names)
            if len(best) != 1:
                raise DapError(
                    f"{shown(self.path)} has several folders for its {said} split: {some(names, 5)}; say which with "
                    f"--split {'train' if said == 'train' else 'test'}={names[0]}"
                )
            picked[said] = self.path / best[0]
        return picked, others

    def _check_doubt(self, splits: Mapping[Split, Path], others: Sequence[str]) -> None:
        """Raise `DapError` where folders called as splits may be classes, because other folders lie beside them."""
        if not others:
            return
        names = [_names(folder) for folder in splits.values()]
        if len(splits) > 1 and (not all(names) or any(names[0] & other for other in names[1:])):
            return
        said, folder = next(iter(splits.items()))
        kind = "train" if said == "train" else "test"
        inner = some(class_folders(folder), 4)
        raise DapError(
            f"{shown(self.path)} can be read in two ways, because {others[0]}/ lies beside {folder.name}/: as a {kind} split "
            f"{folder.name}/ with the classes {inner} (then give --split {kind}={folder.name}), or as the classes "
            f"{some(sorted([*others, *(f.name for f in splits.values())]), 5)} (then give --split train=.)"
        )

    def _of_splits(self, splits: Mapping[Split, Path], split: str) -> Layout:
        present = [said for said in ORDER[split] if said in splits]
        if not present:
            raise self._no_split(split)
        known = _names(splits["train"]) if "train" in splits else set[str]()
        passed: list[str] = []
        for said in present:
            try:
                layout = self._opened(splits[said])
            except _Unlabelled as error:
                passed.append(str(error))
                continue
            reason = None if split == "train" else _unlabelled(layout, known)
            if reason is None:
                self.notes += tuple(f"{text}; it is passed over for {layout.root.name}/" for text in passed)
                return layout
            passed.append(reason)
        if split == "train":
            raise DapError(passed[0])
        raise DapError(
            f"{shown(self.path)} has no {split} split with labels: {'; '.join(passed)}. Sort its images into one folder for "
            f"each class, or say where labelled ones lie with --split test=FOLDER"
        )

    def _opened(self, folder: Path) -> Layout:
        """The layout of a folder that is a split as a whole."""
        inner = _Reader(folder)
        if inner.parquet:
            return Layout("parquet", folder, inner.parquet)
        with_images = [name for name in inner.folders if holds_images(folder / name)]
        if len(with_images) == 1 and not loose_images(folder) and (down := inner._wrapper(with_images, plain=True)):
            self.notes += down.notes
            return self._opened(down.path)
        return inner._sorted(split_of(folder.name) or "train", self.path)

    def _sorted(self, split: str, above: Path | None = None) -> Layout:
        """Class folders, or loose images with a table of labels."""
        with_images = [name for name in self.folders if holds_images(self.path / name)]
        tables = candidates(self.path, split)
        beside = candidates(above, split) if above is not None else []
        reasons: list[str] = []
        loose = loose_images(self.path)
        if loose or len(with_images) < 2:
            for file in [*tables, *beside]:
                roots = [self.path] if file.parent == self.path else [self.path, file.parent]
                table = read_table(file, roots)
                if isinstance(table, Table) and (table := table.below(self.path)).files:
                    return Layout("table", table.root, table=table)
                reasons.append(f"{file.name} {table}")
        elif tables:
            self._check_table(tables)
        if not with_images and not loose and (instead := _instead(self.path)):
            raise DapError(f"{shown(self.path)} holds no images{instead}; accepted are {LAYOUTS}")
        if self.folders and (with_images or not loose):
            if loose:
                self._note(f"{loose} images in {shown(self.path)} lie in no class folder and are not read")
            return Layout("folders", self.path)
        why = f" ({'; '.join(reasons)})" if reasons else ""
        if loose and above is not None:
            raise _Unlabelled(
                f"{shown(self.path)} holds {loose} images that are not sorted into class folders, and no table labels "
                f"them{why}"
            )
        what = f"{loose} images but no class folders{why}" if loose else "no class folders"
        raise DapError(f"{shown(self.path)} holds {what}{_instead(self.path)}; accepted are {LAYOUTS}")

    def _check_table(self, tables: Sequence[Path]) -> None:
        """Raise `DapError` where a table gives images other labels than their class folders do."""
        for file in tables:
            try:
                table = read_table(file, [self.path])
            except DapError:
                continue
            if isinstance(table, str):
                continue
            if not table.explicit or table.follows_folders():
                continue
            label, key = next((label, keys[0]) for label, keys in table.files.items() if keys[0].split("/")[0] != label)
            raise DapError(
                f"{shown(self.path)} can be read in two ways: its folders say that {shown(key)} is of the class "
                f"{key.split('/')[0]!r} (then give --split train=.), and {file.name} says {label!r} (then give "
                f"--split train={file.name})"
            )

    # ---- other readings

    def _wrapper(self, others: Sequence[str], plain: bool = False) -> _Reader | None:
        """The reader of the one folder that holds everything, as archives unpack one level too deep; else None."""
        if self.depth >= _DEPTH or loose_images(self.path) or (self.parquet and not plain):
            return None
        inside = list(others) or [n for n in self.folders if _holds_parquet(self.path / n)]
        if len(inside) != 1:
            return None
        folder = self.path / inside[0]
        if loose_images(folder):
            return None
        note = f"{shown(self.path)} holds nothing but {inside[0]}/, so the data are read from there"
        down = _Reader(folder, self.depth + 1, (*self.notes, note))
        below = [name for name in down.folders if holds_images(folder / name)]
        if len(below) > 1 or down.parquet or any(split_of(name) for name in down.folders) or down._wrapper(below):
            return down
        return None

    def _inner(self, split: str, others: Sequence[str]) -> Layout | None:
        """The split where each class folder holds the splits, as cat/train and cat/test; None where they do not."""
        if len(others) < 2:
            return None
        parts = []
        for name in others:
            inner = class_folders(self.path / name)
            said = {split_of(one) for one in inner}
            if not inner or None in said or loose_images(self.path / name):
                return None
            parts.append(said)
        both = set.intersection(*parts)
        if "train" not in both:
            return None
        for said in ORDER[split]:
            if said in both:
                self._note(
                    f"the class folders of {shown(self.path)} hold the splits; of each class its {said} folder is read"
                )
                return Layout("folders", self.path, inner=said)
        raise self._no_split(split)

    def _of_parquet(self, files: tuple[Path, ...], split: str) -> Layout:
        parts = _by_split(files)
        if not any(parts):
            if split == "train" or split_of(self.title) in ORDER[split]:
                return Layout("parquet", self.path, files)
            raise self._no_split(split)
        if None in parts:
            self._note(f"{some([file.name for file in parts[None]])} belongs to no split and is not read")
        passed: list[str] = []
        for said in ORDER[split]:
            if said not in parts:
                continue
            if split != "train" and not has_labels(parts[said]):
                passed.append(f"{parts[said][0].name} has no labels")
                continue
            self.notes += tuple(f"{text}; it is passed over for {parts[said][0].name}" for text in passed)
            return Layout("parquet", self.path, parts[said])
        if passed:
            raise DapError(
                f"{shown(self.path)} has no {split} split with labels: {'; '.join(passed)}. Say where labelled images lie with "
                "--split test=FILE"
            )
        raise self._no_split(split)

    def _idx(self, split: str) -> Layout | None:
        pairs = {stem: pair for stems in _IDX_STEMS.values() for stem in stems if (pair := self._pair(stem))}
        if not pairs:
            return None
        for stem in _IDX_STEMS[split]:
            if stem in pairs:
                return Layout("idx", self.path, pairs[stem])
        stem = _IDX_STEMS[split][0]
        raise DapError(
            f"{shown(self.path)} has no {split} split; add {stem}-images-idx3-ubyte and {stem}-labels-idx1-ubyte (or the same "
            f"as .gz), or say where it lies with --split {split}=FOLDER"
        )

    def _pair(self, stem: str) -> tuple[Path, Path] | None:
        def find(what: str, rank: int) -> Path | None:
            marks = (f"-idx{rank}-", f".idx{rank}-")
            spellings = (f"{stem}-{what}{mark}ubyte{gz}" for mark in marks for gz in ("", ".gz"))
            return next((self.path / name for name in spellings if name in self.names), None)

        images, labels = find("images", 3), find("labels", 1)
        return (images, labels) if images and labels else None

    # ---- words

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes += (text,)

    def _noted(self, layout: Layout) -> Layout:
        return replace(layout, notes=tuple(dict.fromkeys((*self.notes, *layout.notes))))

    def _no_split(self, split: str) -> DapError:
        where = self.path / split
        what = "the training images" if split == "train" else "its images"
        return DapError(
            f"{shown(self.path)} has no {split} split; put {what}, one folder for each class, into {shown(where)}, or say "
            f"where they lie with --split {split}=FOLDER"
        )


class _Unlabelled(DapError):
    """A split whose images have no labels."""


def _holds_data(folder: Path) -> bool:
    return holds_images(folder) or _holds_parquet(folder)


def _holds_parquet(folder: Path) -> bool:
    return bool(parquet_files(folder)) or any(parquet_files(folder / name) for name in class_folders(folder))


def _names(folder: Path) -> set[str]:
    """The classes of a folder that is a split; none where its images are not sorted or lie in parquet files."""
    try:
        layout = _Reader(folder)._opened(folder)
    except DapError:
        return set()
    return _classes(layout)


def _classes(layout: Layout) -> set[str]:
    if layout.table is not None:
        return set(map(composed, layout.table.files))
    if layout.kind != "folders":
        return set()
    return {composed(name) for name in class_folders(layout.root) if holds_images(layout.root / name)}


def _unlabelled(layout: Layout, known: set[str]) -> str | None:
    """Why a test split has no labels, as a clause; None where it has some.

    Args:
        layout: the split.
        known: the classes of the training images; empty where they are unknown.
    """
    if layout.kind == "parquet":
        return None if has_labels(layout.files) else f"{shown(layout.root)}/ has no labels"
    names = _classes(layout)
    if layout.kind != "folders" or names & known:
        return None
    if all(name.lower() in UNSORTED for name in names) or (known and len(names) <= 1):
        held = f"only the folder {some(sorted(names))}" if names else "no class folders"
        return f"{shown(layout.root)}/ has no labels: it holds {held}"
    return None


def _by_split(files: Sequence[Path]) -> dict[Split | None, tuple[Path, ...]]:
    """Parquet files by the split that their names mean; None for those that mean none."""
    found: dict[Split | None, tuple[Path, ...]] = {}
    for file in files:
        said = split_of_file(file.name)
        found[said] = (*found.get(said, ()), file)
    return found


def _instead(path: Path) -> str:
    """A clause on what a folder without images holds, and what to do with it; "" where there is nothing to say."""
    below = [entry.name for entry in visible(path) if is_folder(entry)]
    if inner := [name for name in below if _holds_parquet(path / name)]:
        return f"; parquet files lie in {some(inner)}: give {shown(path / inner[0])}"
    endings: dict[str, str] = {}
    for folder in (path, *(path / name for name in below[:20])):
        for entry in visible(folder):
            if not is_folder(entry):
                endings.setdefault(Path(entry.name).suffix.lower(), entry.name)
    if ".arrow" in endings:
        return (
            ", but Arrow files of Hugging Face's save_to_disk. Write them as parquet: "
            "datasets.load_from_disk(FOLDER)[SPLIT].to_parquet('SPLIT.parquet') for each split"
        )
    kinds = sorted(ending for ending in endings if ending in _CONTAINERS)
    return f", but files such as {endings[kinds[0]]}; unpack or convert them first" if kinds else ""


_CONTAINERS = frozenset(
    ".zip .tar .gz .tgz .7z .rar .bz2 .xz .npz .npy .pt .pth .safetensors .mdb .lmdb .h5 .hdf5 .mat .tfrecord .pkl .heic .heif "
    ".jxl .dcm .nii .mp4 .avi .svg".split()
)
"""Endings of files that hold images in a form that is not read here."""
