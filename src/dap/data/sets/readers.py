"""Readers of distilled sets that others made, as class folders, parquet files or WebDataset shards.

The reader of tensors is `dap.data.sets.tensors`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dap import imagenet
from dap.base.documents import check_fetched
from dap.base.errors import DapError
from dap.base.files import inside
from dap.base.parsing import parse_json, shown
from dap.data.real.decode import read_file
from dap.data.real.finding.doubts import check_reading
from dap.data.real.finding.shards import check_shards
from dap.data.real.finding.walking import is_hidden, is_image, visible
from dap.data.real.layouts import locate
from dap.data.real.names import glued, some
from dap.data.real.parquet import ParquetSource
from dap.data.real.suffixes import IMAGE_SUFFIXES
from dap.data.sets.beside import Beside, of_files, of_parquet, of_set, of_shard
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import (
    by_number,
    by_position,
    choose,
    class_order,
    exported,
    files_by_kind,
    images_by_folder,
    left_out,
    listed,
    other_than_folders,
    wnid_order,
)
from dap.data.sets.layouts.fiftyone import is_fiftyone, labels_of
from dap.data.sets.notes import there
from dap.data.sets.verification import check_none, problems_of

Entry = tuple[str, Callable[[], bytes]]
"""The name of an image in its source, and a function that reads the bytes of the image file. The file may have any
format that Pillow knows."""


@dataclass(frozen=True)
class Ask:
    """The facts about a source that the user gives.

    Attributes:
        class_names: the classes as for `dap.data.sets.folders.listed`.
        ipc: images per class, for tensors without labels.
        first: whether the first `ipc` images of each class are taken, so that a set of this library needs no others.
        labels: the file of labels, where labels and images lie in two files.
        mean, std: mean and standard deviation by which the tensors were normalised, one for all channels or one for
            each.
    """

    class_names: str | Sequence[str] | None = None
    ipc: int | None = None
    labels: Path | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    first: bool = False


@dataclass
class Reading:
    """What a reader found out about a source. The images themselves are read later.

    Attributes:
        names: class names in label order.
        images: the images of each class.
        order: a clause that says where the order of the classes comes from.
        named: whether the images have file names, which can be sorted as text.
        facts: further facts for `import.json`. Some facts are added or change while the images are read.
        beside: the weights and soft labels of the images, by their names.
        whole: how many images each class has once the source is whole; None: those of `images`.
    """

    names: list[str]
    images: list[list[Entry]]
    order: str
    named: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)
    whole: int | None = None


def read_folders(source: Path, ask: Ask) -> Reading:
    """Read class folders. A folder has the name or the WordNet id of its class. Where there is an `export.json`, that
    file says which class each folder is."""
    found = _folders(source, ask)
    said = exported(source)
    if ask.class_names is not None:
        order = "as given with --classes"
    elif "folders" in said:
        order = "as its export.json says"
    elif all(map(imagenet.is_wnid, found)):
        order = wnid_order(source, list(found))
    else:
        order = "class folders sorted by name"
    names, folders = class_order(source, list(found), ask.class_names)
    left = sorted(map(shown, set(found) - set(folders)))
    facts = {**({"left_out": left} if left else {}), **left_out(source)}
    images = [[_entry(source, f) for f in found[folder]] for folder in folders]
    called: dict[str, str] = dict(
        zip(folders, names, strict=True)
    )  # the soft labels have a column for each class, by its new name
    columns: list[str] = said.get("class_names", [])
    if "folders" in said:
        columns = [called.get(folder, name) for folder, name in zip(said["folders"], columns, strict=True)]
    return Reading(names, images, order, facts=facts, beside=of_files(source, columns) if said else Beside())


def read_minimax(source: Path, ask: Ask) -> Reading:
    """Read the layout of MinimaxDiffusion, MGD3 and ManifoldGD: `<wnid>/<n>.png`. The label of a folder is the position
    of its WordNet id in the list of the subset."""
    strange = [folder for folder in _folders(source, ask) if not imagenet.is_wnid(folder)]
    if strange:
        raise DapError(
            f"{source} is not in the minimax layout, which has WordNet ids for folders; it has {some(strange)}."
        )
    return read_folders(source, ask)


def read_rded(source: Path, ask: Ask) -> Reading:
    """Read the layout of RDED and DD-Ranking (`00000/`, `00001/`, …) and of D4M (`0/0-image00.png`). The number of a
    folder is the position of its class in the class list."""
    found = _folders(source, ask)
    folders = by_position(list(found))
    facts = left_out(source)
    if empty := [folder for folder in facts.get("empty", []) if folder.isdigit()]:
        raise DapError(
            f"{shown(source)} has no images in {some(empty)}. The numbers of the folders are positions in a class list, so "
            "none may lack: add the images, or remove the last folders if they are too many."
        )
    if folders is None:
        raise DapError(
            f"{source} should have class folders 0 to {len(found) - 1}, positions in a class list; it has "
            f"{some(found)}. Give --layout folders to take these as names."
        )
    said = exported(source)
    if ask.class_names is None and "folders" in said:
        return read_folders(source, ask)
    names = by_number(ask.class_names, len(folders), f"{source} numbers its classes")
    images = [[_entry(source, file) for file in found[folder]] for folder in folders]
    beside = of_files(source, names) if said else Beside()
    return Reading(names, images, "the folders' numbers, named as given with --classes", facts=facts, beside=beside)


def read_set(source: Path, ask: Ask) -> Reading:
    """Read a set of this library. The user may choose some of its classes, or another order of them.

    Where the first images of each class are asked for, these must be there. The others may be missing, as they are while a set is
    made or grows.
    """
    made = DistilledSet.open(source)
    check_none(problems_of(source, first=ask.ipc if ask.first else None), source, made.recipe is not None)
    names = listed(ask.class_names) or list(made.class_names)
    if absent := [name for name in names if name not in made.class_names]:
        raise DapError(f"{source} has no class {absent[0]!r}; it has {some(made.class_names, 20)}{glued(absent)}.")
    files: dict[str, list[Path]] = {name: [] for name in made.class_names}
    for record in made.records:
        files[record["class_name"]].append(inside(source, record["path"]))
    order = "the set's own" if ask.class_names is None else "as given with --classes"
    facts = {"recipe": made.recipe} if made.recipe else {}
    images = [[_entry(source, file) for file in files[name]] for name in names]
    weights = {shown(line["path"]): line["weight"] for line in made.records if line.get("weight") is not None}
    hashes = {shown(line["path"]): line["sha256"] for line in made.records}
    return Reading(names, images, order, facts=facts, beside=of_set(source, hashes, weights), whole=made.ipc)


def read_parquet(source: Path, ask: Ask) -> Reading:
    """Read parquet files with an image column and a label column, as Hugging Face datasets writes them. `ParquetSource`
    says which columns are taken."""
    found = None if source.is_file() else locate(source, "train")
    if found is not None and found.kind != "parquet":
        raise DapError(f"{shown(source)} holds no parquet files; give --layout for what it is.")
    files = [source] if found is None else list(found.files)
    opened = ParquetSource(files, size=1)
    known, count = list(opened.class_names), len(opened.class_names)
    unnamed = ask.class_names is not None and known == [str(label) for label in range(count)]
    names, places, order = choose(None if unnamed else known, ask.class_names, count, f"{source} numbers its classes")
    images = [
        [
            (key, partial(opened.encoded, label, i))
            for i, key in enumerate(opened.keys(label, range(opened.count(label))))
        ]
        for label in places
    ]
    columns = [names[places.index(place)] if place in places else str(place) for place in range(count)]
    return Reading(names, images, order, named=False, beside=of_parquet(files, columns))


def read_webdataset(source: Path, ask: Ask) -> Reading:
    """Read WebDataset shards. Each key has an image file, and its label in a `.cls` file or as `label` in a `.json`
    file. The `.json` file may also give the `class_name`."""
    found: list[tuple[int, str, Entry]] = []
    told: dict[int, str] = {}
    beside = Beside()
    if not (shards := files_by_kind(source).get("webdataset", [])):
        raise DapError(f"{shown(source)} holds no .tar file; give --layout for what it is.")
    check_shards(shards)
    for shard in shards:
        for key, parts in _samples(shard).items():
            image = next((read for suffix, read in parts.items() if f".{suffix.lower()}" in IMAGE_SUFFIXES), None)
            if image is None:
                raise DapError(f"{shard} has no image among the files of sample {key!r}.")
            try:
                said = parse_json(parts["json"]().decode(), shard) if "json" in parts else {}
                label = int(parts["cls"]()) if "cls" in parts else int(said["label"])
            except (ValueError, KeyError, TypeError, DapError) as error:
                raise DapError(f"{shard} gives no label for sample {key!r} in a .cls or .json file.") from error
            name = said.get("class_name") if isinstance(said, dict) else None
            if isinstance(name, str) and told.setdefault(label, name) != name:
                raise DapError(f"{shard} calls class {label} both {told[label]!r} and {name!r}.")
            found.append((label, key, (f"{shard.name}/{key}", image)))
            beside.add(f"{shard.name}/{key}", *of_shard(parts, said, f"{shown(shard)}, {shown(key)}"), shown(shard))
    labels = sorted({label for label, _, _ in found})
    if not labels:
        raise DapError(f"{shown(source)} holds no image in its .tar files.")
    if labels != list(range(len(labels))):
        raise DapError(f"{source} has the labels {some(map(str, labels))}, not all from 0 to the largest.")
    known = [told[label] for label in labels] if len(told) == len(labels) else None
    names, places, order = choose(known, ask.class_names, len(labels), f"{source} numbers its classes")
    entries: list[list[Entry]] = [[] for _ in labels]
    for label, _, entry in sorted(found, key=lambda row: row[1]):
        entries[label].append(entry)
    beside.columns = [names[places.index(label)] if label in places else str(label) for label in labels]
    return Reading(names, [entries[label] for label in places], order, beside=beside)


def read_fiftyone(source: Path, ask: Ask) -> Reading:
    """Read images in data/ with their labels in labels.json, as FiftyOne writes them (`FiftyOneImageClassificationDataset`)."""
    if not is_fiftyone(source):
        raise DapError(f"{shown(source)} has no labels.json beside a folder data; give --layout for what it is.")
    known, labels = labels_of(source)
    files = {Path(one.name).stem: source / "data" / one.name for one in visible(source / "data") if is_image(one)}
    if absent := [stem for stem in labels if stem not in files]:
        raise DapError(
            f"{shown(source)} has no image {shown(absent[0])} in data, which labels.json names; fetch it again."
        )
    names, places, order = choose(known, ask.class_names, len(known), f"{shown(source)} numbers its classes")
    images = [[_entry(source, files[stem]) for stem, one in labels.items() if one == place] for place in places]
    left = len(files) - len(labels)
    facts = {"unnamed": left} if left else {}
    return Reading(
        names, images, order, facts=facts, beside=of_files(source, exported(source).get("class_names", known))
    )


def _samples(shard: Path) -> Mapping[str, dict[str, Callable[[], bytes]]]:
    """For each key in a shard, its files: suffix of the file -> function that reads the file."""
    samples: dict[str, dict[str, Callable[[], bytes]]] = {}
    check_fetched(shard)
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and not any(is_hidden(part) for part in member.name.removeprefix("./").split("/")):
                    folder = folder.removeprefix("./")
                    key, _, suffix = name.partition(".")
                    samples.setdefault(f"{folder}/{key}".lstrip("/"), {})[suffix] = partial(
                        _slice, shard, member.offset_data, member.size
                    )
            end = archive.offset  # where the reading stopped; half a header stops it without an error
        after = _slice(shard, end, tarfile.BLOCKSIZE)
        if not after:
            raise DapError(
                f"{shard} ends after {end:,} bytes without the empty blocks that close a tar file, so it is cut, perhaps between "
                "two images. Fetch or write it anew."
            )
        if after.strip(b"\0"):
            raise DapError(f"{shard} is not a whole, uncompressed tar file: it is cut or damaged after {end:,} bytes.")
    except tarfile.TarError as error:
        raise DapError(f"{shard} is not a whole, uncompressed tar file: {error}.") from error
    return samples


def _slice(file: Path, start: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(size)


def _folders(source: Path, ask: Ask) -> dict[str, list[Path]]:
    found = images_by_folder(source) if source.is_dir() else {}
    if not found:
        loose = sum(map(is_image, visible(source))) if source.is_dir() else 0
        hint = f"; its {loose} images lie in no folder of a class" if loose else ""
        raise DapError(
            other_than_folders(source)
            or f"{shown(source)} holds no class folders with images{hint}; one folder of "
            "images for each class is needed."
        )
    check_reading(source, found, ask.class_names)
    return found


def _entry(source: Path, file: Path) -> Entry:
    return shown(file.relative_to(source).as_posix()), partial(read_file, file)


def detect(source: Path) -> tuple[str, str]:
    """The name of the layout of a source, and a clause that says how the layout was recognised.

    Raises:
        DapError: the source has no known layout, or could have several.
    """
    if source.is_dir() and there(source, "classes.json") and there(source, "manifest.jsonl"):
        return "set", "found: classes.json and manifest.jsonl"
    if is_fiftyone(source):
        return "fiftyone", "found: data and labels.json"
    files = files_by_kind(source)
    folders = list(images_by_folder(source)) if source.is_dir() else []
    seen = [*files, *(["folders"] if folders else [])]
    if len(seen) > 1:
        raise DapError(f"{source} could be read as {' or as '.join(seen)}; say which with --layout.")
    if files:
        return seen[0], f"found: {some([shown(file.name) for group in files.values() for file in group])}"
    if not folders and source.is_dir():
        return "folders", "nothing else found"  # the reader of class folders says what is missing
    if not folders:
        raise DapError(other_than_folders(source) or f"{source} holds nothing that can be imported.")
    said = f"found: class folders {some(map(shown, folders))}"
    if "folders" in exported(source):
        return "folders", f"{said}, with an export.json"
    if all(map(imagenet.is_wnid, folders)):
        return "minimax", f"{said}, which are WordNet ids"
    if by_position(folders):
        padded = any(folder.startswith("0") and len(folder) > 1 for folder in folders)
        return ("rded", f"{said}, which are positions") if padded else ("d4m", f"{said}, which are unpadded positions")
    if all(folder.isdigit() for folder in folders):
        listed = some(map(shown, folders))
        raise DapError(
            f"The class folders of {shown(source)} are numbers, but not 0 to {len(folders) - 1} ({listed}): positions in a "
            "longer list, or names? Give --layout folders to take them as names, or rename them to the positions."
        )
    return "folders", said
