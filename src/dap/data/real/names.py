"""Names of classes: which classes are taken, in which order, and how two lists of names differ."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from urllib.parse import quote, unquote

import numpy as np

from dap import imagenet
from dap.base.errors import DapError
from dap.base.parsing import shown

MOST_CLASSES = 1_000_000
"""Unnamed labels above this are identifiers of something else, not classes."""


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). Two names that look the same are then the same: macOS writes the letter é
    as e and an accent, other systems as one letter."""
    return unicodedata.normalize("NFC", name)


def encoded(name: str) -> str:
    """The name that a set gives to the folder of a class: in ASCII, and safe on every system."""
    safe = quote(name, safe=" ()_,'&+").replace(".", "%2E" if name.lstrip(" ").startswith(".") else ".")
    return safe[:120].strip() or "%20"


def decoded(folder: str) -> str:
    """The class whose folder has this name in a set. A name that no set gives to the folder of another class stays as it is."""
    try:
        name = unquote(folder, errors="strict")
        return composed(name) if encoded(name) == folder else folder
    except UnicodeError:  # other letters than those of UTF-8
        return folder


def select(known: Sequence[str], wanted: Sequence[str] | None, where: str) -> tuple[list[str], list[int]]:
    """The chosen classes, by the names in `wanted`, and their positions in `known`. None stands for all classes.

    Names are compared and returned in their composed form, see `composed`. A WordNet id in `wanted` also finds a class that
    `known` lists by its ImageNet name, where only one class has that name. An ImageNet name in `wanted` finds a class that
    `known` lists by its WordNet id, where only one of the thousand classes has that name. The name of a folder of a set finds the
    class, and the class finds the folder, see `decoded`.

    Raises:
        DapError: a class is unknown (the message lists the known classes, close matches first), a class is repeated, a
            name or a WordNet id could mean several classes, or `wanted` is empty.
    """
    if isinstance(wanted, str) or (wanted is not None and not wanted):
        raise DapError(f"`classes` must be a list of class names of {where}, not {wanted!r}")
    known, wanted = list(map(composed, known)), None if wanted is None else list(map(composed, wanted))
    for names in (known, wanted or ()):
        if repeated := [name for name, times in Counter(names).items() if times > 1]:
            raise DapError(f"{where}: {some(repeated)} named more than once among the classes; name each class once")
    if wanted is None:
        return known, list(range(len(known)))
    found: dict[str, int | None] = {name: place for place, name in enumerate(known)}
    if others := [name for name in wanted if name not in found]:
        by_id = imagenet.places(known) if any(map(imagenet.is_wnid, others)) else {}
        found = by_id | imagenet.named(others, known) | found
        decodable = {decoded(name): place for name, place in found.items()}
        found = {name: decodable[decoded(name)] for name in others if decoded(name) in decodable} | found
    unknown = [name for name in wanted if name not in found]
    if unknown:
        lowered = {other.lower(): other for other in known}
        close = [lowered[match] for match in get_close_matches(str(unknown[0]).lower(), lowered, n=3)]
        others = [other for other in known if other not in close]
        raise DapError(
            f"unknown class{'es' if len(unknown) > 1 else ''} {some(map(_told, unknown), 5)} in {where}; "
            f"known classes: {some(map(_plain, [*close, *others]), 20)}{_numbers(unknown, known)}{_listed(unknown)}"
            f"{glued(unknown)}"
        )
    positions = [place for name in wanted if (place := found[name]) is not None]
    if unsure := [name for name in wanted if found[name] is None]:
        raise DapError(f"{where} has no one class for {some(map(_told, unsure))}; name its classes by WordNet id")
    times = Counter(positions)
    if twice := [name for name, place in zip(wanted, positions, strict=True) if times[place] > 1]:
        raise DapError(f"{where}: {some(map(_told, twice))} are names of one class; name each class once")
    return list(wanted), positions


def glued(unknown: Sequence[str]) -> str:
    """A hint for names that somebody separated by commas, as in --classes cat,dog: "" where no name holds a comma."""
    if not any("," in name for name in unknown):
        return ""
    parts = [part.strip() for name in unknown for part in name.split(",")]
    return f". Classes are separated by spaces and not by commas, as in --classes {' '.join(filter(None, parts[:3]))}"


def _numbers(unknown: Sequence[str], known: Sequence[str]) -> str:
    """A hint for names such as 001, which YAML reads as numbers and thus without their zeros (and 010 as 8)."""
    if all(name.isdigit() for name in unknown) and any(name.isdigit() and name[0] == "0" for name in known):
        return '. YAML reads 001 and 010 as the numbers 1 and 8; quote such names, as in classes: ["001", "010"]'
    return ""


def _listed(unknown: Sequence[str]) -> str:
    """A hint for the name of a subset beside other classes, of a subset that nobody knows, and for the file of a list."""
    first = next((name for name in unknown if name in imagenet.SUBSETS), None)
    if first is not None:
        return f". {first} is a list of classes and stands alone, as in --classes {first}"
    if any(name.lower().startswith("image") for name in unknown):
        return f". Lists of classes with a name are {', '.join(imagenet.SUBSETS)}"
    if any(name.lower().endswith((".txt", ".json", ".yaml", ".csv")) for name in unknown):
        return ". A list of classes is given as its names, or in a recipe file as data: {classes: [...]}"
    return ""


def _plain(name: str) -> str:
    """A known class as a message lists it: a WordNet id stands with its ImageNet name."""
    told = imagenet.name_of(name)
    return f"{name} ({told.split(',')[0]})" if told != name else name


def _told(name: str) -> str:
    """A class name as a message shows it. A WordNet id stands with its ImageNet name."""
    told = imagenet.name_of(name)  # the name itself where it is no WordNet id
    return f"{name!r} ({told.split(',')[0]})" if told != name else repr(name)


def by_class(labels: np.ndarray, names: Sequence[str] | None, where: str) -> tuple[list[str], list[np.ndarray]]:
    """The class names for numeric labels (n,), and for each class its rows in ascending order. By default the names are
    the numbers of the labels.

    Raises:
        DapError: a label is negative or has no name.
    """
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    known = [str(number) for number in range(min(high, MOST_CLASSES) + 1)] if names is None else list(names)
    if len(labels) and high < 0:
        raise DapError(
            f"{where} has no labels: all of them are below 0, as in a test split whose labels are kept secret"
        )
    if low < 0 or high >= len(known):
        raise DapError(f"{where} has labels from {low} to {high}, but classes only for 0 to {len(known) - 1}")
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(known) + 1))
    return known, [order[start:stop] for start, stop in pairwise(bounds)]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def drawn(name: str, label: int) -> str:
    """A class name as a picture shows it, whose font has the letters of English alone: "Häuser" is "Hauser", and a name in
    another script is the number of the class, as in "class 3"."""
    parts = unicodedata.normalize("NFKD", shown(name))
    plain = "".join(letter for letter in parts if not unicodedata.combining(letter)).replace("ß", "ss")
    return plain if plain.isascii() else f"class {label}"
