"""Points that stand for a class: clusters of equal size, one for each slot, and the order of kernel herding."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def balanced_kmeans(points: Float[Tensor, "n d"], k: int, seed: int, rounds: int = 25) -> Int[Tensor, " n"]:
    """The cluster of each point; every cluster has ⌊n/k⌋ or ⌈n/k⌉ points.

    scikit-learn's k-means++ gives the first centres. Then points are assigned optimally to k·⌈n/k⌉ places, and the centres are
    moved to the means of their points, in turn (Malinen & Fränti 2014).

    Args:
        points: (n, d), n ≥ k.
        k: how many clusters.
        seed: of k-means++.
        rounds: the most rounds of assignment.

    Returns:
        (n,), from 0 to k − 1.

    Raises:
        ValueError: there are fewer points than clusters.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist
    from sklearn.cluster import kmeans_plusplus

    x = points.cpu().double().numpy()
    n = len(x)
    if n < k:
        raise ValueError(f"{n} points cannot be split into {k} clusters")
    centres = kmeans_plusplus(x, k, random_state=seed % 2**32)[0]
    places = np.repeat(np.arange(k), -(-n // k))
    labels = np.zeros(n, dtype=np.int64)
    for _ in range(rounds):
        cost = cdist(x, centres, "sqeuclidean")
        # Only the last place of a cluster may stay empty; a large reward fills the others first.
        full = np.tile(np.arange(-(-n // k)) < n // k, k)
        rows, columns = linear_sum_assignment(cost[:, places] - np.where(full, cost.max() * n + 1, 0.0))
        new = np.empty(n, dtype=np.int64)
        new[rows] = places[columns]
        if (new == labels).all():
            break
        labels = new
        centres = np.stack([x[labels == c].mean(0) for c in range(k)])
    return torch.from_numpy(labels)


def herded(points: Float[Tensor, "n d"], mean: Float[Tensor, " d"], k: int | None = None) -> list[int]:
    """Rows of points, of which each is the best next one to keep the mean of all so far near a mean.

    This is kernel herding under the linear kernel (Chen, Welling & Smola 2010), without repetitions.

    Args:
        points: the points.
        mean: the mean that is followed.
        k: how many rows are wanted, at most n; None: all.
    """
    left, order, total = list(range(len(points))), list[int](), torch.zeros_like(mean)
    while left and (k is None or len(order) < k):
        gaps = ((total + points[left]) / (len(order) + 1) - mean).square().sum(1)
        order.append(left.pop(int(gaps.argmin())))
        total = total + points[order[-1]]
    return order
