"""Finds everything by which a distilled set is not what it says: lines, images, files that contradict each other, and
strangers' files."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dap.base.errors import DapError
from dap.base.files import inside, sha256_of
from dap.base.parsing import counted, shown
from dap.data.real.decode import BrokenImage, as_png, pixels, read_file
from dap.data.real.names import some
from dap.data.sets.contents import (
    Classes,
    Manifest,
    Within,
    read_manifest,
    sha256,
)
from dap.data.sets.folders import exported
from dap.data.sets.notes import read, read_note, there

CLUTTER = {"Thumbs.db", "desktop.ini"}
"""Files that systems put into folders by themselves. Hidden files are ignored too."""
MOST = 1000
"""How many problems of one kind are listed."""


@dataclass
class Problems:
    """What is wrong with a set.

    Attributes:
        mendable: what the same `dap distill` mends, because it makes the images again.
        others: what somebody must mend by hand; each says how.
    """

    mendable: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def problems_of(folder: Path, decode: bool = True, first: int | None = None) -> Problems:
    """Every problem of a set of this library, from the files of its folder alone.

    Args:
        folder: the folder of the set.
        decode: whether each image is hashed and decoded. Without this, only the other files and the names of the images
            are looked at.
        first: only so many images of each class must be there and be what their lines say, those of the first slots. A set whose
            making or growth was interrupted has them before it has the others. None: all images.
    """
    found = Problems()
    try:
        classes = read(folder, "classes.json", Classes)
        manifest = read_manifest(folder, classes)
    except DapError as error:
        return Problems(others=[str(error)])
    recipe = _beside(folder, classes, manifest, found.others, first)
    if first is None:
        found.mendable += manifest.problems[:MOST]  # else a line that matters is missing, or its image does not fit it
    else:
        manifest = Manifest({key: line for key, line in manifest.lines.items() if key[1] < first})
    found.mendable += _missing(classes, manifest, first)
    if decode:
        _images(folder, manifest, recipe, found)
    found.others += _strangers(folder, classes)
    return found


def check_none(found: Problems, folder: Path, distilled: bool) -> None:
    """Raise `DapError` if there is a problem. The message names the first five and says what to do.

    Args:
        found: the problems.
        folder: the folder of the set.
        distilled: whether `dap distill` made the set, so that it can make images again.
    """
    if not (problems := [*found.others, *found.mendable]):
        return
    said = "; ".join(problem.rstrip(".") for problem in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    again = "Run the dap distill that made it again to mend it."
    if not distilled:
        again = "Make it again from where it came from."
    count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
    raise DapError(f"{folder} is not whole{count}: {said}{more}." + (f" {again}" if found.mendable else ""))


def problems_of_files(folder: Path, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every problem of images that others made: a file that is gone, has changed, or cannot be decoded."""
    problems = []
    for line in records:
        try:
            data = read_file(folder / line["path"])
            pixels(data)
            if sha256(data) != line["sha256"]:
                problems.append(f"{shown(line['path'])}: its sha256 is not the manifest's")
        except DapError as error:
            problems.append(f"{shown(line['path'])}: {error}")
    return problems


def _missing(classes: Classes, manifest: Manifest, first: int | None) -> list[str]:
    said = []
    for label, name in enumerate(classes.names):
        for slot in range(classes.ipc if first is None else min(first, classes.ipc)):
            if (label, slot) not in manifest.lines:
                said.append(f"missing: {shown(name)}, slot {slot}")
                if len(said) == MOST:
                    return [*said, "missing: and more"]
    return said


def _images(folder: Path, manifest: Manifest, one_size: bool, found: Problems) -> None:
    """Add the problems of the images that the manifest names."""
    within = Within(folder)
    first: tuple[str, tuple[int, int]] | None = None
    for key in sorted(manifest.lines):
        number, line = manifest.lines[key]
        where, which = shown(line["path"]), f"(line {number} of manifest.jsonl)"
        try:
            data = within.read(line["path"])
        except DapError as error:
            found.mendable.append(f"{where}: {str(error).rstrip('.')} {which}")
            continue
        if sha256(data) != line["sha256"]:
            found.mendable.append(f"{where}: its sha256 is not the manifest's {which}")
            continue
        size = struct.unpack(">II", data[16:24]) if data[12:16] == b"IHDR" else None
        wrong = None
        if one_size and size and first and size != first[1]:
            wrong = f"it has {size[0]}x{size[1]} pixels, but {first[0]} has {first[1][0]}x{first[1][1]}"
        else:
            first = first or (size and (where, size))
            try:
                wrong = None if as_png(data)[1] else "it is not an upright 8-bit RGB PNG"
            except BrokenImage as error:
                wrong = f"it cannot be decoded: {error.reason}"
        if wrong:  # although it is the file that the manifest means
            found.others.append(f"{where}: {wrong} {which}; remove this file, and make the image again")


