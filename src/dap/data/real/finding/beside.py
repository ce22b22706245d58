"""What tables and lists beside class folders say: nothing, the same as the folders, or something else, which stops the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.columns import crowded, is_sure, label_of, no_label
from dap.data.real.finding.headings import EXPLICIT, LABELS, Columns, columns_of
from dap.data.real.finding.named import Named
from dap.data.real.finding.parts import PARTS, parting
from dap.data.real.finding.rows import ENDINGS, Rows, lines_of, rows_of
from dap.data.real.finding.splits import Split, split_of_file
from dap.data.real.finding.tables import Table, candidates, is_usual, one_to_one, read_table
from dap.data.real.finding.walking import class_folders, visible
from dap.data.real.names import composed, some


class Doubt(DapError):
    """A table says something else than the class folders beside it, and the message names the flag for either reading."""


class Beside:
    """The tables beside class folders.

    Args:
        folder: the folder of the class folders.
        classes: the same; None where it has one folder alone, which may be no class.
        empty: the folders in it that hold no images, whose tables count too.
        highest: the uppermost folder whose tables count too: that of the folders of the splits; or else the one from which on
            the folder was entered because nothing else holds images, or the folder itself.
        data: the data set's own folder, from which --split is seen.
        split: the split that the class folders are; None where they are all of the data.

    Attributes:
        whole: the flag that takes all images of the folders, whatever a table says.
    """

    def __init__(
        self, folder: Path, classes: Path | None, empty: Sequence[str], highest: Path, data: Path, split: str | None
    ) -> None:
        self._folder, self._classes, self._empty, self._highest, self._data = folder, classes, empty, highest, data
        self._split = split
        self._kind = "train" if split in (None, "train") else "test"
        self.whole = f"--split {self._kind}={'.' if split is None else self._told(folder)}"

    def check(self) -> None:
        """Check that no table says something else than the class folders.

        Raises:
            Doubt: a table gives images other labels than their class folders do, parts them into splits, or names most of them
                and may label them; or a table that is called for a split names some of them.
        """
        lists: dict[Split, Path] = {}
        for file in self._tables():
            rows = next((rows for rows in _readings(file) if self._names(rows)), None)
            if rows is None:
                continue
            there = self._there
            own = self._split is None or file.is_relative_to(self._folder)
            try:
                parts = parting(rows, file)
                columns = columns_of(file, rows, there, parts[0] if parts else None)
            except DapError as error:
                if not own:
                    continue
                raise Doubt(f"{error}; or give {self.whole} for all images of the folders") from error
            if own and parts is not None and len(set(parts[1].values())) > 1:
                self._stop_at_parts(file, parts[0])
            if columns is None:
                continue
            keys = [there.find(row.get(columns.files)) for _, row in columns.rows]
            named = len({key for key in keys if key is not None})
            said = split_of_file(file.name)
            few = 2 * sum(key is not None for key in keys) < len(keys)
            if own and said is not None and named < there.count and not few:
                lists.setdefault(said, file)
            elif 2 * named > there.count or (own and is_usual(file.name)):
                self._check_labels(file, columns, keys, most=2 * named > there.count)
        if lists:
            self._stop_at_lists(lists)

    @cached_property
    def _there(self) -> Named:
        """The images of the class folders, which a table above them may name with the folders between."""
        return Named(self._folder, [f"{self._folder.relative_to(place).as_posix()}/" for place in self._above()])

    def _names(self, rows: Rows) -> bool:
        """Whether one of the first rows names an image."""
        return any(self._there.find(value) is not None for _, row in rows[:20] for value in row.values())

    def _above(self) -> list[Path]:
        """The folders above the class folders whose tables count."""
        return [place for place in self._folder.parents if place.is_relative_to(self._highest)]

    def _tables(self) -> Iterator[Path]:
        """All files that may be tables of these images, whatever they are called. Above the folders of the splits they are called
        as such tables are: what else lies there may be of other images."""
        below = self._folder
        places = [self._folder, *(self._folder / name for name in self._empty)]
        for place in self._above() if self._split is None else ():
            places += [place, *(place / name for name in class_folders(place) if place / name != below)]
            below = place
        for place in places:
            for entry in visible(place):
                if os.path.splitext(entry.name)[1].lower() in ENDINGS and entry.is_file():
                    yield place / entry.name
        if self._split is not None:
            yield from candidates(self._highest, self._split)

    def _told(self, place: Path) -> str:
        """A place as `--split` takes it."""
        return shown(Path(os.path.relpath(place, self._data)).as_posix())

    def _check_labels(self, file: Path, columns: Columns, keys: Sequence[str | None], most: bool) -> None:
        """Raise `Doubt` where a column may hold other labels than the folders say. Of a table that does not name `most` of the
        images, only a column that is called so counts."""
        usual = [column for wanted in LABELS for column in columns.others if column.lower() == wanted]
        explicit = [column for column in usual if column.lower() in EXPLICIT][:1]
        other = [column for column in columns.others if not no_label(column) and column.lower() not in PARTS]
        doubtful: list[tuple[str, str, str]] = []
        for column in explicit or (usual or other if most else ()):
            cells = [(label_of(row.get(column)), key) for (_, row), key in zip(columns.rows, keys, strict=True)]
            given = [(composed(str(label)), key) for label, key in cells if label is not None and key is not None]
            labels = {label for label, _ in given}
            alone = crowded(len(given), len(labels)) and not is_sure(column)
            if alone or len(labels) < (1 if explicit else 2):
                continue
            if one_to_one({(label, key.split("/")[0]) for label, key in given}):
                return
            label, key = next((label, key) for label, key in given if label != key.split("/")[0])
            doubtful.append((column, label, key))
        if doubtful:
            self._stop_at_labels(file, columns, doubtful)

    def _stop_at_labels(self, file: Path, columns: Columns, doubtful: Sequence[tuple[str, str, str]]) -> NoReturn:
        column, label, key = doubtful[0]
        table = f"--split {self._kind}={self._told(file)}"
        said = f"its folders say that {shown(key)} is of the class {key.split('/')[0]!r} (then give {self.whole}), and"
        if columns.labels == column:
            raise Doubt(
                f"{shown(self._folder)} can be read in two ways: {said} {file.name} says {label!r} (then give {table})"
            )
        held = some([repr(name) for name, _, _ in doubtful], 6)
        raise Doubt(
            f"{shown(self._folder)} can be read in two ways: {said} {file.name}, which names these images too, may label them in "
            f"{'one of its columns' if len(doubtful) > 1 else 'its column'} {held} (then call the right one 'label' and give "
            f"{table})"
        )

    def _stop_at_parts(self, file: Path, column: str) -> NoReturn:
        place = self._told(file)
        both = f"train={place},test={place}"
        given = f"--split {both} for its rows, or " if self._reason(file) is None else ""
        raise Doubt(
            f"{shown(self._folder)} can be read in two ways: its folders are classes whose images are all of one split, and "
            f"column {column!r} of {file.name} parts them into splits. Give {given}{self.whole} for all images of the "
            "folders, or sort them into train/ and test/"
        )

    def _stop_at_lists(self, lists: dict[Split, Path]) -> NoReturn:
        test = lists.get("test", lists.get("validation"))
        kinds = {kind: file for kind, file in (("train", lists.get("train")), ("test", test)) if file is not None}
        given = ",".join(f"{kind}={self._told(file)}" for kind, file in kinds.items())
        names = " and ".join(self._told(file) for file in kinds.values())
        way = f"give --split {given}"
        if "train" not in kinds:
            way = f"list the other images in a file of the same form and {way},train=FILE"
        for file in kinds.values():
            if (reason := self._reason(file)) is not None:
                way = f"mend {self._told(file)}, because it {reason}, and {way}"
        raise Doubt(
            f"{shown(self._folder)} can be read in two ways: all images of its folders are of one split (then give "
            f"{self.whole}), or {names} say{'s' * (len(kinds) == 1)} which of them are of which split (then {way})"
        )

    def _reason(self, file: Path) -> str | None:
        """Why a table cannot be read as that of a split; None where it can."""
        try:
            table = read_table(file, [self._folder, *self._above()], classes=self._classes)
        except DapError as error:
            return f"cannot be read ({error})"
        return None if isinstance(table, Table) else table


def _readings(file: Path) -> Iterator[Rows]:
    """The rows of a file that may be a table, and the lines of a text, as names of files may hold blanks. None of a damaged one,
    or of one about something else."""
    for read in (rows_of, lines_of) if file.suffix.lower() == ".txt" else (rows_of,):
        try:
            if rows := read(file):
                yield rows
        except DapError:
            continue
