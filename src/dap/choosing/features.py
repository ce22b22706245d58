"""Features of a few real images in every layer of a backbone, by which layers are compared before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Time
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import generators, normal, seed_of
from dap.data.bank import CHUNK, RealImages
from dap.data.pooling import SMALLEST, pooled

CLASSES, IMAGES = 20, 1000
"""Layers are compared on images of so many classes at most, and on so many images in all."""
EACH = 100
"""The most images of a class. Half of them are held out."""
LEAST = 4
"""The fewest images of a class: two to compare with, and two held out."""


class TooFew(DapError):
    """A class has too few images for a comparison of layers."""


@dataclass(frozen=True)
class Drawn:
    """Some real training images as latents, in two halves that share no image.

    Attributes:
        latents: (n, C, *spatial), clean.
        names: the class of each image.
        labels: (n,), the class of each image as a number from 0 on.
        held: (n,), which images are held out. Of each class it is half, rounded down.
    """

    latents: Float[Tensor, "n c *spatial"]
    names: tuple[str, ...]
    labels: Int[Tensor, " n"]
    held: Bool[Tensor, " n"]

    @property
    def chance(self) -> float:
        """The share of the held-out images that the most frequent class has: what a guess gets right."""
        counts = self.labels[self.held].bincount()
        return (counts.max() / counts.sum()).item()


@dataclass(frozen=True)
class Seen:
    """The features of the drawn images at one noise level, in every layer.

    Attributes:
        drawn: the images.
        blind: by layer the features (n, D) under the null condition, which knows nothing of the class.
        told: by layer the features (n, D) under the condition of each image's class, as guidance compares them. Empty
            where nobody needs them.
    """

    drawn: Drawn
    blind: dict[str, Float[Tensor, "n d"]]
    told: dict[str, Float[Tensor, "n d"]]


def draw(source: RealImages, backbone: Backbone, seed: int = 0) -> Drawn:
    """Draw real images of up to `CLASSES` classes and encode them.

    Args:
        source: the real images, at the backbone's size. Held-out images of a validation are not among them.
        backbone: the backbone that encodes them.
        seed: of the draw. The draw of a class depends on the seed and the class's name alone.

    Raises:
        TooFew: a class has fewer than `LEAST` images.
    """
    names = source.class_names
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed_of(seed, "classes of the choice")))
    each = max(LEAST, min(EACH, IMAGES // min(len(names), CLASSES)))
    latents, labels, held, of = list[Tensor](), list[int](), list[bool](), list[str]()
    for number, label in enumerate(sorted(order[:CLASSES].tolist())):
        if source.count(label) < LEAST:
            raise TooFew(
                f"Class {names[label]!r} has {counted(source.count(label), 'image')}, and a layer is chosen by at least "
                f"{LEAST} of each class; name a layer instead of auto, or add images."
            )
        indices = source.good(label, each, seed_of(seed, names[label], "choice"), least=LEAST)
        latents += vram.in_parts(backbone.encode, CHUNK, source.images(label, indices).to(backbone.device))
        n = len(indices)
        labels += [number] * n
        held += [False] * (n - n // 2) + [True] * (n // 2)
        of += [names[label]] * n
    return Drawn(torch.cat(latents), tuple(of), torch.tensor(labels), torch.tensor(held))


@torch.no_grad()
def see(
    backbone: Backbone,
    drawn: Drawn,
    layers: Sequence[str],
    t: Time,
    *,
    pool: Literal["mean", "2x2", "4x4"] = "4x4",
    normalise: Literal["none", "l2", "channel"] = "channel",
    told: bool = True,
    seed: int = 0,
    passed: Callable[[int], object] = lambda images: None,
) -> Seen:
    """The features of the drawn images at one time, noised as real images are in the bank: each image has its own noise.

    Args:
        backbone: the backbone.
        drawn: the images.
        layers: all layers that are compared. One pass gives the features of all of them.
        t: the time.
        pool: how tokens are pooled. Tokens that are in no square are averaged.
        normalise: as `BankOptions.normalise`; "channel" takes the spread over the images that are not held out.
        told: whether the features under the class's condition are wanted too, which doubles the cost.
        seed: of the noise.
        passed: called with the number of images of each pass.
    """
    alpha, sigma = backbone.schedule.level(t)
    gens = generators([seed_of(seed, "noise of the choice", t, row) for row in range(len(drawn.latents))])
    x = alpha * drawn.latents + sigma * normal(drawn.latents.shape[1:], gens, drawn.latents)

    def taken(condition: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {layer: [] for layer in layers}

        def one(part: Tensor, of: Tensor) -> None:
            for layer, features in backbone.features(part, t, of, layers).items():
                found[layer].append(pooled(features, pool, odd="mean").cpu())
            passed(len(part))

        vram.in_parts(one, CHUNK, x, condition)
        return {layer: _normalised(torch.cat(parts), normalise, ~drawn.held) for layer, parts in found.items()}

    blind = taken(backbone.null(len(x)))
    return Seen(drawn, blind, taken(backbone.condition(drawn.names)) if told else {})


def _normalised(
    features: Float[Tensor, "n cells width"], how: Literal["none", "l2", "channel"], fitted: Bool[Tensor, " n"]
) -> Float[Tensor, "n d"]:
    if how == "channel":
        kept = features[fitted]
        features = (features - kept.mean(0)) / kept.flatten(0, 1).std(0, correction=0).clamp_min(SMALLEST)
    x = features.flatten(1)
    return x / (x.square().sum(1, keepdim=True) + 1e-12).sqrt() if how == "l2" else x