def _beside(folder: Path, classes: Classes, manifest: Manifest, problems: list[str], first: int | None) -> bool:
    """Compare classes.json with the other files of the set. Returns whether the set has a recipe.

    A growth that was killed between two files leaves them with two numbers of images per class. Where only the first slots are
    asked for, this is no problem as long as both numbers hold them.
    """
    found: dict[str, Any] = {}
    for name in ("recipe.json", "inputs.json", "import.json", "env.json"):
        if there(folder, name):
            try:
                found[name] = read_note(folder, name)
            except DapError as error:
                problems.append(str(error))
                found[name] = None
    for name, said in found.items():
        if not isinstance(said, dict):
            continue
        if said.get("classes", classes.names) != classes.names and name != "recipe.json":
            problems.append(
                f"classes.json and {name} name other classes ({_first_difference(classes.names, said['classes'])}); "
                "restore the file that is wrong from a copy"
            )
        ipc = said.get("ipc") or classes.ipc
        if ipc != classes.ipc and (first is None or not isinstance(ipc, int) or min(ipc, classes.ipc) < first):
            problems.append(
                f"classes.json says {counted(classes.ipc, 'image')} per class and {name} {shown(str(said['ipc']))[:40]}; "
                "restore the file that is wrong from a copy"
            )
    lines = [line for _, line in manifest.lines.values()]
    restore = "restore it from a copy, or make the set again in a new folder"
    if not {"recipe.json", "import.json"} & set(found):
        # A set that others made and that was put into this form by hand has neither, and no traces of them.
        if there(folder, "inputs.json") or there(folder, "cost.json") or any("seed" in line for line in lines):
            problems.append(f"recipe.json is missing, so nobody knows how the images were made; {restore}")
        elif any("source_sha256" in line for line in lines):
            problems.append(f"import.json is missing, so nobody knows where the images come from; {restore}")
    environment = found.get("env.json")
    if "inputs.json" not in found and isinstance(environment, dict) and "classes" in environment:
        problems.append(f"inputs.json is missing, so nobody knows what the set was made of; {restore}")
    return "recipe.json" in found


def _first_difference(names: list[str], others: Any) -> str:
    if not isinstance(others, list) or len(names) != len(others):
        count = len(others) if isinstance(others, list) else "no list"
        return f"{len(names)} and {count}"
    label = next(label for label, name in enumerate(names) if name != others[label])
    return f"label {label} is {shown(names[label])[:80]!r} and {shown(str(others[label]))[:80]!r}"


def _strangers(folder: Path, classes: Classes) -> list[str]:
    """The files among the images that the set cannot have made."""
    said: list[str] = []
    own, root = set(classes.folders), folder / "images"
    for place, folders, files in os.walk(root):
        inner = Path(place).relative_to(root).as_posix()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *links]):
            if name.startswith(".") or name in CLUTTER or (inner == "." and name in own):
                continue
            slot = re.fullmatch(r"(\d{5,7})\.png", name)
            if not (inner in own and slot and int(slot[1]) < classes.ipc and name == f"{int(slot[1]):05d}.png"):
                path = f"images/{name}" if inner == "." else f"images/{inner}/{name}"
                said.append(f"{shown(path)}: no line of the manifest names this file; remove it")
                if len(said) == MOST:
                    return said
    return said


def check_unchanged(source: Path) -> None:
    """Check that the files of an export of this library are those that were written, by the sha256 in its export.json.

    Weights and soft labels belong to the images that were exported, and go to others by their names if nobody looks. The card is
    for people and may change, and files that are not there are left to the reader of the layout.

    Args:
        source: what is imported: the folder of the export, or one of its files. Anything else is no export, and passes.

    Raises:
        DapError: a file is another one, or its path leads out of the folder.
    """
    folder = source if source.is_dir() else source.parent
    said = exported(folder).get("files", {})
    names = [name for name in said if name != "README.md" and said[name] is not None and there(folder, name)]
    if not source.is_dir():
        names = [name for name in names if name == source.name]
    changed = [name for name in names if sha256_of(inside(folder, name)) != said[name]]
    if changed:
        raise DapError(
            f"{shown(folder)} is an export, and {len(changed)} of its files are not those that were exported: "
            f"{some(map(shown, changed))}. Fetch or export the set again; or remove export.json to import what is there, without "
            "weights and soft labels."
        )
