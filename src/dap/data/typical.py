r"""The typical real images of each class: those that a backbone's own features place most surely in their class.

The real images of a class hold some that look like another class, and some that look like nothing. A set of ten images a class
cannot spend one of them on these. Sampling with classifier-free guidance leaves them out too: it draws from
p(x | c) p(c | x)^w with w above 0 (Ho & Salimans 2022). This module does the same to real images, without a trained classifier.

A ridge regression from features phi of lightly noised images, under the null condition, to one-hot labels has a closed form,

    W = (X^T X / n + \lambda I)^{-1} X^T Y / n

with standardised X. The margin of an image is the prediction for its own class less the best prediction for another class. Two
regressions share the images: each image is judged by the one that has not seen it. The images of a class with the largest margins
are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.base.seeding import generators, normal, seed_of
from dap.base.store import Store
from dap.data.bank import CHUNK
from dap.data.pooling import SMALLEST, pooled
from dap.data.real.base import Source
from dap.data.real.held import Chosen
from dap.refining import time_of

CANDIDATES = 500
"""How many real images of a class are ranked, unless `IN_ALL` allows fewer."""

IN_ALL = 100_000
"""How many real images of all classes are ranked, unless ipc needs more."""

LEVEL = 0.05
"""The noise level of the features, as a fraction of the schedule."""

GRID = "2x2"
"""How the tokens of the features are pooled; tokens that are in no square are averaged."""

PENALTY = 0.1
"""lambda, beside which the standardised features have variance 1."""


@final
class Typical(Chosen):
    """The most typical real images of each class. They are ranked when the first of them is asked for.

    Args:
        whole: all real images.
        share: which part of the ranked images is kept, above 0 and at most 1; but `least` of them where a class has as many.
        backbone: the backbone in whose features they are ranked.
        layer: the layer of these features.
        seed: of the draw of the ranked images and of their noise.
        least: how many images of a class must be left, such as ipc.
        store: keeps the features, so that a class is passed through the backbone once.
        tell: called during the work with its name, the amount done and the total.

    With one class there is nothing to tell its images from, so the first ones of the draw are kept.

    Attributes:
        tag: a hash of all that decides which images of the whole source are kept.
    """

    def __init__(
        self,
        whole: Source,
        share: float,
        backbone: Backbone,
        layer: str,
        *,
        seed: int = 0,
        least: int = 1,
        store: Store | None = None,
        tell: Callable[[str, int, int], object] = lambda what, done, total: None,
    ) -> None:
        self._backbone, self._layer, self._seed = backbone, backbone.check_layer(layer), seed
        self._store, self._tell = store or Store(), tell
        names = whole.class_names
        candidates = max(min(CANDIDATES, IN_ALL // len(names)), math.ceil(2 * least / share))
        self._drawn = [min(candidates, whole.count(label)) for label in range(len(names))]
        counts = [max(math.ceil(share * n), min(least, n)) for n in self._drawn]
        self._ranked: dict[int, list[int]] = {}
        self._judges: Tensor | None = None
        what = [share, backbone.weights_hash(), self._layer, seed, least, CANDIDATES, IN_ALL, LEVEL, GRID, PENALTY]
        self.tag = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        super().__init__(whole, f"typical images {self.tag}", counts)

    def _rows(self, label: int) -> list[int]:
        if label not in self._ranked:
            self._ranked[label] = self._order(label)[: self.count(label)]
        return self._ranked[label]

    def _order(self, label: int) -> list[int]:
        """The candidates of a class, the most typical first. Images that cannot be decoded are the last."""
        drawn, found = self._candidates(label), self._features(label)
        rows, features = found["rows"].tolist(), found["x"]
        if len(self.class_names) > 1 and rows:
            margins = margins_of(features, label, self._fitted())
            rows = [rows[place] for place in margins.argsort(descending=True, stable=True).tolist()]
        return rows + sorted(set(drawn) - set(rows))

    def _candidates(self, label: int) -> list[int]:
        seed = seed_of(self._seed, self.class_names[label], "candidates")
        order = torch.randperm(self._whole.count(label), generator=torch.Generator().manual_seed(seed))
        return order[: self._drawn[label]].tolist()

    def _features(self, label: int) -> dict[str, Tensor]:
        """The features "x" (n, D) of a class's candidates that can be decoded, and their "rows" in the whole source."""
        key = {"class": self.class_names[label], "typical": self.tag, "n": self._drawn[label]}
        return self._store.get(f"features of {self.class_names[label]}", key, lambda: self._seen(label))

    @torch.no_grad()
    def _seen(self, label: int) -> dict[str, Tensor]:
        backbone, t, name = self._backbone, time_of(self._backbone.schedule, LEVEL), self.class_names[label]
        alpha, sigma = backbone.schedule.level(t)
        rows, parts, drawn = list[int](), list[Tensor](), self._candidates(label)
        for start in range(0, len(drawn), CHUNK):
            some, images = self._whole.readable(label, drawn[start : start + CHUNK])
            if some:
                latents = backbone.encode(images.to(backbone.device))
                gens = generators([seed_of(self._seed, name, "noise of candidates", row) for row in some])
                x = alpha * latents + sigma * normal(latents.shape[1:], gens, latents)
                parts.append(
                    pooled(backbone.tap(x, t, backbone.null(len(x)), self._layer), GRID, odd="mean").flatten(1).cpu()
                )
                rows += some
            self._tell(f"typical images of {name}", min(start + CHUNK, len(drawn)), len(drawn))
        return {"x": torch.cat(parts) if parts else torch.zeros(0, 1), "rows": torch.tensor(rows, dtype=torch.int64)}

    def _fitted(self) -> Float[Tensor, "2 d_and_1 classes"]:
        """The two regressions, from the features of all classes."""
        if self._judges is None:
            of_all = {"typical": self.tag, "data": self._whole.fingerprint()}
            names = range(len(self.class_names))
            fit = lambda: {"x": ridge(lambda label: self._features(label)["x"], len(names))}  # noqa: E731
            self._judges = self._store.get("what is typical", of_all, fit)["x"]
        return self._judges


