"""Says of images that were just made whether they can be meant: images of one colour, images of black and white noise, and
images that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

EXTREME = 0.95
"""The least share of values at 0 or 1, after rounding to 8 bits, by which an image counts as saturated."""
MARGIN = 0.05
"""How much larger than in every real image of its class that was looked at this share must be."""


def constant(images: Float[Tensor, "b 3 h w"]) -> list[bool]:
    """Whether each image has one colour only, after rounding to 8 bits. An image of one pixel never counts."""
    if images[0, 0].numel() < 2:
        return [False] * len(images)
    flat = _bytes(images).flatten(2)
    return [bool(value) for value in (flat == flat[..., :1]).all(2).all(1)]


def extremes(images: Float[Tensor, "b 3 h w"]) -> list[float]:
    """The share of values of each image that are 0 or 1 after rounding to 8 bits."""
    values = _bytes(images)
    return [float(share) for share in ((values == 0) | (values == 255)).flatten(1).float().mean(1)]


def saturated(images: Float[Tensor, "b 3 h w"], reals: Float[Tensor, "n 3 h w"]) -> list[bool]:
    """Whether nearly all values of each image are 0 or 1, as after a divergence, although this is not so in real images.

    Line drawings and silhouettes have such values by nature, so the real images of the class decide: an image counts only
    if its share is larger than theirs by `MARGIN`.
    """
    usual = max(extremes(reals), default=0.0)
    return [share >= max(EXTREME, usual + MARGIN) for share in extremes(images)]


def _bytes(images: Tensor) -> Tensor:
    return images.detach().cpu().clamp(0, 1).mul(255).round().byte()


def cause_of_no_numbers(recipe: Mapping[str, Any] | None) -> str:
    """What to do about pixels that are not finite, by the recipe of the set: advice that this recipe can follow."""
    recipe = recipe or {}
    backbone, guidance, own = (recipe.get(name) or {} for name in ("backbone", "guidance", "own_guidance"))
    advice = []
    if guidance.get("scale"):
        advice.append("lower the guidance scale (--scale)")
    if own:
        advice.append("look at the guidance of your own (--guidance)")
    if backbone and backbone.get("dtype", "float32") != "float32":
        advice.append(
            "use --dtype float32, because its autoencoder or network leaves the range of " + backbone["dtype"]
        )
    elif backbone:
        advice.append(f"look at the weights with dap check {backbone.get('path', 'BACKBONE')}")
    elif recipe.get("options"):
        advice.append("the optimisation diverged, so lower the learning rate among the options of the method")
    return " or ".join(advice) or "a pixel must be a number from 0 to 1"
