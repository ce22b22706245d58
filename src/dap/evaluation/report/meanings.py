"""What each measure means, and which direction is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dap.evaluation.taken import own_measures


@dataclass(frozen=True)
class Meaning:
    """The meaning of a measure. `better` is "higher" or "lower", or empty where neither direction is better by
    itself."""

    better: str
    text: str

    @property
    def short(self) -> str:
        """The text, followed by the direction that is better."""
        return f"{self.text}; {self.better} is better" if self.better else self.text


MEANINGS = {
    "representativeness": Meaning("lower", "mean distance to the real images of the class"),
    "diversity": Meaning("higher", "mean distance between a class's distilled images"),
    "coverage": Meaning("higher", "share of real images with a distilled one nearby"),
    "label_agreement": Meaning("higher", "share of images whose label a network trained on real images predicts"),
    "zero_shot_agreement": Meaning("higher", "share of images whose label the backbone itself predicts (dap classify)"),
    "nearest": Meaning("", "mean distance to the nearest real image; close to 0 means copies"),
    "precision": Meaning("higher", "share of distilled images that lie among real ones"),
    "recall": Meaning("higher", "share of real images that lie among distilled ones"),
    "density": Meaning("higher", "how many real neighbourhoods a distilled image lies in, relative to a real one"),
    "mmd2": Meaning("lower", "squared maximum mean discrepancy to the real images, unbiased, so it may be below 0"),
    "minimax_representativeness": Meaning(
        "higher", "cosine to the nearest real image, of the worst image (ManifoldGD)"
    ),
    "minimax_diversity": Meaning("higher", "1 − largest cosine between two images of a class (ManifoldGD)"),
    "mgd3_representativeness": Meaning("lower", "mean distance to the 50 nearest real images (MGD3)"),
    "mgd3_diversity": Meaning("higher", "smallest distance between two images of a class (MGD3)"),
    "representativeness_rbf": Meaning("lower", "mean D_K to the real images of the class under an RBF kernel"),
    "kid": Meaning("lower", "KID of the whole set: mean squared MMD over subsets"),
    "kid_std": Meaning("", "spread of KID over its subsets"),
    "frechet": Meaning("lower", "Fréchet distance of the whole set, where there are more images than features"),
}
"""The measures that a report knows, in the order of their columns in the report."""


def meaning(name: str) -> Meaning:
    """The meaning of a measure. The text for an unknown measure is "not described here"."""
    return MEANINGS.get(name, Meaning("", "not described here"))


def own_meanings(measures: Iterable[Mapping[str, Any]]) -> dict[str, Meaning]:
    """The meaning of each number that the user's own measures wrote into these contents of `measures.json`."""
    found = {}
    for name, one in (pair for of_set in measures for pair in own_measures(of_set).items()):
        better = one.get("better") if isinstance(one.get("better"), Mapping) else {}
        text = f"{one['text']} ({name})" if one.get("text") else f"measured by {name}"
        for number in one["values"]:
            way = str((better or {}).get(number, ""))
            found[number] = Meaning(way if way in ("higher", "lower") else "", text)
    return found


def ordered(names: Iterable[str]) -> list[str]:
    """The names of measures in order: the known ones as in `MEANINGS`, then all others by name."""
    known = list(MEANINGS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def noun_of(nouns: Iterable[str]) -> str:
    """What several sets are made of: "clip" where all are made of clips, else "image"."""
    return "clip" if set(nouns) == {"clip"} else "image"


def worded(text: str, noun: str) -> str:
    """A text of ours that speaks of images, with another noun in their place, such as "clip"."""
    found = re.sub(r"\b[Aa]n (?=image)", lambda a: a[0][0] + " ", text) if noun != "image" else text
    return found.replace("image", noun).replace("Image", noun.capitalize())