def ridge(
    features: Callable[[int], Float[Tensor, "n d"]], classes: int, penalty: float = PENALTY
) -> Float[Tensor, "2 d_and_1 classes"]:
    """Two ridge regressions from features to one-hot labels of −1 and 1; the last row of each is the constant.

    Args:
        features: for a label the features of its images. The images in even places are for the first regression, those in odd
            places for the second.
        classes: the number of labels.
        penalty: lambda.
    """
    squares: list[Tensor] = [torch.zeros(()), torch.zeros(())]
    sums, counts = ([], []), ([], [])  # of each class
    for label in range(classes):
        found = features(label).double()
        if not len(found):  # no image of the class could be decoded, so nothing says how wide its features are
            for half in (0, 1):
                sums[half].append(torch.zeros(1, dtype=torch.float64))
                counts[half].append(0)
            continue
        for half in (0, 1):
            x = found[half::2]
            squares[half] = squares[half] + x.T @ x
            sums[half].append(x.sum(0))
            counts[half].append(len(x))
    sums = tuple([one.expand(len(squares[half])) for one in sums[half]] for half in (0, 1))
    return torch.stack([_solved(*moments, penalty) for moments in zip(squares, sums, counts, strict=True)]).float()


def _solved(squares: Tensor, sums: list[Tensor], counts: list[int], penalty: float) -> Float[Tensor, "d_and_1 classes"]:
    """The regression with these XᵀX, sums of the images of each class, and numbers of images of each class."""
    n = max(sum(counts), 1)
    share, mean = torch.tensor(counts).double() / n, torch.stack(sums).sum(0) / n
    cov = squares / n - torch.outer(mean, mean)
    std = cov.diagonal().clamp_min(SMALLEST**2).sqrt()
    # With labels of -1 and 1 the mean label of a class is 2 share - 1, and E[x y] is 2 E[x; class] - E[x].
    across = 2 * torch.stack(sums, 1) / n - mean[:, None] - torch.outer(mean, 2 * share - 1)
    inner = cov / torch.outer(std, std) + penalty * torch.eye(len(mean), dtype=torch.float64)
    weights = torch.linalg.solve(inner, across / std[:, None]) / std[:, None]
    return torch.cat([weights, (2 * share - 1 - mean @ weights)[None]])


def margins_of(
    features: Float[Tensor, "n d"], label: int, judges: Float[Tensor, "2 d_and_1 classes"]
) -> Float[Tensor, " n"]:
    """How much more each image is like its class than like the best other one, by the regression that has not seen it.

    Args:
        features: of the images of a class, in the order in which `ridge` had them.
        label: the class.
        judges: what `ridge` gave, for two classes or more.
    """
    said = torch.empty(len(features), judges.shape[2])
    for half in (0, 1):
        said[half::2] = features[half::2] @ judges[1 - half, :-1] + judges[1 - half, -1]
    own = said[:, label].clone()
    said[:, label] = -torch.inf
    return own - said.max(1).values
