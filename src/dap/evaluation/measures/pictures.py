"""The real training images that a set is compared with: a small picture of each image, and features of some images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dap.base.seeding import seed_of
from dap.data.real.base import Source
from dap.data.real.clips.times import middles
from dap.data.real.counts import counts_of, total_of
from dap.data.real.stored.budget import Budget
from dap.evaluation.measures.measures import extract
from dap.evaluation.measures.rows import Filling, Pools

SIDE = 32
"""Largest side, in pixels, of the pictures in which images are compared."""

COARSE = 8
"""Side, in pixels, of the pictures that are compared first, because they are small."""


SEEN = 8
"""How many frames of a clip are compared, spread evenly over its time."""


def coarse(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, side, side), uint8 -> (n, 3 · 8 · 8) in [0, 1], or fewer if the side is below 8."""
    return F.adaptive_avg_pool2d(pictures.float() / 255, min(COARSE, pictures.shape[-1])).flatten(1)


def unfolded(images: Tensor, frames: int | None) -> Tensor:
    """Images of 3 · frames channels (…, 3 · frames, h, w) as clips (…, 3, frames, h, w); without frames they stay images."""
    return images if frames is None else images.unflatten(-3, (3, frames))


def _drawn(indices: list[int], n: int, what: str, name: str) -> list[int]:
    """`n` of these indices, ascending, by a random draw that depends on the class alone."""
    generator = torch.Generator().manual_seed(seed_of(what, name))
    return sorted(indices[k] for k in torch.randperm(len(indices), generator=generator)[:n].tolist())


class Pictures:
    """The images of a source, read once, class by class.

    A clip is an image of 3 · frames channels here, and its picture has the channels of `SEEN` frames at most. So both are moved,
    mirrored and compared as an image is, all frames in the same way.

    Args:
        source: the images.
        features: images (n, 3, h, w) in [0, 1] -> (n, D); called with at most 500 at a time.
        limit: the largest number of images of a class that are read, by a fixed random draw; default: all images.
        compared: the number of images of each class whose features are computed, by a fixed random draw. They are read first.
        only_compared: read no other images than these.
        budget: memory and disk of the features; default: memory that is free, and a file where it is short.

    Attributes:
        side: the side of the pictures in pixels: the smaller one of the source's size and `SIDE`.
        pictures: for each class its pictures (n, 3, side, side), uint8. A picture takes 3 kB for an image of 32 px or
            more.
        coarse: for each class its coarse pictures (n, 192), see `coarse`.
        indices: for each class, the indices of the pictures in the source.
        features: for each class the features (m, D), float32, of its first m pictures.

    Raises:
        DapError: too many images are broken, or for a reason of `measures.extract`.
    """

    def __init__(
        self,
        source: Source,
        features: Callable[[Tensor], Tensor],
        *,
        limit: int | None = None,
        compared: int = 500,
        only_compared: bool = False,
        budget: Budget | None = None,
    ) -> None:
        self.source, self.extractor, self.side = source, features, min(SIDE, source.size)
        self.pictures: list[Tensor] = []
        self.coarse: list[Tensor] = []
        self.indices: list[list[int]] = []
        counts: list[int] = []
        filling = Filling(sum(min(count, compared) for count in counts_of(source)), budget or Budget())
        for label, name in enumerate(source.class_names):
            wanted = list(range(source.count(label)))
            if limit is not None and limit < len(wanted):
                wanted = _drawn(wanted, limit, "neighbours", name)
            if compared < len(wanted):  # files may be sorted by what they show, so the first ones stand for no class
                first = _drawn(wanted, compared, "compared", name)
                wanted = [*first, *sorted(set(wanted) - set(first))]
            if only_compared:
                wanted = wanted[: compared + 20]  # a few of them may be broken
            indices: list[int] = []
            pictures: list[Tensor] = []
            counts.append(0)
            together = max(1, 500 // (source.frames or 1))
            for start in range(0, len(wanted), together):
                kept, images = self._readable(label, wanted[start : start + together])
                first = images[: max(0, compared - len(indices))]
                if len(first):
                    filling.add(extract(features, first))
                    counts[-1] += len(first)
                indices += kept
                pictures.append(self.pictured(images))
            self.indices.append(indices)
            self.pictures.append(torch.cat(pictures))
            self.coarse.append(torch.cat([coarse(part) for part in pictures]))
        self.features = Pools(filling.table(), counts)

    def pictured(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] -> pictures (n, 3, side, side), uint8; clips (n, 3 · frames, h, w) -> their pictures."""
        if (frames := self.source.frames or 1) > SEEN:
            images = images.unflatten(1, (3, -1))[:, :, middles(range(frames), frames, SEEN)].flatten(1, 2)
        if images.shape[-1] > self.side:
            images = F.adaptive_avg_pool2d(images, self.side)
        return images.clamp(0, 1).mul(255).round().byte()

    def key(self, label: int, index: int) -> str:
        """The key of an image in the source."""
        return self.source.keys(label, [index])[0]

    def images(self, where: list[tuple[int, int]]) -> Tensor:
        """The images (n, 3, size, size) at these (label, index), read again; clips as images of 3 · frames channels."""
        return torch.cat([self._readable(label, [index])[1] for label, index in where])

    def _readable(self, label: int, indices: list[int]) -> tuple[list[int], Tensor]:
        kept, images = self.source.readable(label, indices)
        return kept, images if self.source.frames is None else images.flatten(1, 2)

    @property
    def searched(self) -> int:
        """The number of pictures of all classes."""
        return sum(map(len, self.indices))

    @property
    def available(self) -> int:
        """The number of images in the source."""
        return total_of(self.source)
