"""Folders whose names can be read in two ways: as splits or as classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.advice import into_train
from dap.data.real.finding.facts import Layout
from dap.data.real.finding.made import check_no_sets
from dap.data.real.finding.splits import ORDER, Split, is_weak, split_of
from dap.data.real.finding.walking import class_folders, loose_images
from dap.data.real.names import select, some

LOOKED_AT = 50
"""How many class folders are looked at for splits inside them where none has any."""


def check_words(path: Path, splits: Mapping[Split, Path], others: Sequence[str], classes: Sequence[set[str]]) -> None:
    """Check that folders called as splits are no classes among others.

    Args:
        path: the folder that holds all of them.
        splits: the folder of each split.
        others: the folders beside them that hold data.
        classes: the classes in each folder of a split; an empty set where its images are not sorted.

    Raises:
        DapError: they may be classes, because other folders lie beside them and there is one split alone, or no two splits share
            a class, or their names are words such as te and tr, which languages have too.
    """
    if not others:
        return
    strong = not all(is_weak(folder.name) for folder in splits.values())
    if strong and len(splits) > 1 and (not all(classes) or any(classes[0] & other for other in classes[1:])):
        return
    given = {kind: next((splits[said] for said in ORDER[kind] if said in splits), None) for kind in ORDER}
    lead = [] if "train" in splits else ["train=FOLDER"]
    told = lead + [f"{kind}={shown(folder.name)}" for kind, folder in given.items() if folder is not None]
    folders = [folder for folder in given.values() if folder is not None]
    inner = class_folders(folders[0])
    then = f"{into_train(path, others)}, or " if lead else ""  # a test split alone is half of a data set
    what = f"with the classes {some(map(shown, inner), 4)}" if inner else "whose images are not sorted into classes yet"
    named = " and ".join(f"{shown(folder.name)}/" for folder in folders)
    raise DapError(
        f"{shown(path)} can be read in two ways, because {shown(others[0])}/ lies beside {shown(folders[0].name)}/: as the "
        f"split{'s' * (len(folders) > 1)} {named} {what} (then {then}give --split {','.join(told)}), or as the classes "
        f"{as_classes(splits, others)} (then give --split train=.)"
    )


def as_classes(splits: Mapping[Split, Path], others: Sequence[str]) -> str:
    return some(map(shown, sorted([*others, *(folder.name for folder in splits.values())])), 5)


def check_outside(layouts: Mapping[str, Layout], classes: Sequence[str] | None) -> None:
    """Check that no split lies in a class folder of another one, whose class its images would be.

    Args:
        layouts: where each split lies.
        classes: the classes that are read, as `names.select` takes them.

    Raises:
        DapError: one does.
    """
    for (split, inner), (other, outer) in permutations(layouts.items(), 2):
        if outer.kind != "folders" or outer.inner is not None or inner.kind not in ("folders", "table"):
            continue
        folders, place = class_folders(outer.root), inner.root.resolve()
        try:
            read = [folders[at] for at in select(folders, classes, shown(outer.root))[1]]
        except DapError:
            continue  # it is told where this split is opened
        if name := next((name for name in read if place.is_relative_to((outer.root / name).resolve())), None):
            raise DapError(
                f"{shown(inner.root)}, the {split} split, lies in {shown(outer.root)}, the {other} split, and its images would "
                f"be of the class {shown(name)} there. Move it out of {shown(outer.root)} and give its new place with --split "
                f"{split}=FOLDER, or name the classes without {shown(name)} with --classes"
            )


def inside(path: Path, folders: Sequence[str]) -> set[Split]:
    """The splits that all class folders hold, as cat/train and cat/test; none where they hold their images themselves.

    Args:
        path: the folder that holds the class folders.
        folders: the class folders.

    Raises:
        DapError: several class folders, or half of them, hold folders for training and for test images, and others do not.
    """
    both: set[Split | None] = {"train", "validation", "test"}
    holding: list[str] = []
    odd: list[str] = []
    for place, name in enumerate(folders):
        inner = class_folders(path / name)
        said = {split_of(one) for one in inner}
        if "train" in said and said & {"validation", "test"}:
            holding.append(name)
        if "train" not in said or None in said or loose_images(path / name):
            odd.append(name)
        both &= said
        if not holding and len(odd) > place >= LOOKED_AT:
            return set()  # there may be thousands of classes
    if not odd:
        return {one for one in both if one is not None}
    if not holding or (len(holding) < 2 and 2 * len(holding) < len(folders)):
        return set()
    held = [f"{entry}/" for entry in class_folders(path / odd[0])] + ["images"] * bool(loose_images(path / odd[0]))
    raise DapError(
        f"{shown(path)} can be read in two ways: its class folders hold splits, as {shown(holding[0])}/ does, or all of their "
        f"images are of one split. The first does not fit {some([f'{shown(name)}/' for name in odd])}, as {shown(odd[0])}/ holds "
        f"{some(map(shown, held), 4) or 'nothing'}: leave nothing but folders of splits in each class folder, one for training "
        f"images among them. For the second give --split train=. If {shown(path / holding[0])} alone is the data set, give that "
        "folder."
    )


def check_reading(path: Path, found: dict[str, list[Path]], class_names: str | Sequence[str] | None) -> None:
    """Check that the folders in `path` are classes, and no layer above the classes.

    Raises:
        DapError: the user named no classes, and the folders are distilled sets, have the names of splits, or are one folder of
            folders.
    """
    if class_names is not None:
        return
    check_no_sets(path, list(found))
    deep = [folder for folder, files in found.items() if all(len(f.relative_to(path).parts) > 2 for f in files)]
    inner = {folder: sorted({f.relative_to(path).parts[1] for f in found[folder]}) for folder in deep}
    wrong = [folder for folder in inner if split_of(folder) is not None or (len(found) == 1 and len(inner[folder]) > 1)]
    if not wrong:
        return
    first, names = wrong[0], some(map(shown, found), 5)
    raise DapError(
        f"{shown(path)} holds {names}, and {shown(first)} holds the folders {some(map(shown, inner[first]))}. If these are "
        f"the classes, give {shown(path / first)}; if {names} {'is the class' if len(found) == 1 else 'are the classes'}, "
        f"say so with --classes {' '.join(map(shown, found))}."
    )
