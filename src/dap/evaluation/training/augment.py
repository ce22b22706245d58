"""Differentiable siamese augmentation (DSA; Zhao & Bilen, ICML 2021).

A batch gets one operation. Each image has its own parameters, or all images share the same parameters.

The operations act on normalised images. Pixels that are moved in from outside, or cut out, are 0, which is the mean of
the data set. All random numbers come from the given generator and are drawn on its device. So a generator on the CPU
gives the same augmentation on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]

FLIP = 0.5
"""Probability of a mirror image."""
SCALE = 1.2
"""Height and width are each zoomed by their own factor. The inverse of the factor is uniform in [1 / SCALE, SCALE]."""
ROTATE = 15.0
"""Largest angle of a rotation in either direction, in degrees."""
CROP = 1 / 8
"""Largest shift in each direction, as a part of the side of the image."""
CUTOUT = 1 / 2
"""Side of the square that is cut out, as a part of the side of the image."""
BRIGHTNESS = 1.0
"""The number added to the pixels is uniform in an interval around 0. This is the width of the interval."""
SATURATION = 2.0
"""Largest factor by which the distance of an image from its grey image is multiplied; the smallest is 0."""
CONTRAST = 0.5
"""Smallest factor by which the distance of an image from its mean is multiplied; the largest is 1 more."""


def dsa(
    images: Tensor, generator: Generator, operations: tuple[Operation, ...] | None = None, *, siamese: bool = False
) -> Tensor:
    """Augment a batch by one operation, which is drawn from `operations`.

    Args:
        images: (n, c, h, w), normalised.
        generator: draws the operation and its parameters.
        operations: the operations to draw from; default: all.
        siamese: if True, all images share one draw of the parameters. Then two batches of different sizes are augmented
            alike when their generators have the same state.

    Returns:
        (n, c, h, w), differentiable in `images`.
    """
    names = operations or OPERATIONS
    choice = int(torch.randint(len(names), (1,), generator=generator, device=generator.device))
    return APPLY[names[choice]](images, generator, 1 if siamese else len(images))


def color(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Change the brightness, then the saturation, then the contrast."""
    images = images + (_uniform(n, images, generator) - 0.5) * BRIGHTNESS
    images = _stretch(images, images.mean(1, keepdim=True), _uniform(n, images, generator) * SATURATION)
    return _stretch(images, images.mean((1, 2, 3), keepdim=True), _uniform(n, images, generator) + CONTRAST)


def crop(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Shift by whole pixels. Zeros fill the pixels that become empty."""
    h, w = images.shape[2:]
    rows = _shifted(h, _integers(-_part(h, CROP), _part(h, CROP), n, images, generator))
    columns = _shifted(w, _integers(-_part(w, CROP), _part(w, CROP), n, images, generator))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Set a square to 0. The centre of the square is uniform over the image, so part of the square may lie outside."""
    rows, columns = (_covered(side, _part(side, CUTOUT), n, images, generator) for side in images.shape[2:])
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def flip(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Mirror left and right."""
    return torch.where(_uniform(n, images, generator) < FLIP, images.flip(3), images)


def scale(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Zoom height and width independently. Zeros fill the pixels that become empty."""
    zoom = torch.rand(n, 2, generator=generator, device=generator.device).to(images)
    return _warp(images, torch.diag_embed(zoom * (SCALE - 1 / SCALE) + 1 / SCALE))


def rotate(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Rotate about the centre. Zeros fill the pixels that become empty."""
    angle = (_uniform(n, images, generator).flatten() * 2 - 1) * math.radians(ROTATE)
    cos, sin = angle.cos(), angle.sin()
    return _warp(images, torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1))


APPLY: dict[Operation, Callable[[Tensor, Generator, int], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
OPERATIONS: tuple[Operation, ...] = tuple(APPLY)


def _uniform(n: int, like: Tensor, generator: Generator) -> Tensor:
    """Uniform random numbers (n, 1, 1, 1) in [0, 1)."""
    return torch.rand(n, 1, 1, 1, generator=generator, device=generator.device).to(like)


def _integers(low: int, high: int, n: int, like: Tensor, generator: Generator) -> Tensor:
    """Random integers (n, 1) from low to high, both included."""
    return torch.randint(low, high + 1, (n, 1), generator=generator, device=generator.device).to(like.device)


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _stretch(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return (images - centre) * factor + centre


def _shifted(side: int, shift: Tensor) -> Tensor:
    """The source (n, side) of each pixel after a shift: an index into a line of pixels with one zero at either end."""
    return (torch.arange(side, device=shift.device) + shift + 1).clamp(0, side + 1)


def _covered(side: int, length: int, n: int, like: Tensor, generator: Generator) -> Tensor:
    """Whether a line of this length around a random centre covers each pixel, (n, side)."""
    start = _integers(0, side - length % 2, n, like, generator) - length // 2
    pixels = torch.arange(side, device=like.device)
    return (pixels >= start) & (pixels < start + length)


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample the images at matrices (n, 2, 2) times the output's coordinates in [-1, 1]."""
    theta = F.pad(matrices, (0, 1)).expand(len(images), -1, -1)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)
