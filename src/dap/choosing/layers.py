"""The layer of `layer: auto`: the one of the best score on real training images, with the scores of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dap.backbones.base import Backbone
from dap.choosing.criteria import CRITERIA, TOLD, scores
from dap.choosing.features import draw, see
from dap.data.bank import RealImages
from dap.refining import time_of

CRITERION = "transfer"
"""The criterion of `layer: auto`; docs/method.md says why."""

TIMES = (0.05, 0.15, 0.3)
"""The noise levels at which layers are compared, as fractions of the schedule. A score is the mean over them."""

MOST = 12
"""How many layers are compared at most. Of a deeper backbone these are spread evenly over its depth."""

GAIN = 0.1
"""A probe that gains a smaller part of what is to be gained over guessing is near chance."""


@dataclass(frozen=True)
class Curve:
    """The scores of the layers.

    Attributes:
        layers: the layers that were compared, in the order of the network.
        scores: by criterion the score of each layer, the mean over `times`. NaN where a criterion says nothing.
        times: the noise levels, as fractions of the schedule.
        images: how many real images were looked at.
        held: how many of them were held out.
        chance: the part of the held-out images that a guess gets right.
    """

    layers: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    times: tuple[float, ...]
    images: int
    held: int
    chance: float

    def best(self, criterion: str = CRITERION) -> str:
        """The layer with the best score; of equal ones the earliest, which is the cheapest. The middle one without scores."""
        known = [score for score in self.scores[criterion] if not math.isnan(score)]
        if not known:
            return self.layers[len(self.layers) // 2]
        return self.layers[self.scores[criterion].index(max(known))]

    def weak(self) -> float | None:
        """The best accuracy of a probe over all layers if this is near chance, and None if it is not or there is no probe.

        It is near chance if it gains less than a tenth of what there is to gain over guessing, or is less than two standard
        errors of a guess above it.
        """
        known = [score for score in self.scores.get("probe", ()) if not math.isnan(score)]
        if not known:
            return None
        guess = self.chance
        needed = guess + max(GAIN * (1 - guess), 2 * math.sqrt(guess * (1 - guess) / self.held))
        return max(known) if max(known) < needed else None


def compared(backbone: Backbone) -> tuple[str, ...]:
    """The layers of a backbone that are compared: all, or `MOST` of them, spread evenly, with the first and the last."""
    layers = backbone.layers
    if len(layers) <= MOST:
        return layers
    return tuple(layers[round(k * (len(layers) - 1) / (MOST - 1))] for k in range(MOST))


def curve(
    backbone: Backbone,
    source: RealImages,
    criteria: Sequence[str] = ("probe", CRITERION),
    *,
    times: Sequence[float] = TIMES,
    pool: Literal["mean", "2x2", "4x4"] = "4x4",
    normalise: Literal["none", "l2", "channel"] = "channel",
    seed: int = 0,
    tell: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Curve:
    """Compare the layers of a backbone on real training images.

    Args:
        backbone: the backbone.
        source: the real training images, at the backbone's size.
        criteria: names of `CRITERIA`.
        times: the noise levels, as fractions of the schedule.
        pool, normalise: as `see` takes them.
        seed: draws the images and their noise.
        tell: is told of the passes of the backbone.

    Raises:
        DapError: a class has too few images.
    """
    drawn, layers, told = draw(source, backbone, seed), compared(backbone), bool(TOLD & set(criteria))
    done, total = 0, len(drawn.labels) * len(times) * (2 if told else 1)

    def passed(images: int) -> None:
        nonlocal done
        done += images
        tell("features of the layers", done, total)

    found: dict[str, list[list[float]]] = {name: [] for name in CRITERIA if name in criteria}
    for fraction in times:
        t = time_of(backbone.schedule, fraction)
        seen = see(backbone, drawn, layers, t, pool=pool, normalise=normalise, told=told, seed=seed, passed=passed)
        for name, row in scores(seen, layers, list(found)).items():
            found[name].append(row)
    means = {
        name: tuple(sum(column) / len(column) for column in zip(*rows, strict=True)) for name, rows in found.items()
    }
    return Curve(layers, means, tuple(times), len(drawn.labels), int(drawn.held.sum()), drawn.chance)
