"""The thousand classes of ImageNet and its subsets, and the search for a class by its name.

Each class has a WordNet id, an index in the sorted list of ILSVRC 2012 (DiT uses the index as its label), and names. The
names are the synonyms that WordNet gives for the id. Two ids can share a name ("crane" is a bird and a machine); no two
classes share an id. `lookup` and `find` take class names to labels in any list of names. This is the place where the
labels of the data and the labels of a backbone meet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from dap.base.errors import DapError

SUBSETS = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k")
"""Named lists of classes. ImageWoof, ImageIDC and ImageNet-100 have the unsorted order of MinimaxDiffusion's files."""


@functools.cache
def subset(name: str) -> tuple[str, ...]:
    """The WordNet ids of a subset, in label order."""
    text = (files("dap") / "data" / "subsets" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line.split("\t")[0] for line in text.splitlines())


def expand(classes: str | Sequence[str] | None) -> Sequence[str] | None:
    """The WordNet ids of a subset that is given by its name; a list of class names is returned unchanged.

    Args:
        classes: the name of a subset, a list that holds only this name, a list of class names, or None.

    Raises:
        DapError: the text is not the name of a subset.
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
    """Whether the text looks like a WordNet id: the letter n and eight digits."""
    return re.fullmatch(r"n\d{8}", text) is not None


def name_of(text: str) -> str:
    """The names of one of the thousand WordNet ids; any other text is returned unchanged."""
    return names().get(text, text)


def spoken(text: str) -> str:
    """The one name of a class that a prompt says.

    Of comma-separated synonyms this is the first. For a WordNet id it is a synonym that no other id has.

    Raises:
        DapError: the text is a WordNet id, but not one of the thousand.
    """
    if is_wnid(text):
        if text not in names():
            raise DapError(
                f"{text} is none of ImageNet's thousand classes, so it has no name to make a prompt of; "
                "rename the class to what its images show."
            )
        return _told_apart()[text]
    return text.split(",")[0].strip().replace("_", " ")


@functools.cache
def _told_apart() -> dict[str, str]:
    """For each WordNet id the first of its synonyms that no earlier id has taken."""
    taken: dict[str, str] = {}
    for wnid, listed in names().items():
        synonyms = [name.strip() for name in listed.split(",")]
        # The two cranes have no other name: the bird comes first in the list, so the other is the machine.
        free = [name for name in (*synonyms, f"{synonyms[0]} machine") if name not in taken]
        taken[free[0]] = wnid
    return {wnid: name for name, wnid in taken.items()}


def lookup(class_names: Sequence[str]) -> dict[str, list[int]]:
    """The table in which `find` looks up the labels of a name.

    A name leads to the labels that have exactly this name. Where there is none, the name leads to the labels that have it
    among their comma-separated synonyms. The values are lists because two labels of ImageNet can share a name (crane, the
    bird and the machine). The keys keep both spellings because two names can differ in a capital letter alone (cardigan,
    the garment, and Cardigan, the dog). Where the list is the thousand classes of ImageNet (see `is_imagenet`), its labels
    are also found by WordNet id and by the names that this module uses.
    """
    found = _by_name([name.lower() for name in class_names]) | _by_name(class_names)
    return {**_own(), **found, **_by_id()} if is_imagenet(class_names) else found


def find(name: str, labels: Mapping[str, list[int]]) -> list[int]:
    """The labels of a name in the table of `lookup`.

    The name is tried as it is spelt, then in lower case, then with blanks in place of underscores.
    """
    spellings = (name, name.lower(), name.replace("_", " "), name.replace("_", " ").lower())
    return next((labels[spelling] for spelling in spellings if spelling in labels), [])


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are the thousand classes of ImageNet in sorted order, given by WordNet ids or by names.

    Lists that people use differ in the wording of a few names, so nine matching names in ten are enough. The order decides.
    """
    if len(class_names) != len(names()):
        return False
    same = 0
    for mine, (wnid, theirs) in zip(class_names, names().items(), strict=True):
        same += bool(_synonyms(mine.lower()) & {wnid, *_synonyms(theirs.lower())})
    return same >= 900


def places(known: Sequence[str]) -> dict[str, int | None]:
    """For each WordNet id the position in `known` of the class with its name.

    The position is None where names cannot decide: a name belongs to several ids, or several of `known` belong to one id.
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


def named(wanted: Sequence[str], known: Sequence[str]) -> dict[str, int | None]:
    """For each name of a class of ImageNet that is asked for the position in `known` of the WordNet id of this class.

    A name whose id is not in `known` is left out. The position is None where the name belongs to several ids.
    """
    ids, own = tuple(names()), _own()
    at = {name: place for place, name in enumerate(known) if is_wnid(name)}
    found: dict[str, int | None] = {}
    for name in wanted if at else ():
        here = [ids[label] for label in find(name, own)]
        if any(wnid in at for wnid in here):
            found[name] = at[here[0]] if len(here) == 1 else None
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


def columns(wanted: Sequence[str], name: str) -> tuple[int, ...]:
    """Where ImageNet's thousand classes hold the classes asked for, by WordNet id or by name.

    Args:
        wanted: the classes.
        name: the classifier that knows the thousand classes, for the message.

    Raises:
        DapError: a class is none of the thousand, or its name does not name one class alone.
    """
    labels = lookup(list(names().values()))
    places: list[int] = []
    for one in wanted:
        found = find(one, labels)
        if not found:
            raise DapError(
                f"{name} knows ImageNet's thousand classes, and {one!r} is none of them; "
                "dap train-teacher makes one that knows yours."
            )
        if len(found) > 1 or found[0] in places:
            raise DapError(f"{one!r} does not name one class of ImageNet alone; name the classes by WordNet id.")
        places += found
    return tuple(places)
