"""Balanced k-means: clusters of equal size, for a target of its own for every slot."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def balanced_kmeans(points: Float[Tensor, "n d"], k: int, seed: int, rounds: int = 25) -> Int[Tensor, " n"]:
    """Cluster index of each point, sizes ⌊n/k⌋ or ⌈n/k⌉.

    k-means++ seeds by scikit-learn, then alternately an optimal assignment of points to k·⌈n/k⌉ places and the means
    (Malinen & Fränti 2014).

    Raises:
        ValueError: fewer points than clusters.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist
    from sklearn.cluster import kmeans_plusplus

    x = points.double().cpu().numpy()
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
