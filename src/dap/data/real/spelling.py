"""One name in two spellings: with composed letters (NFC, as most programs write) or with single accents (NFD, as a Mac
writes file names)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from unicodedata import normalize


def respelt(wanted: Iterable[str], found: Mapping[str, int | None]) -> dict[str, int | None]:
    """The places of names, with those of `wanted` that `found` has in another spelling. A name with an exact match keeps its
    place. The place is None where several names of `found` differ only in the spelling."""
    places = dict(found)
    if all(name in found for name in wanted):
        return places
    composed: dict[str, int | None] = {}
    for name, place in found.items():
        same = normalize("NFC", name)
        composed[same] = None if same in composed else place
    strangers = [name for name in wanted if name not in found]
    return places | {name: composed[same] for name in strangers if (same := normalize("NFC", name)) in composed}
