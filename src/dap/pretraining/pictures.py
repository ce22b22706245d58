"""The images that a backbone is trained on, moved a little where they are few, and their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dap.base.seeding import seed_of
from dap.data.real.stored.streams import Stored, Streamed

FEW = 20_000
"""A folder with fewer images than this is small: its images are shifted and zoomed a little, so that fewer are memorised."""

SHIFT, ZOOM = 1 / 16, 0.1
"""The largest shift in each direction, as a part of the side, and the largest change of the scale."""

MOST_VERSIONS = 4
"""How many versions of each image are encoded, at the most."""

TOGETHER = 128 * 64**2
"""How many pixels are encoded at a time. A larger image is encoded alone."""

LARGE = 128
"""The side in px above which no image is encoded in more than two versions, because latents are then large."""


@dataclass(frozen=True)
class Pictures:
    """Images and their labels, or clips.

    Attributes:
        images: (n, 3, side, side), bytes or floats in [0, 1]; clips are (n, 3 · frames, side, side), with all frames
            of a colour before those of the next.
        labels: (n,), int64, on the CPU.
        flip: whether mirror images may be shown.
        frames: how many frames a clip has; None for images.
        shuffled: whether the order is random already. Else it may be that of the classes.
    """

    images: Stored
    labels: Tensor
    flip: bool = True
    frames: int | None = None
    shuffled: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def few(self) -> bool:
        """Whether the images are moved a little."""
        return len(self) < FEW

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """Images (m, 3, side, side) of some rows, in [-1, 1]; clips (m, 3 · frames, side, side)."""
        found = self.images.take(rows) if isinstance(self.images, Streamed) else self.images[rows]
        found = found.to(device)
        return found.float() / 127.5 - 1 if not found.is_floating_point() else found * 2 - 1

    def stills(self, images: Tensor) -> Tensor:
        """What `take` gives as images (m · frames, 3, side, side), clip after clip."""
        return images if self.frames is None else images.unflatten(1, (3, self.frames)).transpose(1, 2).flatten(0, 1)

    def one_still(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What `take` gives as images (m, 3, side, side): of each clip one frame, which is drawn."""
        if self.frames is None:
            return images
        drawn = torch.randint(self.frames, (len(images),), generator=generator)
        return images.unflatten(1, (3, self.frames))[torch.arange(len(images)), :, drawn]

    def moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images (m, channels, side, side), half of them mirrored. Those of a small folder are shifted, and half of them
        zoomed. All frames of a clip are moved alike."""
        return moved(images, generator, flip=self.flip, amount=1.0 if self.few else 0.0)


def moved(images: Tensor, generator: torch.Generator, *, flip: bool, amount: float) -> Tensor:
    """Mirror, shift and zoom images, each by its own draw.

    Shifts are of whole pixels, so that an image which is not zoomed stays as sharp as it is. The pixels of the border fill what
    becomes empty.

    Args:
        images: (n, c, h, w).
        generator: a generator on the CPU.
        flip: whether half of the images are mirrored.
        amount: how far images are shifted and zoomed: 0 not at all, 1 by `SHIFT` and `ZOOM` at the most.
    """
    n, side = len(images), images.shape[-1]
    mirrored, zoomed, by, *shifts = torch.rand(5, n, generator=generator)
    pixels = int(side * SHIFT * amount)
    sign = torch.where(mirrored < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    scale = torch.where(zoomed < 0.5, 1 + amount * ZOOM * (2 * by - 1), 1.0)
    x, y = (((2 * pixels + 1) * draw).floor() - pixels for draw in shifts)
    zero = torch.zeros(n)
    rows = [torch.stack([sign * scale, zero, 2 * x / side], 1), torch.stack([zero, scale, 2 * y / side], 1)]
    theta = torch.stack(rows, 1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Latents:
    """The distributions that an autoencoder gives for images.

    Attributes:
        mean, std: (versions, n, C, side, side); of clips (versions, n, C, frames, side, side).
        labels: (n,).
    """

    mean: Tensor
    std: Tensor
    labels: Tensor

    def drawn(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of latents (batch, C, …), drawn from their distributions, and its labels."""
        versions, n = self.mean.shape[:2]
        which = torch.randint(versions * n, (batch,), generator=generator)
        noise = torch.randn(batch, *self.mean.shape[2:], generator=generator)
        which = which.to(self.mean.device)
        mean, std = self.mean.flatten(0, 1)[which], self.std.flatten(0, 1)[which]
        return mean + std * noise.to(mean), self.labels[which % n]


def versions_of(pictures: Pictures) -> int:
    """How many versions of each image are encoded: more of few images."""
    if not (pictures.few or pictures.flip):
        return 1
    most = MOST_VERSIONS if pictures.images.shape[-1] <= LARGE else 2
    return min(max(2, FEW // len(pictures)), most)


@torch.no_grad()
def encoded(
    vae: Any,
    pictures: Pictures,
    device: torch.device,
    *,
    seed: int,
    versions: int | None = None,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Latents:
    """The latents of all images, in several versions.

    Args:
        vae: the autoencoder.
        pictures: the images.
        device: where the latents are kept.
        seed: decides how the images are moved.
        versions: how many versions of each image there are. The first is the image as it is. Default: `versions_of`.
        tell: is called with the number of images that are encoded and of all.
    """
    versions, n = versions or versions_of(pictures), len(pictures)
    mean = std = torch.empty(0)
    for version in range(versions):
        for rows in in_order(pictures):
            images = pictures.take(rows, device)
            if version:
                generator = torch.Generator().manual_seed(seed_of(seed, "version", version, int(rows[0])))
                images = pictures.moved(images, generator)
            stills = pictures.stills(images)
            posterior = vae.encode(stills.contiguous(memory_format=torch.channels_last)).latent_dist
            clips = [_clips(found, pictures.frames) for found in (posterior.mean, posterior.std)]
            if not mean.numel():  # a list of parts that are put together at the end would need the memory twice
                mean, std = (clips[0].new_empty(versions, n, *clips[0].shape[1:]) for _ in range(2))
            for whole, part in zip((mean, std), clips, strict=True):
                whole[version, int(rows[0]) : int(rows[-1]) + 1] = part
            tell(version * n + int(rows[-1]) + 1, versions * n)
    return Latents(mean, std, pictures.labels.to(device))


def _clips(latents: Tensor, frames: int | None) -> Tensor:
    """The latents of the frames of clips as latents of clips; those of images as they are."""
    return latents if frames is None else latents.unflatten(0, (-1, frames)).transpose(1, 2)


def in_order(pictures: Pictures, limit: int | None = None) -> Iterator[Tensor]:
    """All rows in order, or `limit` of them that are drawn out of all classes, in parts that fit into memory together.

    The draw is the same each time. Its rows are sorted, because images in a file are read faster so.
    """
    n = len(pictures)
    rows = torch.arange(min(limit or n, n))
    if len(rows) < n and not pictures.shuffled:
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: len(rows)].sort().values
    return iter(rows.split(together(pictures.images.shape[-1], pictures.frames)))


def together(side: int, frames: int | None) -> int:
    """How many images or clips are encoded at a time."""
    return max(1, TOGETHER // (side**2 * (frames or 1)))
