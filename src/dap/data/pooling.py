"""How the tokens of a layer are averaged, and the spread of its channels."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SMALLEST = 1e-6
"""The smallest spread of a channel. A channel that never changes would be divided by zero."""


def pooled(
    features: Float[Tensor, "b tokens width"], pool: str, odd: Literal["mean", "none"] = "none"
) -> Float[Tensor, "b cells width"]:
    """Tokens averaged over the cells of a grid, as `BankOptions.pool` says; float32.

    Args:
        features: the features of a layer.
        pool: "none", "mean", or a grid such as "4x4". A layer with fewer tokens keeps them.
        odd: how tokens that are in no square are pooled instead.
    """
    x = features.float()
    side = math.isqrt(x.shape[1])
    if pool not in ("none", "mean") and side**2 != x.shape[1]:
        pool = odd
    if pool == "none":
        return x
    if pool == "mean":
        return x.mean(1, keepdim=True)
    grid = x.transpose(1, 2).unflatten(2, (side, side))
    return adaptive_avg_pool2d(grid, min(int(pool[0]), side)).flatten(2).transpose(1, 2)


def spread(features: Float[Tensor, "n cells width"]) -> tuple[Float[Tensor, "cells width"], Float[Tensor, " width"]]:
    """The mean of features over images, and the standard deviation of each channel over images and cells."""
    std = features.flatten(0, 1).std(0, correction=0).clamp_min(SMALLEST)
    return features.mean(0), std
