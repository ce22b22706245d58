"""Begins a distilled set, goes on with one, or lets one grow: what is compared, kept and cleaned before the first image."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dap.base.documents import read_text
from dap.base.errors import DapError
from dap.base.files import dump, ended, inside, roots, sha256_of, write_atomically
from dap.base.parsing import brief, counted, shown
from dap.data.sets.contents import INPUTS, RECIPE, Classes, part_files, read_manifest, sha256
from dap.data.sets.differences import CODE, OBJECTS_RECORD, as_spelt, as_told, differences, tells_less
from dap.data.sets.folders import check_classes, folders_of
from dap.data.sets.notes import read, read_note, there

log = logging.getLogger("dap")

GROWTH = "growth.json"
"""Keeps the sizes that the set had before it grew. The plan of its units is cut at these sizes, so that no unit makes an image
again that is there already, and a resume makes the same units."""

ABANDONED = 3600.0
"""Seconds after which a temporary file belongs to a process that was killed. One that is younger may belong to a process that
makes the same set."""


def check_begun(
    path: Path,
    class_names: Sequence[str],
    recipe: dict[str, Any],
    inputs: dict[str, Any] | None,
    work: str,
) -> dict[str, dict[str, Any]]:
    """Check that a set can begin or go on in a folder. Nothing is written.

    Args:
        path, class_names, recipe, inputs: as for `DistilledSet.create`.
        work: the name of the folder for unfinished work, which may lie there.

    Returns:
        The contents of recipe.json and inputs.json, by the names of the files.

    Raises:
        DapError: the classes cannot be those of a set, the folder holds a set of another recipe or of other inputs, one of
            the two files is damaged, or the folder holds other files.
    """
    ipc = recipe.get("ipc")
    check_classes(class_names, ipc if isinstance(ipc, int) else 1)
    pinned = {"recipe.json": recipe, "inputs.json": {"classes": list(class_names), **(inputs or {})}}
    written = {name: json.loads(dump(value)) for name, value in pinned.items()}
    left = (".lock", work, *pinned)  # a run killed before its first image leaves only these
    foreign = [p for p in path.glob("*") if p.name not in left and not p.name.startswith(".tmp-")]
    for p in path.glob("*"):
        if p.is_symlink() and not _leads_inside(p, path):
            raise DapError(f"{p} is a link out of the set, and nothing is written through it; remove the link.")
    if foreign and not there(path, "recipe.json"):
        raise DapError(f"{path} is not empty and holds no recipe.json; choose a new folder with --out.")
    for (name, value), model in zip(written.items(), (RECIPE, INPUTS), strict=True):
        changed = (
            differences(old := read(path, name, model), _as_known(as_spelt(value, old), old))
            if there(path, name)
            else []
        )
        if changed:
            of_data = any(line.startswith("data: ") for line in changed)
            why = (
                "The fingerprint of the data differs if an image or a label has changed, and for a set begun by a version "
                "that knew images by their names and sizes alone. " * of_data
            )
            of_own = any(key == "objects" or key.startswith(CODE) for key in old)
            why += _OWN * (of_own and any(line.startswith(("weights: ", "classifier: ")) for line in changed))
            named = name == "recipe.json" and not (inputs or {}).get("objects")
            raise _another(path, changed, why, named)
    return pinned


def _leads_inside(link: Path, folder: Path) -> bool:
    try:
        return any(link.resolve().is_relative_to(root) for root in roots(folder))
    except (RuntimeError, OSError):  # it leads back to itself
        return False


_OWN = (
    "The fingerprints of a backbone and of a classifier of your own differ if what they run or hold has changed, and for a set "
    "begun by a version that knew them by their files and weights alone. "
)


def _another(path: Path, changed: Sequence[str], why: str = "", named: bool = True) -> DapError:
    """The error where the set in a folder was made by another recipe. `named`: the recipe that is wanted holds no objects."""
    command = shlex.join(["dap", "distill", shown(path / "recipe.json"), "--out", shown(path)])
    # A recipe does not hold the objects that its set was made with.
    again = f", as {command} does" if named and not _objects_of(path) else ""
    return DapError(
        f"{path} holds a set made by another recipe. What changed: {'; '.join(changed)}. {why}Use what it was begun with{again}, "
        "or another --out."
    )


def check_stated(path: Path, given: Mapping[str, Any]) -> None:
    """Check, before any work, that what a user gave does not contradict the recipe of the set that is in a folder.

    What nobody gave, and what the old recipe does not say, is not compared here; `check_begun` compares whole recipes.

    Args:
        path: the folder, which may be new.
        given: nested values of a recipe that stay as they are when it is resolved, `ipc` among them.

    Raises:
        DapError: the set was made by another recipe, has more images per class, or its recipe.json is damaged.
    """
    if not there(path, "recipe.json"):
        return
    old, new = _shared(read(path, "recipe.json", RECIPE), json.loads(dump(dict(given))))
    before, ipc = old.pop("ipc", None), new.pop("ipc", None)
    if changed := differences(old, as_spelt(new, old)):
        raise _another(path, changed)
    if isinstance(before, int) and isinstance(ipc, int) and before > ipc:
        raise _shrinks(path, before, ipc, given)


def _shared(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two nested mappings without the fields that one of them lacks. A section that a method has no use for is null."""
    pairs = dict[str, tuple[Any, Any]]()
    for key in [key for key in old if key in new]:
        sections = [isinstance(values[key], Mapping) for values in (old, new)]
        if all(sections):
            pairs[key] = _shared(old[key], new[key])
        elif not any(sections):
            pairs[key] = old[key], new[key]
    return {key: one for key, (one, _) in pairs.items()}, {key: other for key, (_, other) in pairs.items()}


