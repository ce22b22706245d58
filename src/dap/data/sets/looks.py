"""Says of images that were just made whether they can be meant: images of one colour, images of black and white noise, and
images that are no numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

CONSTANT = "constant: it has one colour only"
"""What `doubts` says of an image of one colour."""
EXTREME = 0.95
"""The least share of values at 0 or 1, after rounding to 8 bits, by which an image counts as saturated."""
MARGIN = 0.05
"""How much larger this share must be than in every real image of the class that was looked at. Line drawings, silhouettes and
pictures on a black ground have such values by nature, so no constant alone can tell."""


def constant(images: Float[Tensor, "b 3 *size"]) -> list[bool]:
    """Whether each image has one colour only, after rounding to 8 bits. An image of one pixel never counts."""
    if images[0, 0].numel() < 2:
        return [False] * len(images)
    flat = _bytes(images).flatten(2)
    return [bool(value) for value in (flat == flat[..., :1]).all(2).all(1)]


def extremes(images: Float[Tensor, "b 3 *size"]) -> list[float]:
    """The share of values of each image that are 0 or 1 after rounding to 8 bits."""
    values = _bytes(images)
    return [float(share) for share in ((values == 0) | (values == 255)).flatten(1).float().mean(1)]


def doubts(
    images: Float[Tensor, "b 3 *size"], reals: Callable[[], Float[Tensor, "n 3 *size"] | None]
) -> list[str | None]:
    """For each image, why it is probably no image of anything, in words; None where nothing is odd.

    Args:
        images: the images of one class, in [0, 1].
        reals: gives some real images of the class, or None where none can be read. It is asked only if an image is odd.
    """
    flat, shares = constant(images), extremes(images)
    if not (any(flat) or max(shares) >= EXTREME):
        return [None] * len(images)
    real = reals()
    usual = [] if real is None else extremes(real)
    if real is not None and any(constant(real)):
        flat = [False] * len(images)
    noisy = [share >= max(EXTREME, max(usual, default=0.0) + MARGIN) for share in shares]
    told = f", of the real images' at most {max(usual):.0%}" if usual else ""
    return [
        CONSTANT if one else f"saturated: {share:.0%} of its values are 0 or 1{told}" if other else None
        for one, other, share in zip(flat, noisy, shares, strict=True)
    ]


def _bytes(images: Tensor) -> Tensor:
    return images.detach().cpu().clamp(0, 1).mul(255).round().byte()


def check_of(backbone: str) -> str:
    """What looks at a backbone. The command finds it by a name, a folder, a file or a hub id; the recipe of an object that a
    Python user gave has the name of its card alone."""
    found = backbone.startswith("starter") or backbone == "BACKBONE" or "/" in backbone or ":" in backbone
    return f"dap check {backbone}" if found or os.path.exists(backbone) else "dap.testing.check_backbone(backbone)"


def advice_for(recipe: Mapping[str, Any] | None) -> str:
    """What to do about images that are no numbers or nonsense: advice that the user of this recipe can follow."""
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
        advice.append(f"look at the weights with {check_of(backbone.get('path', 'BACKBONE'))}")
    elif recipe.get("options"):
        advice.append("the optimisation diverged, so lower the learning rate among the options of the method")
    return " or ".join(advice) or "a pixel must be a number from 0 to 1"
