"""Which images are the same picture, which are nearly the same, and which look like another class.

Nearly the same are pictures whose perceptual hashes differ in at most `BITS` of 64 bits (Zauner 2010: the signs of the lowest
frequencies of a cosine transform of the grey image), and whose pixels agree at 32 px. The hash alone takes plain images for each
other. cleanvision has such a hash too; it reads files and `datasets` alone, compares no two splits, and brings matplotlib.

An image looks like another class where none of its `NEAREST` nearest images in features has its label, and nearly all of them
have one other label (k-nearest-neighbour editing, Wilson 1972).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dap.data.real.base import Source
from dap.data.real.counts import counts_of
from dap.data.real.decode import BrokenImage

SIDE = 32
"""The side in px of the pictures that are compared."""
BITS = 6
"""The largest number of bits in which the hashes of near-duplicates differ."""
APART = 0.05
"""The largest root mean squared difference of near-duplicates at 32 px, of values in [0, 1]. Saving an image of 64 px as JPEG of
quality 75, or scaling it by three quarters, moves nearly every image by less."""
NEAREST, AGREE = 10, 9
"""How many neighbours are asked for their label, and how many of them must agree on another one."""
BLOCK = 1024
"""How many images are compared with all others at once."""


@dataclass
class Seen:
    """The images of one part, such as the training images.

    Attributes:
        name: of the part.
        class_names: in label order.
        pictures: (n, 3, 32, 32) uint8.
        labels: (n,).
        keys: the name of each image.
        broken: name and reason of each image that cannot be decoded.
        of: how many images the part has; more than n + broken where not all were looked at.
    """

    name: str
    class_names: Sequence[str]
    pictures: Tensor
    labels: Tensor
    keys: list[str]
    broken: list[tuple[str, str]]
    of: int

    def hashes(self) -> list[bytes]:
        """The sha256 of each picture."""
        return [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in self.pictures]

    def told(self, place: int) -> str:
        """An image by its class and name. The name of a file begins with the folder of its class."""
        name, key = self.class_names[int(self.labels[place])], self.keys[place]
        return key if key.startswith(f"{name}/") else f"{name}: {key}"


def seen(source: Source, name: str, most: int, tell: object = None) -> Seen:
    """Read the images of a source, at most so many; of more, an equal share of each class, drawn with a fixed seed.

    Broken images are listed, however many they are.
    """
    source = source.fitted(SIDE, "crop")
    counts = counts_of(source)
    share = max(1, most // len(counts)) if sum(counts) > most else max(counts)
    pictures, labels, keys, broken = list[Tensor](), list[int](), list[str](), list[tuple[str, str]]()
    for label, count in enumerate(counts):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:share].sort().values.tolist()
        for index, key in zip(order, source.keys(label, order), strict=True):
            try:
                image = source.decoded(label, index)
            except BrokenImage as error:
                broken.append((key, error.reason))
                continue
            pictures.append((image * 255).round().byte())
            labels.append(label)
            keys.append(key)
        if callable(tell):
            tell(name, label + 1, len(counts))
    whole = torch.stack(pictures) if pictures else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)
    return Seen(name, source.class_names, whole, torch.tensor(labels), keys, broken, sum(counts))


def perceptual(pictures: Tensor) -> Tensor:
    """The perceptual hashes (n, 64) of pictures (n, 3, 32, 32) uint8, as −1 and 1; zeros for one of one colour."""
    grey = (pictures.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    places = torch.arange(SIDE) + 0.5
    waves = torch.cos(torch.pi / SIDE * torch.arange(8)[:, None] * places)  # (8, 32), the lowest frequencies
    low = (waves @ grey @ waves.T).flatten(1)
    low[:, 0] = 0  # the mean grey says nothing of the picture
    signs = torch.where(low >= low[:, 1:].median(1, keepdim=True).values, 1.0, -1.0)
    return signs * (grey.flatten(1).std(1, keepdim=True) > 1)


def near_pairs(mine: Tensor, theirs: Tensor | None = None) -> Iterator[tuple[int, int]]:
    """Pairs of near-duplicates among pictures (n, 3, 32, 32), or between them and others: (i, j), with i < j among themselves."""
    others = mine if theirs is None else theirs
    if not len(mine) or not len(others):
        return
    codes = perceptual(mine)
    their_codes = codes if theirs is None else perceptual(others)
    for start in range(0, len(mine), BLOCK):
        alike = (codes[start : start + BLOCK] @ their_codes.T >= 64 - 2 * BITS).nonzero()
        for i, j in alike.tolist():
            if theirs is None and j <= start + i:
                continue
            apart = (mine[start + i].float() - others[j].float()).square().mean().sqrt() / 255
            if apart <= APART:
                yield start + i, j


def groups(n: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups of two or more of n things that pairs connect, in order."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return []
    rows, columns = np.array(pairs).T
    _, found = connected_components(coo_matrix((np.ones(len(pairs)), (rows, columns)), (n, n)), directed=False)
    members: dict[int, list[int]] = {}
    for place in sorted({*rows.tolist(), *columns.tolist()}):
        members.setdefault(int(found[place]), []).append(place)
    return list(members.values())


def same(hashes: Sequence[bytes]) -> list[list[int]]:
    """The groups of two or more places with one hash, in order."""
    places: dict[bytes, list[int]] = {}
    for place, found in enumerate(hashes):
        places.setdefault(found, []).append(place)
    return [group for group in places.values() if len(group) > 1]


def outliers(features: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """The images that look like another class: (place, that class), those nearest to it first.

    Args:
        features: (n, D).
        labels: (n,).
    """
    from sklearn.neighbors import NearestNeighbors

    if len(features) <= NEAREST:
        return []
    values = features.double().numpy()
    values = (values - values.mean(0)) / (values.std(0) + 1e-12)
    distances, places = NearestNeighbors(n_neighbors=NEAREST + 1).fit(values).kneighbors(values)
    found = list[tuple[float, int, int]]()
    for place, (apart, near) in enumerate(zip(distances, labels.numpy()[places], strict=True)):
        others = [label for label, where in zip(near, places[place], strict=True) if where != place][:NEAREST]
        label, count = Counter(others).most_common(1)[0]
        if count >= AGREE and int(labels[place]) not in others:
            found.append((float(apart[1:].mean()), place, int(label)))
    return [(place, label) for _, place, label in sorted(found)]
