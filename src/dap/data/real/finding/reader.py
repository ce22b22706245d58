"""Reads the layout of a folder: which of its files belong to a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import counted, shown
from dap.data.real.finding.advice import missing, missing_beside, missing_file, missing_inside
from dap.data.real.finding.beside import Beside
from dap.data.real.finding.doubts import as_classes, check_words, inside
from dap.data.real.finding.facts import (
    Layout,
    Unlabelled,
    by_split,
    classes_of,
    holds_data,
    holds_parquet,
    idx_below,
    idx_pairs,
    in_parquet,
    instead,
    unlabelled,
)
from dap.data.real.finding.labels import find_table
from dap.data.real.finding.made import is_made
from dap.data.real.finding.splits import ORDER, Split, exact, split_of
from dap.data.real.finding.walking import LAYOUTS, class_folders, holds_images, is_folder, loose_images, visible
from dap.data.real.names import some
from dap.data.real.parquet import check_parted, has_images, has_labels, parquet_files

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_DEPTH = 4


class Reader:
    """Reads the layout of one folder.

    Args:
        path: the folder.
        depth: how many folders above it hold nothing else.
        notes: what was understood of them.
        title: the name that says which split the folder is, if it is one as a whole. Default: its own.
        top: the uppermost of them, which the user has given. Default: the folder itself.
    """

    def __init__(
        self,
        path: Path,
        depth: int = 0,
        notes: tuple[str, ...] = (),
        title: str | None = None,
        top: Path | None = None,
    ) -> None:
        self.path, self.depth, self.notes, self.top = path, depth, notes, top or path
        self.title = path.resolve().name if title is None else title
        self.names = {entry.name: entry for entry in visible(path)}
        self.folders = [name for name, entry in self.names.items() if is_folder(entry)]
        self.parquet = parquet_files(path)
        if self.parquet and not any(map(has_images, self.parquet)) and holds_images(path):
            self.parquet = ()  # tables about the images, such as metadata.parquet

    @cached_property
    def with_images(self) -> list[str]:
        """The names of the folders that hold images at any depth. Each folder is walked once."""
        return [name for name in self.folders if holds_images(self.path / name)]

    # ---- one split

    def find(self, split: str) -> Layout:
        """The split, where nothing was chosen."""
        if idx := self._idx(split):
            return self._noted(idx)
        splits, others = self._parted()
        in_data = parquet_files(self.path / "data")
        if in_data and not self.parquet and any(map(has_images, in_data)):
            return Reader(self.path / "data", self.depth + 1, self.notes, self.title, self.top).find(split)
        if self.parquet:
            return self._noted(self._of_parquet(self.parquet, split))
        if splits:
            if others:
                check_words(self.path, splits, others, [_names(folder) for folder in splits.values()])
                self._note(
                    f"{some([f'{name}/' for name in others])} in {shown(self.path)} belongs to no split and is not read"
                )
            return self._noted(self._of_splits(splits, split, others))
        if layout := self._inner(split, others):
            return self._noted(layout)
        if down := self._wrapper(others):
            return down.find(split)
        whole = self._noted(self._sorted(split))
        parted = whole.table is not None and whole.table.part is not None
        if split != "train" and not parted and split_of(self.title) not in ORDER[split]:
            raise missing_beside(self.path, whole.kind, split, self.top)
        return whole

    def whole(self, split: str) -> Layout:
        """All of the folder as one split: the user has named it."""
        if self.parquet:
            return self._noted(Layout("parquet", self.path, self.parquet))  # parts may be absent, as the user says so
        if idx := self._idx(split):
            return self._noted(idx)
        if len(self.with_images) == 1 and (down := self._wrapper(self.with_images)):
            return down.whole(split)
        return self._noted(self._sorted(split, sure=True))

    def named(self, said: Split, split: str) -> Layout:
        """The split of this name, for the user's `--split test=val`."""
        splits, others = self._parted()
        if splits:
            if said in splits:
                return self._noted(self._opened(splits[said]))
        elif self.parquet:
            files = by_split(self.parquet).get(said)
            if files:
                return self._noted(Layout("parquet", self.path, files))  # as in `whole`
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
            if (said := split_of(name)) is not None and holds_data(self.path / name):
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

    def _of_splits(self, splits: Mapping[Split, Path], split: str, others: Sequence[str]) -> Layout:
        present: list[Split] = [said for said in ORDER[split] if said in splits]
        more = f". If its classes are {as_classes(splits, others)}, give --split train=." if others else ""
        if not present:
            raise missing(self.path, split, self.top, more)
        known = _names(splits["train"]) if "train" in splits and split != "train" else set[str]()
        passed: list[str] = []
        for said in present:
            try:
                layout = self._opened(splits[said])
            except Unlabelled as error:
                passed.append(str(error))
                continue
            reason = None if split == "train" else unlabelled(layout, known)
            if reason is None:
                self.notes += tuple(f"{text}; it is passed over for {layout.root.name}/" for text in passed)
                return layout
            passed.append(reason)
        if split == "train":
            raise DapError(f"{passed[0]}{more}")
        raise DapError(
            f"{shown(self.path)} has no {split} split with labels: {'; '.join(passed)}. Sort its images into one folder for "
            f"each class, or say where labelled ones lie with --split test=FOLDER{more}"
        )

    def _opened(self, folder: Path) -> Layout:
        """The layout of a folder that is a split as a whole."""
        inner = Reader(folder)
        if inner.parquet:
            return in_parquet(folder, inner.parquet)
        found = inner.with_images
        if len(found) == 1 and not loose_images(folder) and (down := inner._wrapper(found, plain=True)):
            self.notes += down.notes
            return self._opened(down.path)
        return inner._sorted(split_of(folder.name) or "train", self.path, self.top)

    def _sorted(self, split: str, above: Path | None = None, data: Path | None = None, sure: bool = False) -> Layout:
        """Class folders, or loose images with a table of labels.

        Args:
            split: the split that is wanted.
            above: the folder of the folders of splits, where this one is a split.
            data: the data set's own folder, where this one is a split.
            sure: whether the user has named the folder, so that no table beside class folders is in doubt.
        """
        with_images = self.with_images
        reasons: dict[Path, str] = {}
        loose = loose_images(self.path)
        if loose or len(with_images) < 2:
            table, reasons = find_table(self.path, above, split)
            if table is not None:
                return Layout("table", table.root, table=table)
        if with_images and not sure:
            self._check_folders(split, above, data, {} if loose else reasons)
        if not with_images and not loose and (held := instead(self.path)):
            raise DapError(f"{shown(self.path)} holds no images{held}; accepted are {LAYOUTS}")
        if self.folders and (with_images or not loose):
            if loose:
                lie = "lies in no class folder and is" if loose == 1 else "lie in no class folder and are"
                self._note(f"{counted(loose, 'image')} in {shown(self.path)} {lie} not read")
            return Layout("folders", self.path)
        why = f" ({'; '.join(reasons.values())})" if reasons else ""
        if loose and above is not None:
            raise Unlabelled(
                f"{shown(self.path)} holds {counted(loose, 'image')} that {'is' if loose == 1 else 'are'} not sorted into class "
                f"folders, and no table labels them{why}; sort them into one folder for each class, or put a table of labels "
                "beside them"
            )
        what = f"{counted(loose, 'image')} but no class folders{why}" if loose else "no class folders"
        raise DapError(f"{shown(self.path)} holds {what}{instead(self.path)}; accepted are {LAYOUTS}")

    def _check_folders(self, split: str, above: Path | None, data: Path | None, reasons: Mapping[Path, str]) -> None:
        """Raise `DapError` where a table beside class folders says something else than they do, or, of one folder, could not be
        used as the table of its images: `reasons` says why."""
        if any(map(is_made, (self.path, *(self.path / name for name in self.with_images)))):
            return  # sets are no classes, which is told where the classes are opened
        empty = [name for name in self.folders if name not in self.with_images]
        beside = Beside(
            self.path, self.classes(), empty, above or self.top, data or self.top, None if above is None else split
        )
        unused = [why for file, why in reasons.items() if split == "train" or above is None or file.parent == self.path]
        if unused:
            (only,) = self.with_images
            whole = f"--split {split}=." if above is None else beside.whole
            raise (DapError if above is None else Unlabelled)(
                f"{shown(self.path)} holds all its images in {shown(only)}/, and no table labels them ({'; '.join(unused)}); "
                f"mend the table, or give {whole} where {shown(only)} is the one class"
            )
        beside.check()

    def classes(self) -> Path | None:
        """The folder of the class folders, where nothing beside them holds images; None where there are none."""
        if down := self._wrapper(self.with_images):
            return down.classes()
        plain = len(self.with_images) > 1 and not any(map(split_of, self.with_images)) and not self.parquet
        return self.path if plain else None

    # ---- other readings

    def _wrapper(self, others: Sequence[str], plain: bool = False) -> Reader | None:
        """The reader of the one folder that holds everything, as archives unpack one level too deep; else None."""
        if self.depth >= _DEPTH or loose_images(self.path) or (self.parquet and not plain):
            return None
        inside = list(others) or [n for n in self.folders if holds_parquet(self.path / n)]
        inside = inside or sorted({name.split("/")[0] for name in idx_below(self.path)})
        if len(inside) != 1:
            return None
        folder = self.path / inside[0]
        if loose_images(folder):
            return None
        note = f"{shown(self.path)} holds nothing but {inside[0]}/, so the data are read from there"
        down = Reader(folder, self.depth + 1, (*self.notes, note), top=self.top)
        below = down.with_images
        plain_to_see = len(below) > 1 or down.parquet or idx_pairs(folder) or any(map(split_of, down.folders))
        return down if plain_to_see or down._wrapper(below) else None

    def _inner(self, split: str, others: Sequence[str]) -> Layout | None:
        """The split where each class folder holds the splits, as cat/train and cat/test; None where they do not."""
        if len(others) < 2:
            return None
        both = inside(self.path, others)
        if not both:
            return None
        for said in ORDER[split]:
            if said in both:
                self._note(
                    f"the class folders of {shown(self.path)} hold the splits; of each class its {said} folder is read"
                )
                return Layout("folders", self.path, inner=said)
        raise missing_inside(self.path, split, self.top, others)

    def _of_parquet(self, files: tuple[Path, ...], split: str) -> Layout:
        parts = by_split(files)
        if not any(parts):
            if split == "train" or split_of(self.title) in ORDER[split]:
                check_parted(files)
                return in_parquet(self.path, files)
            raise missing_beside(self.path, "parquet", split, self.top)
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
            return in_parquet(self.path, parts[said])
        if passed:
            raise DapError(
                f"{shown(self.path)} has no {split} split with labels: {'; '.join(passed)}. Say where labelled images lie with "
                "--split test=FILE"
            )
        raise missing_file(self.path, split, self.top)

    def _idx(self, split: str) -> Layout | None:
        if not (pairs := idx_pairs(self.path)):
            return None
        mine = [stem for stem in pairs if stem.endswith(_IDX_STEMS[split])]
        if len(mine) > 1:
            raise DapError(
                f"{shown(self.path)} holds several pairs of IDX files for its {split} split: "
                f"{some([pairs[stem][0].name for stem in mine], 6)}. Move the files of one data set into a folder of their own, "
                "and give that"
            )
        if mine and "emnist" in mine[0].lower():
            self._note("EMNIST stores its images transposed, and their pixels are taken as they are stored")
        if mine:
            return Layout("idx", self.path, pairs[mine[0]])
        stem = _IDX_STEMS[split][0]
        raise DapError(
            f"{shown(self.path)} has no {split} split; add {stem}-images-idx3-ubyte and {stem}-labels-idx1-ubyte (or the same "
            f"as .gz), or say where it lies with --split {split}=FOLDER"
        )

    # ---- words

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes += (text,)

    def _noted(self, layout: Layout) -> Layout:
        return replace(layout, notes=tuple(dict.fromkeys((*self.notes, *layout.notes))))


def _names(folder: Path) -> set[str]:
    """The classes of a folder that is a split; none where its images are not sorted or lie in parquet files."""
    try:
        layout = Reader(folder)._opened(folder)
    except DapError:
        return set()
    return classes_of(layout)
