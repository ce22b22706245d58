"""What a run writes must not lie among images: a later run would read it as one of them, and a set would no longer be whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dap import imagenet
from dap.base.errors import DapError
from dap.base.files import check_output, expanded
from dap.base.parsing import shown
from dap.data.real.clips.finding import locate_clips
from dap.data.real.finding.splits import SPLITS, split_of
from dap.data.real.finding.walking import class_folders, is_hidden
from dap.data.real.layouts import Layout, locate
from dap.data.real.names import composed
from dap.data.real.sources import EMBEDDED, Source


def check_outside(
    out: Path,
    path: str | Path,
    chosen: Mapping[str, str] | None = None,
    frames: int | None = None,
    classes: Sequence[str] | None = None,
    flag: str = "--out",
) -> None:
    """Check that a folder that is written does not lie among the images of a data set, whichever split they belong to.

    A folder beside the folders of the splits is none of their classes, and hidden folders are not read. Which classes the run
    takes does not matter, as a later run may take others.

    Args:
        out: the folder.
        path: the real images, as in a recipe.
        chosen: where the splits lie, by the user's own word.
        frames: as in a recipe.
        classes: classes of which the data must hold some. Else the path leads to something else here, and nothing is checked.
            None: these are the data.
        flag: what the user gave the folder with.

    Raises:
        DapError: it lies there, or among the images of a finished set.
    """
    check_output(out, flag)
    if str(path) != EMBEDDED and _may_lie_in(out, expanded(path), chosen):
        for layout in _layouts(expanded(path), chosen, frames):
            if layout.kind in ("folders", "table") and (classes is None or _holds(layout, classes)):
                check_outside_root(out, layout.root, flag)


def check_outside_source(out: Path, source: Source, flag: str = "--out") -> None:
    """Check that a folder that is written does not lie among the images of the data that a source was opened from. Raises
    `DapError` where it does."""
    if source.opened is None:  # images in memory
        check_output(out, flag)
    else:
        check_outside(out, source.opened[1]["data"], source.opened[1].get("split"), source.frames, flag=flag)


def check_outside_root(out: Path, root: Path, flag: str = "--out") -> None:
    """Check that a folder that is written does not lie in the folder of a split, or in a folder that is there by a link as a
    class. Raises `DapError` where it does.

    A page and its tables may lie beside the class folders, as they are no classes. A cache may not: it makes folders there.
    """
    real, top = out.resolve(), root.resolve()
    for link in _links(root):
        if real.is_relative_to(link.resolve()):
            raise DapError(
                f"{shown(out)} lies in {shown(link.resolve())}, to which the link {shown(link)} leads, so it would be read with "
                f"the images of {shown(link.name)}; give a folder elsewhere with {flag}."
            )
    if not real.is_relative_to(top) or (real == top and flag != "--cache"):
        return
    inner = real.relative_to(top).parts
    if any(map(is_hidden, inner)):
        return
    if not inner:
        where = "holds the folders of classes, and what is written there would be read as some of them"
    elif (top / inner[0]).is_dir():
        where = f"lies in {shown(root)}, where it would be read with the images of {shown(inner[0])}"
    else:
        where = f"lies in {shown(root)}, where it would be read as one of its classes"
    raise DapError(f"{shown(out)} {where}; give a folder elsewhere with {flag}.")


def check_outside_made(
    out: Path, recipe: Mapping[str, Any] | None, classes: Sequence[str], flag: str = "--out"
) -> None:
    """Check that a folder that is written does not lie among the real images that a set was made of, if they are here.

    Args:
        out: the folder.
        recipe: the recipe of the set; None where nobody knows it.
        classes: the classes of the set. Where the path of its data holds none of them, other data have this path by now.
        flag: what the user gave the folder with.

    Raises:
        DapError: it lies there, or among the images of a finished set.
    """
    check_output(out, flag)
    data = (recipe or {}).get("data")
    if isinstance(data, Mapping) and isinstance(path := data.get("path"), str):
        check_outside(out, path, _split_of(data), data.get("frames"), classes, flag)


def _split_of(data: Mapping[str, Any]) -> dict[str, str] | None:
    """The user's word on where splits lie, as a recipe holds it."""
    split = data.get("split")
    return {name: place for name, place in split.items() if place} or None if isinstance(split, Mapping) else None


def _may_lie_in(out: Path, path: Path, chosen: Mapping[str, str] | None) -> bool:
    """Whether a folder lies below the data, below a place that the user named, or below what a link in one of these or in a split
    leads to. This spares looking through data that lie elsewhere."""
    real = out.resolve()
    places = [path, *(path / expanded(place) for place in (chosen or {}).values())]
    try:
        places += [path / name for name in class_folders(path) if split_of(name) is not None]
    except DapError:  # it cannot be read, so nothing is read from it
        return False
    return any(real.is_relative_to(top.resolve()) for place in places for top in (place, *_links(place)))


def _links(folder: Path) -> list[Path]:
    """The links to folders that stand in a folder."""
    try:
        return [folder / name for name in class_folders(folder) if (folder / name).is_symlink()]
    except DapError:
        return []


def _layouts(path: Path, chosen: Mapping[str, str] | None, frames: int | None) -> Iterator[Layout]:
    """The layout of each split that is found: those that a run reads, and those that the user could name."""
    find = locate if frames is None else locate_clips
    asked = [("train", chosen), ("test", chosen), *(("test", {"test": name}) for name in SPLITS)]
    for split, said in asked:
        try:
            yield find(path, split, said)
        except DapError:  # it is told where this split is opened
            continue


def _holds(layout: Layout, classes: Sequence[str]) -> bool:
    """Whether a split holds one of these classes. A class of ImageNet may have its id here and its name there."""
    names = class_folders(layout.root) if layout.table is None else list(layout.table.files)
    here, wanted = list(map(composed, names)), set(classes)
    return bool(wanted & (set(here) | imagenet.places(here).keys() | imagenet.named(classes, here).keys()))
