"""ImageNet's thousand classes: WordNet id, index in the sorted ILSVRC 2012 list (DiT's label), and name; and its subsets.

The names are WordNet's synonyms of each id. Two ids can share them ("crane" is a bird and a machine), ids never do. Here is
also how class names find labels in any list of names, `lookup` and `find`, for that is where the label spaces cross.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from dap.base.errors import DapError

SUBSETS = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k")
"""Named class lists. ImageWoof, ImageIDC and ImageNet-100 are in the order of MinimaxDiffusion's files, which is not sorted."""


@functools.cache
def subset(name: str) -> tuple[str, ...]:
    """The WordNet ids of a subset, in label order."""
    text = (files("dap") / "data" / "subsets" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line.split("\t")[0] for line in text.splitlines())


def expand(classes: str | Sequence[str] | None) -> Sequence[str] | None:
    """The WordNet ids of a subset where its name, alone or as the only item, stands for them; other lists as they are.

    Raises:
        DapError: a text that names no subset.
    """
    alone = classes[0] if classes and not isinstance(classes, str) and len(classes) == 1 else classes
    if isinstance(alone, str) and alone in SUBSETS:
        return subset(alone)
    if isinstance(classes, str):
        raise DapError(
            f"`classes` must be a list of class names or the name of a subset ({', '.join(SUBSETS)}), not {classes!r}"
        )
    return classes


@functools.cache
def names() -> dict[str, str]:
    """WordNet id -> comma-separated names, in index order."""
    text = (files("dap") / "data" / "subsets" / "imagenet1k.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


@functools.cache
def indices() -> dict[str, int]:
    """WordNet id -> index in the sorted list of a thousand."""
    return {wnid: index for index, wnid in enumerate(names())}


def is_wnid(text: str) -> bool:
    """Whether it looks like a WordNet id, n and eight digits."""
    return re.fullmatch(r"n\d{8}", text) is not None


def name_of(text: str) -> str:
    """The names behind a WordNet id of the thousand; any other text as it is."""
    return names().get(text, text)


def spoken(text: str) -> str:
    """One name to say in a prompt: the first of comma-separated synonyms, and for a WordNet id one that no other id has.

    Raises:
        DapError: a WordNet id that is none of the thousand.
    """
    if is_wnid(text):
        if text not in names():
            raise DapError(f"{text} is none of ImageNet's thousand classes, so it has no name to make a prompt of.")
        return _told_apart()[text]
    return text.split(",")[0].strip().replace("_", " ")


@functools.cache
def _told_apart() -> dict[str, str]:
    """WordNet id -> its first synonym that is not the first of an earlier id."""
    taken: dict[str, str] = {}
    for wnid, listed in names().items():
        synonyms = [name.strip() for name in listed.split(",")]
        # The two cranes have no other name: the bird comes first in the list, so the other is the machine.
        free = [name for name in (*synonyms, f"{synonyms[0]} machine") if name not in taken]
        taken[free[0]] = wnid
    return {wnid: name for name, wnid in taken.items()}


def lookup(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Labels by name, for `find`: those of that full name, else those that have it among comma-separated synonyms.

    ImageNet has names that two labels share (crane, the bird and the machine), hence the lists, and names that differ in a
    capital letter alone (cardigan and Cardigan, the garment and the dog), hence both spellings as keys. A list of its
    thousand classes, recognised by `is_imagenet`, is also found by WordNet id and by the wording of the names here.
    """
    found = _by_name([name.lower() for name in class_names]) | _by_name(class_names)
    return {**_own(), **found, **_by_id()} if is_imagenet(class_names) else found


def find(name: str, labels: Mapping[str, list[int]]) -> list[int]:
    """The labels of a name in a `lookup`: as it is spelt, else in any case, else with blanks for underscores."""
    spellings = (name, name.lower(), name.replace("_", " "), name.replace("_", " ").lower())
    return next((labels[spelling] for spelling in spellings if spelling in labels), [])


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are ImageNet's thousand classes in sorted order, by WordNet id or by some name of nearly all of them.

    Lists in use differ in the wording of a few names, so nine in ten is enough; the order is what matters.
    """
    if len(class_names) != len(names()):
        return False
    same = 0
    for mine, (wnid, theirs) in zip(class_names, names().items(), strict=True):
        same += bool(_synonyms(mine.lower()) & {wnid, *_synonyms(theirs.lower())})
    return same >= 900


def places(known: Sequence[str]) -> dict[str, int | None]:
    """WordNet id -> position of the class of `known` that goes by its name; None where names alone do not decide.

    They do not where a name belongs to several ids, or several of `known` to one id.
    """
    if is_imagenet(known):
        return dict(indices())
    ids, own = tuple(names()), {**_own(), **_by_id()}
    found: dict[str, int | None] = {}
    for place, name in enumerate(known):
        labels = find(name, own)
        for wnid in (ids[label] for label in labels):
            found[wnid] = place if len(labels) == 1 and wnid not in found else None
    return found


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")}


def _by_name(class_names: Sequence[str]) -> dict[str, list[int]]:
    full: dict[str, list[int]] = {}
    part: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        full.setdefault(name, []).append(label)
        for synonym in _synonyms(name):
            part.setdefault(synonym, []).append(label)
    return part | full


@functools.cache
def _own() -> dict[str, list[int]]:
    mine = list(names().values())
    return _by_name([name.lower() for name in mine]) | _by_name(mine)


def _by_id() -> dict[str, list[int]]:
    return {wnid: [label] for wnid, label in indices().items()}
