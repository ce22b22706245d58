"""Where results of sets go: into the folder of each set, or into the folder of `--out`."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dap.base.claims import Claims
from dap.base.documents import read_lines
from dap.base.errors import DapError
from dap.base.files import check_writable, dump, inside, write_atomically
from dap.base.parsing import shown
from dap.data.real.base import Source
from dap.data.real.finding.made import RESULTS as OF
from dap.data.real.finding.made import check_no_other, sets_below
from dap.data.real.finding.outputs import check_outside, check_outside_made, check_outside_root
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import made_by
from dap.data.sets.notes import Open, as_read, read_note, there
from dap.evaluation.apart import copied_apart, kept_apart
from dap.recipe import Data, Recipe

JUDGED = "judged"
"""The folder in that of `--out` in which results that are kept apart from their sets lie."""


def place(opened: Sequence[DistilledSet], out: Path | None, real: Data | None = None) -> None:
    """Choose where the results of sets go, see `evaluate`, and check before any work that they can be written there.

    Args:
        opened: the sets. `results` of each becomes its folder.
        out: as for `evaluate`.
        real: as for `check_results`.

    Raises:
        DapError: a folder cannot be written, lies among images, or is that of another set.
    """
    check_results(opened, out, real)
    for made, kept in zip(opened, _folders_of(opened, out, write=True), strict=True):
        check_writable(kept, "Give a folder that can be written with --out.")
        if kept != made.path:
            kept_apart(made, kept)


def places(opened: Sequence[DistilledSet], out: Path | None) -> list[Path]:
    """For each set the folder in which `place` with the same arguments would put its results. Nothing is written, so the folder
    may not be there."""
    return _folders_of(opened, out, write=False)


def check_results(opened: Sequence[DistilledSet], out: Path | None, real: Data | None = None) -> None:
    """Check that neither results nor the page go among the images of these sets, or among real images.

    Args:
        opened: the sets.
        out: as for `evaluate`.
        real: the real images that the user names. What the recipes of the sets name counts too.

    Raises:
        DapError: they would, or they go into the folder of another set.
    """
    check_no_other_set(opened, out)
    for made in opened:
        _check_result(made.path, made_by(made), made.class_names, out, real)


def check_page(paths: Sequence[Path], page: Path) -> None:
    """Check that a page on sets in these folders does not go among their images, among the real images that their recipes name,
    or into the folder of another set.

    Raises:
        DapError: it would.
    """
    check_no_other(page.parent, paths)
    for path in paths:
        _check_folder(page.parent, path, *_said_in(path), None)


def real_of(data: Any, split: Any = None) -> Data | None:
    """The real images that a user names, or the place that an opened source was opened from; None where there is none."""
    if isinstance(data, Source) and data.opened is not None:
        data, split = data.opened[1]["data"], data.opened[1].get("split")
    return Recipe.parse({"data": {"path": str(data), "split": split}}).data if isinstance(data, str | Path) else None


def check_no_other_set(opened: Sequence[DistilledSet], out: Path | None) -> None:
    """Check that the folder of the page is not that of a set which is none of these. Raises `DapError` where it is."""
    if out is not None:
        check_no_other(_folder_of(out), [made.path for made in opened])


def _check_result(
    path: Path, recipe: Mapping[str, Any] | None, names: Sequence[str], out: Path | None, real: Data | None
) -> None:
    """Check the page of a set and the folder of its results, where this is not that of the set."""
    folder = None if out is None else _folder_of(out)
    if folder is not None:
        _check_folder(folder, path, recipe, names, real)
    if not _stays(path, there(path, "classes.json"), folder):
        _check_folder((folder or beside_here(path)) / JUDGED, path, recipe, names, real)


def _check_folder(
    folder: Path, path: Path, recipe: Mapping[str, Any] | None, names: Sequence[str], real: Data | None
) -> None:
    if folder.resolve() == path.resolve():
        return  # a set may lie anywhere: what is written beside its images harms nobody
    check_outside_made(folder, recipe, names)
    if not there(path, "classes.json"):  # the class folders of others
        check_outside_root(folder, path)
    if real is not None:
        check_outside(folder, real.path, None if real.split is None else real.split.given(), real.frames)


def _said_in(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The recipe and the classes of a set, as far as its files say them. What is damaged is told by those who need it."""
    try:
        recipe, classes = read_note(path, "recipe.json"), read_note(path, "classes.json")
    except DapError:
        return None, []
    names = classes.get("names") if isinstance(classes, dict) else None
    return recipe, [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _folder_of(out: Path) -> Path:
    """The folder of the page, in which results are kept too."""
    from dap.evaluation.report.page import page_of

    return page_of(out).parent


def _stays(path: Path, ours: bool, folder: Path | None) -> bool:
    """Whether the results of a set are kept in its own folder.

    Args:
        path: the folder of the set.
        ours: whether this library made it.
        folder: the folder of the page; None where the user named none.
    """
    return path.resolve().is_relative_to(folder.resolve()) if folder is not None else ours


def placed(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """The same for folders with a classes.json whose images nobody has to read.

    Returns:
        For each set the folder of its results. It has all that a report asks of the set.

    Raises:
        DapError: a folder cannot be written, or is that of another set.
    """
    if out is not None:
        check_no_other(_folder_of(out), paths)
    for path in paths:
        _check_result(path, *_said_in(path), out, None)
    images = [lambda path=path: _images_in(path) for path in paths]
    found = _folders(paths, [True] * len(paths), images, out, write=True)
    for path, kept in zip(paths, found, strict=True):
        check_writable(kept, "Give a folder that can be written with --out.")
        if kept != path:
            copied_apart(path, kept)
    return found


def _folders_of(opened: Sequence[DistilledSet], out: Path | None, *, write: bool) -> list[Path]:
    """The folder of the results of each opened set, see `_folders`."""
    own = [(made.path / "classes.json").is_file() for made in opened]
    images = [lambda made=made: _hashes(made.records) for made in opened]
    return _folders([made.path for made in opened], own, images, out, write=write)


def _folders(
    paths: Sequence[Path],
    own: Sequence[bool],
    images: Sequence[Callable[[], list[str]]],
    out: Path | None,
    *,
    write: bool,
) -> list[Path]:
    """The folder of the results of each set.

    Args:
        paths: the folders of the sets.
        own: for each, whether this library made it. If not, and without `out`, nothing is written there.
        images: for each, a function that gives the hashes of its images.
        out: as for `evaluate`.
        write: whether the folders are noted as those of these sets.
    """
    folder = None if out is None else _folder_of(out)
    if folder is not None and write:
        check_writable(folder, "Give another folder with --out.")
    results = functools.cache(sets_below)  # a long walk
    found = []
    for given, ours, hashes in zip(paths, own, images, strict=True):
        if _stays(given, ours, folder):
            found.append(given)
        else:
            judged = (folder or beside_here(given)) / JUDGED
            found.append(_results_of(given, hashes, judged, functools.partial(results, judged), write))
    return found


def _results_of(
    path: Path, images: Callable[[], list[str]], judged: Path, known: Callable[[], list[Path]], write: bool
) -> Path:
    """The folder for the results of one set, which depends on no other set of the same call.

    It has the name of the set, and for a cell of a grid also that of the folder above it, which says what was varied. Where
    another set has the results of this name, digits that belong to the path of the set are added. A file says which set the
    results are of. Results without this file are those of an earlier version. They are the set's if they are of the same
    images, and so are the results of a set of this name that was moved.

    Args:
        path: the folder of the set, or one of its results.
        images: gives the hashes of its images.
        judged: the folder in which results are kept.
        known: gives the folders of results that are in it.
        write: whether the folder is made, and noted as that of this set.
    """
    of, resolved = _set_of(path) or shown(path.resolve()), path.resolve()
    name, above = resolved.name, resolved.parent.name if re.fullmatch(r"seed\d+", resolved.name) else ""
    short, long = judged / above / name, judged / above / f"{name}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
    if write:
        check_writable(judged, "Give a folder that can be written with --out.")
    with Claims(judged).wait(".placing") if write else nullcontext():  # two processes may judge two sets of one name
        kept = next((one for one in (short, long) if _set_of(one) == of), None)
        kept = kept or next((one for one in known() if _set_of(one) == of), None)
        if kept is None and (hashes := images()):
            alike = [one for one in known() if one.name == name or one.name.startswith(f"{name}-")]
            free = (one for one in alike if not os.path.exists(_set_of(one) or ""))
            kept = next((one for one in free if _images_in(one) == hashes), None)
        kept = kept or (long if there(short, OF) or there(short, "classes.json") else short)
        if write:
            write_atomically(kept / OF, dump({"set": of}))
    return kept


def _set_of(folder: Path) -> str | None:
    """The set that a folder has the results of; None for a folder that says nothing of it."""
    try:
        said = read_note(folder, OF)
    except DapError:  # damaged, so it says nothing
        return None
    found = said.get("set") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


class _Image(Open, frozen=True):
    """A line of `manifest.jsonl`, as far as results are told apart by it."""

    sha256: str


def _images_in(folder: Path) -> list[str]:
    """The hashes of the images that the manifest in a folder lists; [] where it cannot be read."""
    try:
        return _hashes(
            [line.value for line in read_lines(inside(folder, "manifest.jsonl"), as_read(_Image)) if line.value]
        )
    except DapError:
        return []


def _hashes(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(str(line["sha256"]) for line in lines)


def beside_here(path: Path) -> Path:
    """The folder in the current one for the results of a folder that others made."""
    return Path(f"{path.resolve().name}-judged")
