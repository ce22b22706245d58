"""ImageNet's thousand classes: WordNet id, index in the sorted ILSVRC 2012 list (DiT's label), and name; and its subsets.

The names are WordNet's synonyms of each id. Two ids can share them ("crane" is a bird and a machine), ids never do.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files

SUBSETS = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k")
"""Named class lists. ImageWoof, ImageIDC and ImageNet-100 are in the order of MinimaxDiffusion's files, which is not sorted."""


@functools.cache
def subset(name: str) -> tuple[str, ...]:
    """The WordNet ids of a subset, in label order."""
    text = (files("dap") / "data" / "subsets" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line.split("\t")[0] for line in text.splitlines())


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
