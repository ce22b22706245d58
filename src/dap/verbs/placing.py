"""Where results of sets go: into the folder of each set, or into the folder of `--out`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dap.data.sets.distilled import DistilledSet
from dap.evaluation.apart import check_writable, copied_apart, kept_apart


def place(opened: Sequence[DistilledSet], out: Path | None) -> None:
    """Choose where the results of sets go, see `evaluate`, and check before any work that they can be written there.

    Args:
        opened: the sets. `results` of each becomes its folder.
        out: as for `evaluate`.

    Raises:
        DapError: a folder cannot be written.
    """
    own = [(made.path / "classes.json").is_file() for made in opened]
    for made, kept in zip(opened, _folders([made.path for made in opened], own, out), strict=True):
        check_writable(kept, "Give a folder that can be written with --out.")
        if kept != made.path:
            kept_apart(made, kept)


def placed(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """The same for folders with a classes.json whose images nobody has to read.

    Returns:
        For each set the folder of its results. It has all that a report asks of the set.

    Raises:
        DapError: a folder cannot be written.
    """
    found = _folders(paths, [True] * len(paths), out)
    for path, kept in zip(paths, found, strict=True):
        check_writable(kept, "Give a folder that can be written with --out.")
        if kept != path:
            copied_apart(path, kept)
    return found


def _folders(paths: Sequence[Path], own: Sequence[bool], out: Path | None) -> list[Path]:
    """The folder of the results of each set.

    Args:
        paths: the folders of the sets.
        own: for each, whether this library made it. If not, and without `out`, nothing is written there.
        out: as for `evaluate`.
    """
    folder = None
    if out is not None:
        from dap.evaluation.report.page import page_of

        folder = page_of(out).parent
        check_writable(folder, "Give another folder with --out.")
    resolved = [path.resolve() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in resolved])) if resolved else Path()
    found = []
    for given, path, ours in zip(paths, resolved, own, strict=True):
        if folder is None:
            found.append(given if ours else beside_here(path) / "judged" / path.name)
        elif path.is_relative_to(folder.resolve()):
            found.append(given)
        else:
            found.append(folder / "judged" / path.relative_to(shared))
    return found


def beside_here(path: Path) -> Path:
    """The folder in the current one for the results of a folder that others made."""
    return Path(f"{path.resolve().name}-judged")
