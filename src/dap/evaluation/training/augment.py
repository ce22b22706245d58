"""Differentiable siamese augmentation (DSA; Zhao & Bilen, ICML 2021): one operation a batch, parameters per image or shared.

The operations act on normalised images, so what is moved in from outside, or cut out, is 0: the data set's mean. All
randomness comes from the generator given; it is drawn on the generator's device, so a CPU generator gives the same
augmentation on every device.
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
"""Height and width are each zoomed by a factor whose inverse is uniform in [1 / SCALE, SCALE]."""
ROTATE = 15.0
"""Largest angle, in degrees, either way."""
CROP = 1 / 8
"""Largest shift, as a part of the side, in each direction."""
CUTOUT = 1 / 2
"""Side of the square cut out, as a part of the image's."""
BRIGHTNESS = 1.0
"""Width of the interval around 0 of what is added."""
SATURATION = 2.0
"""Largest factor on the distance from the grey image; the smallest is 0."""
CONTRAST = 0.5
"""Smallest factor on the distance from the image's mean; the largest is one more."""


def dsa(
    images: Tensor, generator: Generator, operations: tuple[Operation, ...] | None = None, *, siamese: bool = False
) -> Tensor:
    """Augment a batch by one operation, drawn from `operations` (all by default).

    Args:
        images: (n, c, h, w), normalised.
        generator: source of the choice and of each image's own parameters.
        operations: what to draw from.
        siamese: one draw of parameters for all images, so that batches of any sizes are augmented alike by generators of
            the same state.

    Returns:
        (n, c, h, w), differentiable in `images`.
    """
    names = operations or OPERATIONS
    choice = int(torch.randint(len(names), (1,), generator=generator, device=generator.device))
    return APPLY[names[choice]](images, generator, 1 if siamese else len(images))


def color(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Brightness, then saturation, then contrast."""
    images = images + (_uniform(n, images, generator) - 0.5) * BRIGHTNESS
    images = _stretch(images, images.mean(1, keepdim=True), _uniform(n, images, generator) * SATURATION)
    return _stretch(images, images.mean((1, 2, 3), keepdim=True), _uniform(n, images, generator) + CONTRAST)


def crop(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Shift by whole pixels, zeros moving in."""
    h, w = images.shape[2:]
    rows = _shifted(h, _integers(-_part(h, CROP), _part(h, CROP), n, images, generator))
    columns = _shifted(w, _integers(-_part(w, CROP), _part(w, CROP), n, images, generator))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Set a square to 0; its centre is uniform over the image, so part of it may lie outside."""
    rows, columns = (_covered(side, _part(side, CUTOUT), n, images, generator) for side in images.shape[2:])
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def flip(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Mirror left and right."""
    return torch.where(_uniform(n, images, generator) < FLIP, images.flip(3), images)


def scale(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Zoom height and width independently, zeros moving in."""
    zoom = torch.rand(n, 2, generator=generator, device=generator.device).to(images)
    return _warp(images, torch.diag_embed(zoom * (SCALE - 1 / SCALE) + 1 / SCALE))


def rotate(images: Tensor, generator: Generator, n: int) -> Tensor:
    """Rotate about the centre, zeros moving in."""
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
    """(n, 1, 1, 1) in [0, 1)."""
    return torch.rand(n, 1, 1, 1, generator=generator, device=generator.device).to(like)


def _integers(low: int, high: int, n: int, like: Tensor, generator: Generator) -> Tensor:
    """(n, 1) from low to high, both included."""
    return torch.randint(low, high + 1, (n, 1), generator=generator, device=generator.device).to(like.device)


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _stretch(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return (images - centre) * factor + centre


def _shifted(side: int, shift: Tensor) -> Tensor:
    """Index (n, side) into a line with one zero at either end."""
    return (torch.arange(side, device=shift.device) + shift + 1).clamp(0, side + 1)


def _covered(side: int, length: int, n: int, like: Tensor, generator: Generator) -> Tensor:
    """(n, side): whether a line of this length about a random centre covers the pixel."""
    start = _integers(0, side - length % 2, n, like, generator) - length // 2
    pixels = torch.arange(side, device=like.device)
    return (pixels >= start) & (pixels < start + length)


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample the images at matrices (n, 2, 2) times the output's coordinates in [-1, 1]."""
    theta = F.pad(matrices, (0, 1)).expand(len(images), -1, -1)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)
