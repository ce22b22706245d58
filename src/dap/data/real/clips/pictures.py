"""One way to read and write what a set holds, whether these are images or clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dap.data.real.clips.moving import clip_pixels, decode_clip, encode_clip
from dap.data.real.decode import Fit, decode, encode_png, pixels


def shape_of(frames: int | None, size: int) -> tuple[int, ...]:
    """The shape of a square image, (3, size, size), or of a clip, (3, frames, size, size)."""
    return (3, size, size) if frames is None else (3, frames, size, size)


def sized(data: bytes | Path, frames: int | None, size: int, fit: Fit = "crop") -> Float[Tensor, "3 *frames size size"]:
    """An image (3, size, size) in [0, 1], or a clip (3, frames, size, size) where `frames` is a number.

    Raises:
        BrokenImage: see `decode` and `decode_clip`.
    """
    return decode(data, size, fit) if frames is None else decode_clip(data, frames, size, fit)


def whole(data: bytes | Path, frames: int | None) -> UInt8[Tensor, "3 *frames h w"]:
    """An image (3, h, w) of bytes at its own size, or a clip (3, frames, h, w) where `frames` is a number.

    Raises:
        BrokenImage: see `pixels` and `clip_pixels`.
    """
    found = pixels(data) if frames is None else clip_pixels(data, frames)
    return torch.from_numpy(np.moveaxis(found, -1, 0))


def encoded(image: Float[Tensor, "3 *frames h w"]) -> bytes:
    """The bytes of a PNG of an image (3, h, w) in [0, 1], or of an animated PNG of a clip (3, frames, h, w)."""
    values = image.detach().cpu().clamp(0, 1).mul(255).round().byte()
    found = np.moveaxis(values.numpy(), 0, -1)
    return encode_png(np.ascontiguousarray(found)) if found.ndim == 3 else encode_clip(found)


def stacked(pictures: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """What `whole` gave, as one tensor: in [0, 1] for a floating type, else whole numbers from 0 to 255."""
    images = torch.stack(list(pictures))
    if not dtype.is_floating_point:
        return images
    if (
        images.ndim == 4
    ):  # decoded images lie channels last, and the kernels of a network round by the layout of their input
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(dtype) / 255
