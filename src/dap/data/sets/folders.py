"""Class folders as other projects write them: which images the folders hold, and which label each folder has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dap import imagenet
from dap.base.documents import fitted, read_names, read_text, regular
from dap.base.errors import DapError
from dap.base.files import natural_order, sha256_of
from dap.base.parsing import Damaged, counted, halved, shown
from dap.data.real.finding.made import check_no_sets
from dap.data.real.finding.walking import Left, class_folders, image_files, loose_images, visible
from dap.data.real.names import encoded, glued, select, some
from dap.data.real.suffixes import container
from dap.data.sets.contents import EXPORT, JSON, Classes, check_exported
from dap.data.sets.notes import MOST_CLASSES, MOST_IMAGES, read, there

ADVICE = "Export the set again, or remove this file and give the classes with --classes."
"""What to do about a damaged export.json."""

SORTED = "sorted"
"""A value for `class_names`. With this value the user says on purpose that the labels follow the sorted class
folders."""

_KINDS = {
    "parquet": ("parquet files", (".parquet",)),
    "webdataset": ("WebDataset shards", (".tar",)),
    "tensors": ("tensors", (".pt", ".pth", ".safetensors")),
}


def images_by_folder(path: Path) -> dict[str, list[Path]]:
    """The class folders that hold images at any depth, sorted by name, and the images in each in natural order of the
    file names (2 before 10)."""
    found = {
        folder: sorted((path / file for file in image_files(path / folder)), key=natural_order)
        for folder in class_folders(path)
    }
    return {folder: files for folder, files in found.items() if files}


def left_out(path: Path) -> dict[str, Any]:
    """What class folders hold beside images: the names of the folders without an image under `empty`, and how many files
    of each ending are no images under `skipped`; and under `loose`, how many images lie in no class folder. A key without
    content is absent."""
    left = Left()
    empty = [shown(folder) for folder in class_folders(path) if not image_files(path / folder, left)]
    kinds = sorted(left.others.items(), key=lambda one: (-one[1], one[0] or "no ending"))
    skipped = {shown(ending) or "no ending": count for ending, count in kinds}
    facts = {"empty": empty, "skipped": skipped, "loose": loose_images(path)}
    return {key: value for key, value in facts.items() if value}


def files_by_kind(path: Path) -> dict[str, list[Path]]:
    """The files of other layouts than class folders, by kind: "parquet", "webdataset" or "tensors" -> the files.

    A path may itself be such a file. In a folder, the files of the folder and of its `data/` are looked at, because the
    hub keeps parquet files in `data/`. The files of each folder are sorted by name.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [folder / e.name for folder in (path, path / "data") if folder.is_dir() for e in visible(folder)]
    else:
        files = []
    found = {kind: [f for f in files if f.suffix.lower() in ends] for kind, (_, ends) in _KINDS.items()}
    return {kind: files for kind, files in found.items() if files}


def other_than_folders(path: Path) -> str | None:
    """A sentence that says why a path cannot be read as class folders: the path holds files that `dap import` reads, or
    the path is a file. None for any other path."""
    for kind in files_by_kind(path):
        what = _KINDS[kind][0]
        return f"{path} holds {what}, not class folders; make a set of it with dap import {path} --out DIR."
    held = [path] if path.is_file() else [path / e.name for e in visible(path)] if path.is_dir() else []
    for file in held:
        if (known := container(file.name)) and not file.is_dir():
            return f"{shown(file)} is {known[0]}, which is not read; {known[1]}."
    return f"{shown(path)} is a file, not a folder of class folders." if path.is_file() else None


def exported(path: Path) -> dict[str, Any]:
    """The contents of the `export.json` that `dap export` wrote into the folder; {} where there is no such file."""
    if not there(path, "export.json") or (path / "export.json").is_dir():
        return {}
    said = read(path, "export.json", JSON, ADVICE)
    if not (isinstance(said, dict) and {"class_names", "layout"} <= set(said)):
        return {}
    try:
        return fitted(said, EXPORT, path / "export.json")
    except Damaged as error:
        raise Damaged(f"{error} {ADVICE}") from error


def by_position(folders: Sequence[str]) -> list[str] | None:
    """The folders in the order of their numbers, where their names are the numbers 0 to n-1, with or without leading
    zeros. None for folders with other names."""
    if not all(folder.isascii() and folder.isdigit() for folder in folders):
        return None
    ordered = sorted(folders, key=int)
    return ordered if [int(folder) for folder in ordered] == list(range(len(ordered))) else None


