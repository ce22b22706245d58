r"""Memorisation: the nearest real image of each synthetic image, and whether the two are too near for chance.

Images are compared as small pictures of at most 32 px, also mirrored and shifted by a pixel. Nobody chooses how near is too
near: the real images themselves say it. For an image s and its 16 nearest real images r_1 ... r_16 of a class, let

    c(s) = d(s, r_1) / mean_{i > 1} d(s, r_i),

following the ratio with which Carlini et al. (2023, "Extracting Training Data from Diffusion Models") find copies. It is the
distance to the suspected original, in units of the distance to other images, so that plain and busy images are judged alike.
d is the root mean squared difference. c is computed twice, from the pictures as they are and from their smoothed difference,
which finds blurred copies; the smaller value counts. The same number is computed for a sample of real images, each of which
is left out of its own class. c(s) is then compared with the lowest hundredth of these numbers: about 1 % of fresh real images
would be as near to a training image. The same is done in features, with the image mirrored and shifted as its match is, and
with the lowest tenth. A `copy` is below both limits, or is the same picture. So at most about 1 % of the images that copy
nothing are flagged.

Where real images come in near twins, such as frames of a film or two drawings of one thing, the lowest hundredth is a distance of
twins, and a redrawn original is no nearer than that. So the limits are never below `DISTINCT`. Then more than 1 % of the
real images may lie below both limits themselves. `Thresholds.reals` is their share, and flags should be read beside that share.

Real images that are there twice are left out of that sample: they would say that to be the same picture is usual. Where fewer
than `LEAST` images are left, or a limit is 0, there is no limit, and only the same picture counts as a copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import seed_of
from dap.data.real.stored.streams import Stored
from dap.evaluation.measures.measures import extract
from dap.evaluation.measures.nearest import Nearest
from dap.evaluation.measures.pictures import Pictures, coarse
from dap.evaluation.measures.rows import Table
from dap.evaluation.training.batches import rows_of

PIXEL_RATE = 0.01
"""Share of fresh real images whose c in pixels is below the threshold."""

FEATURE_RATE = 0.1
"""Share of fresh real images whose c in features is below the threshold."""

DISTINCT = (0.45, 0.5)
"""The smallest limits of c in pixels and in features. They are a little below those of images of different things: Fashion-MNIST
measures 0.455 and 0.533 for itself. Carlini et al. (2023) take 0.5 in the pixels of CIFAR-10."""

CANDIDATES = 16
"""The number of real images that an image is compared with pixel by pixel: those that are nearest at 8 px."""

CALIBRATION = 1000
"""The number of real images, of all classes together, on which the thresholds are measured."""

MANY, TOGETHER = 100, 4096
"""With more than `MANY` classes, the classes of about `TOGETHER` real images are compared at once."""

LEAST = 5
"""The smallest number of real images on which limits are measured."""

SAME = 0.5 / 255
"""Root mean squared difference below which two pictures are the same 8-bit picture."""

MOVES = [(mirrored, down, right) for mirrored in (False, True) for down in (-1, 0, 1) for right in (-1, 0, 1)]
"""An image is compared with another one in each of these ways: mirrored or not, and shifted down and right by pixels."""


@dataclass(frozen=True)
class Match:
    """A real image and its distance: the root mean squared pixel difference in [0, 1], or |s - r| in features."""

    label: int
    index: int
    distance: float


@dataclass(frozen=True)
class Suspect:
    """The real image of one class that is nearest in pixels, and how near it is."""

    match: Match
    in_features: float
    """|s - r| to this image."""
    closeness: tuple[float, float]
    """c in pixels and in features."""

    def copied(self, thresholds: Thresholds) -> bool:
        near = self.closeness[0] <= thresholds.pixel and self.closeness[1] <= thresholds.feature
        return (near and thresholds.why is None) or self.match.distance <= SAME


@dataclass(frozen=True)
class Neighbours:
    """The real images that are near one synthetic image.

    Attributes:
        pixel, feature: the nearest real image of its own class.
        pixel_any, feature_any: the nearest real image of any class. Of the other classes only those images are compared pixel
            by pixel that are nearest at 8 px.
        closeness: c in pixels and in features, within the image's own class, or within the class of its original.
        original: the real image that the image copies; None where it copies none.
    """

    pixel: Match
    feature: Match
    pixel_any: Match
    feature_any: Match
    closeness: tuple[float, float]
    original: Match | None


@dataclass(frozen=True)
class Thresholds:
    """The limits at or below which c is too near, and how many real images they were measured on.

    n real images cannot measure a share below 1 / (n + 1). With fewer than 99 real images, up to 1 / (n + 1) of fresh real images
    are therefore flagged.
    """

    pixel: float
    feature: float
    calibrated_on: int
    duplicates: int = 0
    """How many real images of the sample were left out, because they are there twice."""
    why: str | None = None
    """Why there is no limit, as a sentence; None where there is one."""
    reals: float | None = None
    """Share of these real images that lie below both limits themselves; None where there is no limit."""


class Search:
    """Finds the neighbours of images among real images.

    Args:
        reals: see `Pictures`. The search in features looks at those real images that have features, and at the nearest one in
            pixels.

    Raises:
        DapError: a class has fewer than 3 real images. Among so few, none can be much nearer than the others.
    """

    def __init__(self, reals: Pictures) -> None:
        self.reals = reals
        for name, indices in zip(reals.source.class_names, reals.indices, strict=True):
            if len(indices) < 3:
                raise DapError(
                    f"Class {name!r} has {counted(len(indices), 'real image')}; the search for copies needs at least 3."
                )

    @cached_property
    def thresholds(self) -> Thresholds:
        """The limits, measured when they are first used. Each real image is left out of its own class for this."""
        each = math.ceil(CALIBRATION / len(self.reals.indices))
        found: list[Suspect] = []
        for label, features in enumerate(self.reals.features):
            generator = torch.Generator().manual_seed(seed_of("calibration", label))
            chosen = torch.randperm(len(features), generator=generator)[:each]
            images = self.reals.images([(label, self.reals.indices[label][i]) for i in chosen.tolist()])
            found += self._suspects(images, features[chosen], label, chosen)
        once = [suspect for suspect in found if suspect.match.distance > SAME]
        tally = {"calibrated_on": len(once), "duplicates": len(found) - len(once)}
        if len(once) < LEAST:
            why = f"Of {len(found)} real images {tally['duplicates']} are there twice, too many to say how near is too near."
            return Thresholds(0.0, 0.0, **tally, why=why)
        values: list[float] = []
        for which, rate in enumerate((PIXEL_RATE, FEATURE_RATE)):
            ordered = sorted(suspect.closeness[which] for suspect in once)
            values.append(ordered[max(0, math.floor(rate * (len(ordered) + 1)) - 1)])
        why = None if min(values) > 0 else "Among the real images themselves a distance of 0 is usual."
        pixel, feature = values if why else map(max, values, DISTINCT)
        limits = Thresholds(pixel, feature, **tally, why=why)
        share = None if why else sum(suspect.copied(limits) for suspect in once) / len(once)
        return replace(limits, reals=share)

    def __call__(self, images: Stored, labels: Tensor, features: Table) -> list[Neighbours]:
        """The neighbours of images (n, 3, h, w), float in [0, 1] or uint8, with labels (n,) and features (n, D), in order."""
        features = features.float() if isinstance(features, Tensor) else features
        found: list[list[Suspect]] = [[] for _ in range(len(images))]
        for asked in (labels, self._rivals(images, labels)):
            for label in range(len(self.reals.indices)):
                rows = (asked == label).nonzero()[:, 0]
                for row, suspect in zip(
                    rows.tolist(), self._suspects(rows_of(images, rows), features[rows], label), strict=True
                ):
                    found[row].append(suspect)
        near = self._nearest_features(features, labels)
        return [self._summed(suspects, *pair) for suspects, pair in zip(found, near, strict=True)]

    def _summed(self, suspects: list[Suspect], feature: Match, feature_any: Match) -> Neighbours:
        own = suspects[0]
        # Another class's image is suspected only where it is the nearer one, so that it adds few false flags.
        suspected = [own, *(rival for rival in suspects[1:] if rival.match.distance < own.match.distance)]
        copied = next((suspect for suspect in suspected if suspect.copied(self.thresholds)), None)
        seen = [Match(s.match.label, s.match.index, s.in_features) for s in suspects]

        def nearest(matches: list[Match]) -> Match:
            return min(matches, key=lambda match: match.distance)

        return Neighbours(
            pixel=own.match,
            feature=nearest([feature, seen[0]]),
            pixel_any=nearest([suspect.match for suspect in suspects]),
            feature_any=nearest([feature_any, *seen]),
            closeness=(copied or own).closeness,
            original=copied.match if copied else None,
        )

    def _rivals(self, images: Stored, labels: Tensor) -> Tensor:
        """For every image (n,), the other class with the nearest picture at 8 px; -1 where there is no other."""
        best, rivals = torch.full((len(images),), torch.inf), torch.full_like(labels, -1)
        for rows in torch.arange(len(images)).split(100):
            moved = _moves(self.reals.pictured(rows_of(images, rows)))
            for first, pools in self._together:
                found = _coarse_distances(moved, torch.cat(pools) if len(pools) > 1 else pools[0])
                for label, part in enumerate(found.split([len(pool) for pool in pools], 1), first):
                    near = part.amin(1)
                    better = (near < best[rows]) & (labels[rows] != label)
                    best[rows[better]], rivals[rows[better]] = near[better], label
        return rivals

    @cached_property
    def _together(self) -> list[tuple[int, list[Tensor]]]:
        """The coarse pictures of classes that are compared at once, and the first class of each group. Few classes are compared
        one by one. With many classes, whose products are small, most of the time would go to their calls."""
        pools = self.reals.coarse
        size = 1 if len(pools) <= MANY else max(1, TOGETHER * len(pools) // max(1, sum(map(len, pools))))
        return [(first, pools[first : first + size]) for first in range(0, len(pools), size)]

    def _suspects(self, images: Tensor, features: Tensor, label: int, without: Tensor | None = None) -> list[Suspect]:
        """The suspects of one class for images (n, 3, h, w). `without` (n,) names a picture of the class that is left
        out for each image."""
        return [
            suspect
            for rows in torch.arange(len(images)).split(100)
            if len(rows)
            for suspect in self._suspects_of(
                images[rows], features[rows], label, None if without is None else without[rows]
            )
        ]

    def _suspects_of(self, images: Tensor, features: Tensor, label: int, without: Tensor | None) -> list[Suspect]:
        pictures, pool = self.reals.pictured(images), self.reals.pictures[label]
        moved = _moves(pictures)
        rough = _coarse_distances(moved, self.reals.coarse[label])
        if without is not None:
            rough.scatter_(1, without[:, None], torch.inf)
        most = min(CANDIDATES, len(pool) - (without is not None))
        candidates = rough.topk(most, largest=False).indices
        inside = pool[candidates][..., 1:-1, 1:-1].float() / 255  # the inner part, which no shift moves out
        windows = torch.stack(moved, 1)[..., 1:-1, 1:-1].float() / 255
        flat_reals, flat = inside.flatten(2), windows.flatten(2)
        apart = flat_reals.square().sum(2)[:, :, None] + flat.square().sum(2)[:, None] - 2 * flat_reals @ flat.mT
        move = apart.argmin(2)
        apart = inside - windows[torch.arange(len(images))[:, None], move]  # again: the formula above loses digits
        sharp, smooth = (difference.square().mean((2, 3, 4)).sqrt() for difference in (apart, _smoothed(apart)))
        closeness = torch.minimum(_ratio(sharp), _ratio(smooth))
        distance, first = sharp.min(1)
        rows = torch.arange(len(images))
        places = [self.reals.indices[label][i] for i in candidates[rows, first]]
        moves = [MOVES[i] for i in move[rows, first]]
        placed = torch.cat(
            [_moved(image[None], how, self.reals.side) for image, how in zip(images, moves, strict=True)]
        )
        beside, in_features = self._in_features(placed, features, label, places, without)
        numbers = torch.stack([distance, beside, closeness, in_features], 1).tolist()
        return [
            Suspect(Match(label, place, pixel), feature, (c, c_features))
            for place, (pixel, feature, c, c_features) in zip(places, numbers, strict=True)
        ]

    def _in_features(
        self, placed: Tensor, features: Tensor, label: int, places: list[int], without: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """|s - r| (n,) to the real images at these places, and c in features (n,). For c the images are mirrored and
        shifted to match the real images (`placed`)."""
        originals = extract(self.reals.extractor, self.reals.images([(label, place) for place in places])).float()
        aligned = extract(self.reals.extractor, placed).float()
        table = torch.cdist(features, self.reals.features[label])
        if without is not None:
            table.scatter_(1, without[:, None], torch.inf)
        usual = table.topk(min(CANDIDATES, table.shape[1] - (without is not None)), largest=False).values.mean(1)
        return (features - originals).norm(dim=1), (aligned - originals).norm(dim=1) / usual.clamp_min(1e-12)

    def _nearest_features(self, features: Table, labels: Tensor) -> list[tuple[Match, Match]]:
        """The nearest real image of its own class, and of any class, for every row of features (n, D). Only real images
        with features are searched."""
        own, every = Nearest(len(features)), Nearest(len(features))
        for label, pool in enumerate(self.reals.features):
            for rows in torch.arange(len(features)).split(1000):
                places = torch.cdist(features[rows], pool).argmin(1)
                distances = (features[rows] - pool[places]).norm(dim=1)  # computed again, as cdist loses digits
                every.note(rows, distances < every.distances[rows], label, places, distances)
                own.note(rows, labels[rows] == label, label, places, distances)
        return [(self._match(*one), self._match(*other)) for one, other in zip(own.found(), every.found(), strict=True)]

    def _match(self, label: int, place: int, distance: float) -> Match:
        return Match(label, self.reals.indices[label][place] if label >= 0 else -1, distance)


def _moves(pictures: Tensor) -> list[Tensor]:
    """The pictures (n, 3, side, side) after each move of `MOVES`."""
    return [_moved(pictures, move, pictures.shape[-1]) for move in MOVES]


def _moved(images: Tensor, move: tuple[bool, int, int], side: int) -> Tensor:
    """Images after a move: mirrored or not, and shifted by the size of one pixel of a picture with this side. The edges
    are repeated."""
    mirrored, down, right = move
    images = images.flip(-1) if mirrored else images
    h, w = images.shape[-2:]
    rows, columns = (
        (torch.arange(n) - shift * round(n / side)).clamp(0, n - 1) for n, shift in ((h, down), (w, right))
    )
    return images[..., rows[:, None], columns]


def _coarse_distances(moved: list[Tensor], pool: Tensor) -> Tensor:
    """Squared distances (n, m) at 8 px between pictures and the (m, d) of `Pictures.coarse`. For each pair the best
    move counts."""
    queries = torch.stack([coarse(one) for one in moved], 1)
    products = queries.flatten(0, 1) @ pool.T
    nearest = (queries.square().sum(2)[:, :, None] - 2 * products.unflatten(0, queries.shape[:2])).amin(1)
    return nearest + pool.square().sum(1)


def _smoothed(apart: Tensor) -> Tensor:
    """Differences (n, k, 3, h, w) under the binomial kernel of 3 x 3."""
    n, k = apart.shape[:2]
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(apart.shape[2], 1, 3, 3)
    padded = F.pad(apart.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, groups=len(kernel)).unflatten(0, (n, k))


def _ratio(distances: Tensor) -> Tensor:
    """The smallest value of each row (n, k), divided by the mean of the row's other values."""
    ordered = distances.sort(1).values
    return ordered[:, 0] / ordered[:, 1:].mean(1).clamp_min(1e-12)
