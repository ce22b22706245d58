"""Numbers as exact as a device has them."""

from __future__ import annotations

from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """x in float64; in float32 where it lies on Apple's GPU (`mps`), which has no float64."""
    return x.float() if x.device.type == "mps" else x.double()