def listed(class_names: str | Sequence[str] | None) -> list[str] | None:
    """The class names that a user gave as a list, as the name of a subset of ImageNet, or as a file; None for None.

    A .json file holds a list of names. A .txt file holds one name in each line.

    Raises:
        DapError: the text is none of these, or the file cannot be read as a list of names.
    """
    alone = (
        class_names if isinstance(class_names, str) else class_names[0] if class_names and len(class_names) == 1 else ""
    )
    if alone.endswith((".json", ".txt")) and Path(alone).is_file():
        try:
            if alone.endswith(".json"):
                return [name.strip() for name in read_names(Path(alone))]
            return [line.strip() for line in read_text(Path(alone)).splitlines() if line.strip()]
        except Damaged as error:
            raise DapError(f"{shown(alone)} cannot be read as a list of class names: {error}") from error
    expanded = imagenet.expand([alone] if alone else class_names)
    return None if expanded is None else list(expanded)


def class_order(
    path: Path, folders: Sequence[str], class_names: str | Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """The class names in label order, and the folder of each class in the same order.

    Args:
        path: the folder that holds the class folders. Where an `export.json` lies there, that file says which folder
            belongs to which class.
        folders: the names of the class folders, sorted.
        class_names: the classes as for `listed`, or "sorted". Each is the name of a class or its WordNet id. Where the
            folders are numbers, the names are given by position. By default all classes are taken.

    Raises:
        DapError: a class has no folder or is a distilled set, or an image that the `export.json` lists is gone.
    """
    check_exported(path, said := exported(path))
    known = dict(zip(said["class_names"], said["folders"], strict=True)) if "folders" in said else {}
    known = known or {shown(name): folder for folder, name in _names_beside(path, folders).items()}
    if absent := [folder for folder in known.values() if folder not in folders]:
        raise DapError(f"{path} lacks the class folder {absent[0]!r} that its export.json names; export it again.")
    if class_names in (SORTED, [SORTED], (SORTED,)) and SORTED not in known:
        class_names = sorted(known)
    wanted = listed(class_names)
    if wanted is not None and not set(wanted) <= set(known) and (positions := by_position(folders)):
        check_count(wanted, len(positions), f"{path} has class folders 0 to {len(positions) - 1}")
        known = dict(zip(wanted, positions, strict=True))
    names, places = select(list(known), wanted, str(path))
    chosen = [list(known.values())[place] for place in places]
    check_no_sets(path, chosen)
    return names, chosen


def _names_beside(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """The class of each folder: by the classes.json of the set of whose images these are the folders, else the folder's name."""
    beside = dict[str, str]()
    if path.name == "images" and there(path.parent, "classes.json"):
        with suppress(DapError):  # `verify` says what is wrong with the set
            said = read(path.parent, "classes.json", Classes)
            beside = dict(zip(said.folders, said.names, strict=True))
    return {folder: beside.get(folder, folder) for folder in folders}


def check_count(names: Sequence[str], count: int, what: str) -> None:
    """Raise `DapError` unless there are as many distinct names as classes."""
    if len(names) != count:
        raise DapError(
            f"{what}, but {len(names)} classes are named ({some(names)}); name {count} in label order{glued(names)}."
        )
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise DapError(f"The class {twice[0]!r} is named more than once; name each class once.")


def by_number(class_names: str | Sequence[str] | None, count: int, what: str) -> list[str]:
    """Class names in label order, for a source that only numbers its classes from 0 to count - 1.

    Args:
        class_names: the names as for `listed`. A single number N stands for the names "0" to "N-1".
        count: the number of classes of the source.
        what: the beginning of a sentence for messages, "… numbers its classes".

    Raises:
        DapError: no names are given, their number is not `count`, or a name is repeated.
    """
    if class_names is None:
        raise DapError(
            f"{what} from 0 to {count - 1} and does not name them; give --classes with {counted(count, 'name')} in label order, "
            f"a subset of ImageNet ({', '.join(imagenet.SUBSETS)}), or --classes {count} to call them by number."
        )
    alone = class_names if isinstance(class_names, str) else class_names[0] if len(class_names) == 1 else ""
    if alone.isascii() and alone.isdigit() and (len(alone) > 9 or int(alone) != count):
        raise DapError(f"{what} from 0 to {count - 1}, but {alone} classes are named; give --classes {count}.")
    names = (
        [str(number) for number in range(count)] if alone.isascii() and alone.isdigit() else listed(class_names) or []
    )
    check_count(names, count, f"{what} from 0 to {count - 1}")
    return names


def choose(
    known: Sequence[str] | None, class_names: str | Sequence[str] | None, count: int, what: str
) -> tuple[list[str], list[int], str]:
    """The classes to take from a source whose labels are numbers.

    Args:
        known: the class names that the source itself gives, by label; None where the source gives no names.
        class_names: the classes that the user asks for. Where the source gives names, these are some of `known`. Else
            they are names for all classes.
        count, what: as in `by_number`.

    Returns:
        The names of the classes in the new order, the label that each class has in the source, and a clause that says
        where the order comes from.
    """
    if known is None:
        return by_number(class_names, count, what), list(range(count)), "the numbers, named as given with --classes"
    wanted = listed(class_names)
    names, places = select(known, wanted, what.split(" numbers ")[0])
    return names, places, "as the source says" if wanted is None else "as given with --classes"


def wnid_order(path: Path, folders: Sequence[str]) -> str:
    """A clause that says how class folders named by WordNet id were ordered: by name. The clause also names the subsets
    of ImageNet that have the same order.

    Raises:
        DapError: the folders are the classes of a subset of ImageNet that has another order. The user must then choose.
    """
    readings: dict[tuple[str, ...], list[str]] = {}
    for name in imagenet.SUBSETS:
        whole = imagenet.subset(name)
        first = whole[: len(folders)]
        if set(first) == set(folders):
            told = name if len(first) == len(whole) else f"the first {len(first)} of {name}"
            readings.setdefault(first, []).append(told)
    plain = tuple(sorted(folders))
    for order, told in readings.items():
        if order != plain:
            known = [name for name in told if name in imagenet.SUBSETS]
            asked = known[0] if known else " ".join(order) if len(order) <= 20 else "FILE.txt, one a line,"
            raise DapError(
                f"{path} holds the classes of {' or '.join(told)}, whose label order is {some(order)}, but sorted by name "
                f"they are {some(plain)}. Give --classes {asked} for the first, as MinimaxDiffusion labels them, or "
                f"--classes {SORTED} for the second."
            )
    known = "".join(f", which is also the order of {' and '.join(told)}" for told in readings.values())
    return f"class folders sorted by name{known}"


def folders_of(class_names: Sequence[str]) -> list[str]:
    """A safe folder name for each class, in ASCII. The folder has the name of the class where that name is safe.

    No two folders are one on a file system that ignores case or trailing dots.

    Raises:
        DapError: a name holds bytes that are not UTF-8.
    """
    folders: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(class_names):
        check_text(name)
        folder = encoded(name)
        if _alike(folder) in taken:
            folder = f"{folder}~{label}"
        while _alike(folder) in taken:  # a class may really be called a~2
            folder += "~"
        taken.add(_alike(folder))
        folders.append(folder)
    return folders


def _alike(folder: str) -> str:
    """What is equal for two folders that some file system takes for one."""
    return folder.casefold().rstrip(". ")


def check_text(name: str) -> None:
    """Raise `DapError` if the name of a class holds bytes that are not UTF-8, as a folder named in Latin-1 does."""
    if halved(name):
        raise DapError(
            f"The class name {shown(name)!r} holds bytes that are not UTF-8. Rename its folder to UTF-8, for example with "
            "convmv -f latin1 -t utf8 --notest, or give names with --classes."
        )


def check_classes(class_names: Sequence[str], ipc: int) -> None:
    """Check that a set can have these classes, before anything of it is written.

    Raises:
        DapError: a name is empty, repeated, longer than 1,000 characters, or no text; or the set is too large.
    """
    if not 1 <= len(class_names) <= MOST_CLASSES:
        raise DapError(f"A set has 1 to {MOST_CLASSES:,} classes, not {len(class_names)}.")
    if not (ipc >= 1 and len(class_names) * ipc <= MOST_IMAGES):
        raise DapError(
            f"A set has at least 1 image per class and at most {MOST_IMAGES:,} images; {counted(len(class_names), 'class')} "
            f"of {ipc} images are not that. Give another --ipc."
        )
    for name in class_names:
        check_text(name)
        if not 1 <= len(name) <= 1000 or "\0" in name:
            raise DapError(
                f"The class name {shown(name)[:80]!r} is empty, longer than 1,000 characters, or holds a NUL; rename the class."
            )
    if len(set(class_names)) < len(class_names):
        raise DapError(f"The class {Counter(class_names).most_common(1)[0][0]!r} is named twice; name each class once.")


def lines_of(
    path: Path, names: Sequence[str], files: Sequence[Sequence[Path]]
) -> dict[tuple[int, int], dict[str, Any]]:
    """What a manifest would say of the images of a folder that others made, by label and slot.

    Args:
        path: the folder.
        names: the class names in label order.
        files: for each class its images, in the order of their slots.
    """
    return {
        (label, slot): {
            "path": str(file.relative_to(path)),
            "label": label,
            "class_name": names[label],
            "slot": slot,
            "sha256": sha256_of(regular(file)),
        }
        for label, of_class in enumerate(files)
        for slot, file in enumerate(of_class)
    }