def _shrinks(path: Path, before: int, ipc: int, recipe: Mapping[str, Any]) -> DapError:
    """The error where a set has more images per class than the recipe wants."""
    clips = ((recipe.get("data") or {}).get("frames")) is not None
    advice = (
        "Give another --out."  # an import reads images alone
        if clips
        else f"Take {ipc} of them into a new folder: dap import {path} --ipc {ipc} --out DIR."
    )
    what = counted(before, "clip" if clips else "image")
    return DapError(f"{path} holds a set of {what} per class, and a set does not shrink. {advice}")


def _objects_of(path: Path) -> Mapping[str, Any]:
    """The record of the objects that the set in a folder was made with."""
    found = (read_note(path, "inputs.json") or {}).get("objects")
    return found if isinstance(found, Mapping) else {}


def _as_known(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a file, without what an earlier version could not say of objects. Then nobody knows it of the old set."""
    if not isinstance(old.get("objects"), Mapping) or not tells_less(old):
        return dict(new)
    objects = {
        role: as_told(said, old["objects"][role]) if role in old["objects"] else said
        for role, said in new.get("objects", {}).items()
    }
    rest = {key: value for key, value in new.items() if key not in ("objects", OBJECTS_RECORD)}
    # Earlier versions noted the files of the objects' classes a second time, and they may have changed elsewhere.
    noted = {key: value for key, value in old.items() if key.startswith(CODE) and key not in new}
    noted |= {OBJECTS_RECORD: old[OBJECTS_RECORD]} if OBJECTS_RECORD in old else {}
    return {**rest, **noted, "objects": objects} if "objects" in new else rest


def begun_with(path: Path, recipe: Mapping[str, Any]) -> int | None:
    """The number of images per class of the set in a folder, if its recipe is the same in all else; None otherwise.

    Raises:
        DapError: recipe.json is damaged.
    """
    if not there(path, "recipe.json"):
        return None
    old = read(path, "recipe.json", RECIPE)
    new = as_spelt(json.loads(dump(dict(recipe))), old)
    ipc, free = old.get("ipc"), {"ipc"}
    if all(said.get("block") == said.get("ipc") for said in (old, new)):
        free.add("block")  # a block that is all images of a class follows their number
    same = not any(old.get(key) != new.get(key) for key in {*old, *new} - free)
    return ipc if same and isinstance(ipc, int) else None


def cuts(path: Path, recipe: Mapping[str, Any], *, can_grow: bool) -> tuple[int, ...]:
    """Check whether the set in a folder can have the recipe's number of images per class. Nothing is written.

    Args:
        path: the folder, which may be new.
        recipe: the values of the resolved recipe.
        can_grow: whether the method promises that the first images of a class stay the same when there are more.

    Returns:
        The sizes at which the plan of the units is cut, in order; () for a set that has never grown.

    Raises:
        DapError: the set has more images per class than the recipe, or it has fewer and the method cannot grow it.
    """
    ipc, before = recipe["ipc"], begun_with(path, recipe)
    sizes = {size for size in (read_note(path, GROWTH) or {}).get("ipc", []) if size < ipc}
    if before is None or before == ipc:
        return tuple(sorted(sizes))
    if before > ipc:
        raise _shrinks(path, before, ipc, recipe)
    if not can_grow:
        raise DapError(
            f"{path} holds a set of {counted(before, 'image')} per class. The method {recipe['method']} makes other images "
            f"for {ipc} per class, so this set cannot grow. Give another --out."
        )
    return tuple(sorted({*sizes, before}))


def grow(path: Path, recipe: Mapping[str, Any], sizes: tuple[int, ...], command: str | None = None) -> None:
    """Write that the set in a folder has the recipe's number of images per class from now on.

    The caller must hold `alone.locked(path)`. The sizes are written first: a kill between the two files leaves a set of the
    smaller size, which ignores what its growth.json says of larger ones.

    Args:
        path, recipe: as for `cuts`.
        sizes: what `cuts` returned.
        command: the shell command that lets the set grow. It is put under the commands of before.
    """
    if not sizes or begun_with(path, recipe) in (None, recipe["ipc"]):
        return
    log.info("%s grows from %d to %d images per class", path, sizes[-1], recipe["ipc"])
    write_atomically(path / GROWTH, dump({"ipc": list(sizes)}))
    said = read_text(path / "command.txt") if command and there(path, "command.txt") else ""
    if command and command not in said.splitlines():
        write_atomically(path / "command.txt", f"{said}{command}\n".encode())
    write_atomically(path / "recipe.json", dump(dict(recipe)))


def classes_of(path: Path, class_names: Sequence[str], ipc: int) -> Classes:
    """The contents of classes.json. A set that is there already keeps its folders, whatever rule made their names."""
    if there(path, "classes.json"):
        try:
            before = read(path, "classes.json", Classes)
        except DapError:
            pass  # the classes come from the real images, so the damaged file is written anew
        else:
            if before.names == list(class_names):
                return before.model_copy(update={"ipc": ipc})
    return Classes(names=list(class_names), folders=folders_of(class_names), ipc=ipc)


def begin(path: Path, class_names: Sequence[str], ipc: int, pinned: Mapping[str, Any], shared: bool = False) -> None:
    """Write the files that every set has before its first image, and clean up after a process that was killed.

    Args:
        path, class_names, ipc: as for `DistilledSet.create`.
        pinned: what `check_begun` returned.
        shared: whether other processes may be making the same set. Nothing of theirs is then cleaned up.
    """
    check_classes(class_names, ipc)
    for name, value in pinned.items():
        if not there(path, name):
            write_atomically(path / name, dump(value))
    classes = classes_of(path, class_names, ipc)
    write_atomically(path / "classes.json", dump(classes.model_dump()))
    for left in (*path.glob(".tmp-*"), *path.glob("images/*/.tmp-*")):
        with suppress(FileNotFoundError):
            if not shared or time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    if not shared:
        if part_files(path):
            gather(path)
        keep_usable_lines(path, classes)
    elif not there(path, "manifest.jsonl"):  # from its first moment, others know the folder as a set
        write_atomically(path / "manifest.jsonl", b"")


def text_of(line: Mapping[str, Any]) -> str:
    """A line of the manifest as it is written."""
    return json.dumps(line) + "\n"


def gather(path: Path) -> None:
    """Put all lines of a manifest, and of its parts, into manifest.jsonl in (label, slot) order, and remove the parts.

    The caller must hold `alone.locked(path)`. A process that is killed here leaves the old file or the new one, and a line may
    then stand in a part too. Nothing is written if the file has these lines already.
    """
    parts = part_files(path)
    lines = read_manifest(path, read(path, "classes.json", Classes)).lines
    data = "".join(text_of(lines[key][1]) for key in sorted(lines)).encode()
    if not there(path, "manifest.jsonl") or sha256_of(inside(path, "manifest.jsonl")) != sha256(data):
        write_atomically(path / "manifest.jsonl", data)
    for part in parts:
        part.unlink(missing_ok=True)


def keep_usable_lines(path: Path, classes: Classes) -> None:
    """Write the manifest anew if a line of it cannot be used, such as the half line of a killed writer.

    The image of such a line is made again.

    Raises:
        DapError: the manifest is no regular file of the set.
    """
    manifest = read_manifest(path, classes)
    if not there(path, "manifest.jsonl"):
        return
    if manifest.problems or not ended(inside(path, "manifest.jsonl")):
        lines = [text_of(line) for _, line in sorted(manifest.lines.values(), key=lambda pair: pair[0])]
        write_atomically(path / "manifest.jsonl", "".join(lines).encode())


def place_for(folder: Path, relative: str) -> Path:
    """The path of an image that is to be written into a set.

    Raises:
        DapError: the path leads out of the set by a link, or it is a folder.
    """
    path = folder / relative
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DapError(f"{path.parent} leads out of the set; put a folder in the place of this link.")
    if path.is_dir() and not path.is_symlink():
        raise DapError(f"{path} is a folder, where an image belongs; remove it.")
    return path


def frames_of(recipe: Mapping[str, Any] | None) -> int | None:
    """How many frames the clips of a set have, as its recipe says; None for a set of images.

    Raises:
        DapError: the recipe says something that is no number of frames.
    """
    data = (recipe or {}).get("data")
    said = data.get("frames") if isinstance(data, Mapping) else None
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int) or not 1 <= said <= 4096:
        raise DapError(
            f"recipe.json says frames: {brief(said)}, which is no number of frames of a clip; restore it from a copy."
        )
    return said
