"""What the blocks of a denoiser give: the part that belongs to the image, as tokens, with or without a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def stream(output: Any) -> Tensor:
    """The part of a block's output that belongs to the image.

    A block gives a tensor, or (hidden, skips) in a U-Net, or (text, image) in a transformer of both.
    """
    if isinstance(output, Tensor):
        return output
    first, second = output[0], output[1]
    return second if isinstance(second, Tensor) else first


def tokens(output: Any) -> Tensor:
    """A block's output as (B, tokens, width)."""
    x = stream(output)
    return x.flatten(2).transpose(1, 2) if x.ndim > 3 else x


def detached(output: Any) -> Any:
    """The same output without its graph."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, (tuple, list)):
        return type(output)(detached(part) for part in output)
    return output
