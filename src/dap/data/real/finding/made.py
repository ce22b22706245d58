"""Distilled sets where something else is looked for: they and the folders above them are no classes, and what is written into
their folders would be taken for their own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.walking import class_folders, is_folder, is_hidden, is_image
from dap.data.real.names import select, some

DEPTH = 3
"""How deep sets are looked for: those of a comparison lie two folders deep in it, and it may lie in a folder of runs."""
MOST = 2000
"""How many folders are looked at."""
RESULTS = "of.json"
"""The file in a folder of results that says which set they are of. Few of the images of the set lie there, or none."""


def is_made(folder: Path) -> bool:
    """Whether a folder is a distilled set, or holds the results of one."""
    own = any((folder / name).is_file() for name in ("recipe.json", "import.json", "manifest.jsonl", RESULTS))
    return own and (folder / "classes.json").is_file()


def sets_below(folder: Path) -> list[Path]:
    """The folders with a classes.json in a folder, at any depth, sorted: sets and results of sets. Hidden folders are left out,
    in which a killed command may have left half of a set."""
    files = sorted(folder.glob("**/classes.json"))
    return [file.parent for file in files if not any(map(is_hidden, file.relative_to(folder).parts))]


def made_in(folder: Path, names: Sequence[str] | None = None) -> list[str]:
    """The distilled sets and results of sets below a folder, as paths relative to it.

    Args:
        folder: the folder.
        names: the folders in it that are looked at; None: all.
    """
    found = list[str]()
    pending = deque((name, 1) for name in (class_folders(folder) if names is None else names))
    for _ in range(MOST):
        if not pending:
            break
        name, depth = pending.popleft()
        if is_made(folder / name):
            found.append(name)
        elif depth < DEPTH:
            pending += [(f"{name}/{inner}", depth + 1) for inner in _folders(folder / name)]
    return found


def _folders(folder: Path) -> list[str]:
    """The folders in a folder, sorted; none as soon as it holds an image, so that no class is listed whole."""
    found = list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image(entry) and not is_folder(entry):
                    return []
                if is_folder(entry) and not is_hidden(entry.name):
                    found.append(entry.name)
    except OSError:  # whoever reads it says so
        return []
    return sorted(found)


def give_one(paths: Sequence[str]) -> str:
    """What to do where one set was wanted."""
    return f"Give {paths[0]}." if len(paths) == 1 else f"Give one of them, such as {paths[0]}."


def give_images(paths: Sequence[str]) -> str:
    """What to do where real images were wanted."""
    return f"Give a folder of real images, or the images of a set: {paths[0]}/images."


def check_no_sets(
    folder: Path, names: Sequence[str] | None = None, advice: Callable[[Sequence[str]], str] = give_one
) -> None:
    """Check that a folder, whose folders are to be read as classes, holds no distilled sets.

    Args:
        folder: the folder.
        names: the folders in it that are classes; None: all.
        advice: makes of the paths of the sets a sentence that says what to give.

    Raises:
        DapError: it holds some, or results of some.
    """
    found = made_in(folder, names)
    sets = [name for name in found if not (folder / name / RESULTS).is_file()]
    if sets:
        told = f"the distilled set{'s' * (len(sets) > 1)} {some(map(shown, sets), 5)}"
        raise DapError(f"{shown(folder)} holds {told}. {advice([shown(folder / name) for name in sets])}")
    if found:
        raise DapError(
            f"{shown(folder)} holds results of distilled sets, such as {shown(found[0])}, and not their images. Give the folder "
            "of the set."
        )


def real_classes(folder: Path, known: Sequence[str], wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The chosen classes of a folder of real images, and their folders.

    Args:
        folder: the folder. It is no distilled set, and the folders that are chosen hold none.
        known: the folders in it that may be classes.
        wanted: as for `names.select`.

    Raises:
        DapError: the folder is a set, the folders are sets or hold some, or as for `names.select`.
    """
    if is_made(folder):
        raise DapError(f"{shown(folder)} is a distilled set. {give_images([shown(folder)])}")
    try:
        names, places = select(known, wanted, shown(folder))
    except DapError:
        check_no_sets(folder, known, give_images)  # then no class of it is known
        raise
    chosen = [known[place] for place in places]
    check_no_sets(folder, chosen, give_images)
    return names, chosen


def check_no_other(out: Path, own: Sequence[Path] = ()) -> None:
    """Check that a report, results or a grid do not go into the folder of a set that they are not of.

    Args:
        out: the folder that is written; it need not be there.
        own: the folders of the sets that they are of.

    Raises:
        DapError: they would.
    """
    if is_made(out) and not any(one.resolve() == out.resolve() for one in own):
        raise DapError(
            f"{shown(out)} is the folder of another distilled set, and what is written there would be taken for its own. Give "
            "another folder with --out."
        )
