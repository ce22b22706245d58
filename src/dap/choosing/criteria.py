r"""Criteria by which layers are compared: each is a function of the features of real images, and more is better.

`probe`, `neighbours`, `leave-one-out` and `alignment` ask how well a layer knows the classes. They look at features under
the null condition: under the condition of its class, every feature has been told the label that is asked for. `transfer`
asks, within a class and under its condition, whether a small set that looks representative in a layer is representative
in the other layers too. It needs no second class.

    probe          accuracy on held-out images of a ridge regression to one-hot labels (Alain & Bengio 2017, with a closed form)
    neighbours     accuracy on held-out images of the vote of the 5 nearest other images
    leave-one-out  the part of all images whose nearest other image has their class
    alignment      centred kernel alignment of features and labels (Cortes, Mohri & Rostamizadeh 2012),
                   <K_c, L_c> / (|K_c| |L_c|) with K = X X^T, L = Y Y^T and K_c = H K H
    transfer       1 - mean E(S_l; l') / E(R; l'), over classes, over other layers l' and over two ways to pick ten images
                   S_l in layer l; R are ten random images, and E is the energy distance to held-out images
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dap.base.seeding import seed_of
from dap.choosing.features import Seen
from dap.data.clusters import herded

Criterion = Callable[[Seen, str], float]
"""The score of a layer at one noise level; more is better. NaN where it says nothing, such as a probe of one class."""

PICKED = 10
"""How many images a small trial set of a class has, and no more than half of those that it is picked from."""
RANDOM = 8
"""How many random trial sets tell what picking without looking gives."""


def probe(seen: Seen, layer: str) -> float:
    """The accuracy on held-out images of a ridge regression, whose penalty is chosen on the others by leaving one out."""
    from sklearn.linear_model import RidgeClassifierCV

    x, labels, held = _blind(seen, layer)
    if len(np.unique(labels)) < 2:
        return math.nan
    fitted = RidgeClassifierCV(alphas=np.logspace(0, 6, 13)).fit(x[~held], labels[~held])
    return float(fitted.score(x[held], labels[held]))


def neighbours(seen: Seen, layer: str, k: int = 5) -> float:
    """The accuracy on held-out images of a vote of the k nearest other images."""
    from sklearn.neighbors import KNeighborsClassifier

    x, labels, held = _blind(seen, layer)
    if len(np.unique(labels)) < 2:
        return math.nan
    fitted = KNeighborsClassifier(min(k, int((~held).sum()))).fit(x[~held], labels[~held])
    return float(fitted.score(x[held], labels[held]))


def leave_one_out(seen: Seen, layer: str) -> float:
    """The part of all drawn images whose nearest other image has their class."""
    from sklearn.neighbors import NearestNeighbors

    x, labels, _ = _blind(seen, layer)
    if len(np.unique(labels)) < 2:
        return math.nan
    nearest = NearestNeighbors(n_neighbors=1).fit(x).kneighbors(return_distance=False)[:, 0]  # never the image itself
    return float((labels[nearest] == labels).mean())


def alignment(seen: Seen, layer: str) -> float:
    """The centred kernel alignment of the features with the labels, both under the linear kernel; 0 to 1."""
    x, labels, _ = _blind(seen, layer)
    if len(np.unique(labels)) < 2:
        return math.nan
    y = np.eye(int(labels.max()) + 1)[labels]
    x, y = x - x.mean(0), y - y.mean(0)
    # <K, L> = |X^T Y|^2, and |K| from the smaller of the two Gram matrices.
    across, own, of_labels = np.square(x.T @ y).sum(), np.linalg.norm(x @ x.T), np.linalg.norm(y.T @ y)
    return float(across / max(own * of_labels, 1e-30))


def transfer(seen: Seen, layer: str) -> float:
    """How much nearer to held-out images, in the other layers, ten images are that were picked in this layer."""
    gains = list[float]()
    others = [other for other in seen.told if other != layer]
    labels, held = seen.drawn.labels, seen.drawn.held
    for label in labels.unique().tolist():
        mine, kept = (labels == label) & ~held, (labels == label) & held
        n = min(PICKED, int(mine.sum()) // 2)
        gen = torch.Generator().manual_seed(seed_of("trial sets", label))
        random = [torch.randperm(int(mine.sum()), generator=gen)[:n].tolist() for _ in range(RANDOM)]
        points = seen.told[layer][mine]
        exact = points.double()
        picks = [herded(exact, exact.mean(0), n), medoids(points, n, seed_of("trial medoids", label))]
        for other in others:
            real, near = seen.told[other][kept], seen.told[other][mine]
            usual = sum(energy_distance(near[rows], real) for rows in random) / RANDOM
            gains += [1 - energy_distance(near[rows], real) / max(usual, 1e-30) for rows in picks]
    return sum(gains) / len(gains) if gains else math.nan


CRITERIA: dict[str, Criterion] = {
    "probe": probe,
    "neighbours": neighbours,
    "leave-one-out": leave_one_out,
    "alignment": alignment,
    "transfer": transfer,
}
"""Every criterion by name."""

TOLD = frozenset({"transfer"})
"""The criteria that need features under the condition of the class."""


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖, the squared MMD of the kernel −‖x − y‖ between two sets as they are.

    Pairs of an image with itself count, so it is never negative, and is 0 only for equal sets. Ten random images are
    above 0 by what ten images lack.
    """
    return 2 * torch.cdist(x, y).mean().item() - torch.cdist(x, x).mean().item() - torch.cdist(y, y).mean().item()


def medoids(points: Float[Tensor, "n d"], k: int, seed: int) -> list[int]:
    """The row nearest to each of the k centres of k-means, without repetitions, so it may be fewer than k rows."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    x = points.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than centres
        found = KMeans(k, n_init=1, random_state=seed % 2**32).fit(x)  # pyright: ignore[reportArgumentType]
    gaps = torch.cdist(torch.from_numpy(found.cluster_centers_), points.double())
    # The two images of a cluster are as far from its centre. The first is taken, and not what rounding makes of it.
    return sorted(set((gaps / gaps.max().clamp_min(1e-30)).mul(1e6).round().argmin(1).tolist()))


def scores(seen: Seen, layers: Sequence[str], names: Sequence[str]) -> dict[str, list[float]]:
    """The scores of the layers, in order, by each of these criteria."""
    return {name: [CRITERIA[name](seen, layer) for layer in layers] for name in names}


def _blind(seen: Seen, layer: str) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"], np.ndarray]:
    return seen.blind[layer].double().numpy(), seen.drawn.labels.numpy(), seen.drawn.held.numpy()
