"""Distances between the features of a set and the features of real images: MMD, KID and the Fréchet distance.

All functions compute in float64. Features are rows (n, D) of any extractor.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.evaluation.measures.rows import Table, rows_in

GramFunction = Callable[[Tensor, Tensor], Tensor]
"""A kernel function k(x, y): (n, D), (m, D) -> (n, m), positive semi-definite. Every `dap.kernels.Kernel` is such a
function."""

T = TypeVar("T")

CHUNK = 1000
"""The number of rows of a kernel matrix that are held in memory at once."""

AT_ONCE = 2**27
"""Bytes of rows that the moments of a set are taken of at once."""


def within(x: Tensor, kernel: GramFunction | None = None) -> float:
    """Mean of k(x_i, x_j) over all i != j, for rows x (n, D). There must be two rows or more; k is `kid_kernel` by default."""
    x, kernel = x.double(), kernel or kid_kernel
    total = diagonal = 0.0
    for start in range(0, len(x), CHUNK):
        gram = kernel(x[start : start + CHUNK], x)
        total += gram.sum().item()
        diagonal += gram[:, start:].diagonal().sum().item()
    return (total - diagonal) / (len(x) * (len(x) - 1))


def across(x: Tensor, y: Tensor, kernel: GramFunction | None = None) -> float:
    """Mean of k(x_i, y_j) over all i and j, for rows x (n, D) and y (m, D); k is `kid_kernel` by default."""
    x, y, kernel = x.double(), y.double(), kernel or kid_kernel
    return sum(kernel(x, part).sum().item() for part in y.split(CHUNK)) / (len(x) * len(y))


def mmd2(
    synthetic: Tensor, real: Tensor, kernel: GramFunction | None = None, *, within_real: float | None = None
) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); lower is closer. The value may be negative.

    It is the mean of k(s_i, s_j) over i != j, plus the same mean over the real images, minus twice the mean of k(s_i, r_j).
    The default kernel is KID's. Both sides need two images or more.

    Args:
        synthetic: features (n, D).
        real: features (m, D).
        kernel: k; default: `kid_kernel`.
        within_real: the mean of k over the real images (`within`), where it is known already.
    """
    of_real = within(real, kernel) if within_real is None else within_real
    return within(synthetic, kernel) + of_real - 2 * across(synthetic, real, kernel)


def kid_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3 (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(
    synthetic: Table,
    real: Table,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    kept: MutableMapping[Any, Any] | None = None,
) -> tuple[float, float]:
    """Kernel Inception Distance as torch-fidelity and torchmetrics define it, over these features.

    `subset_size` images are drawn from both sides without replacement, `subsets` times. KID is the mean and the standard
    deviation of `mmd2` with `kid_kernel` over these draws. The two libraries draw 1000 images, and most distilled sets have
    fewer. Where `subset_size` is the size of both sides, every draw is the whole set, and the mean is `mmd2` itself.

    Args:
        synthetic: features (n, D).
        real: features (m, D).
        subsets: the number of draws.
        subset_size: the number of images of each side in a draw.
        seed: the seed of the draws. The draws depend only on this seed and on the numbers of images.
        kept: values that depend only on the real features are kept here, for the next set that is compared with them.

    Raises:
        DapError: a side has fewer than `subset_size` images, or `subset_size` is below 2.
    """
    fewest = min(len(synthetic), len(real))
    if not 2 <= subset_size <= fewest:
        raise DapError(f"KID needs subsets of 2 to {fewest} images here, not {subset_size}; lower subset_size.")
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Table) -> Tensor:
        return torch.randperm(len(x), generator=generator)[:subset_size]

    draws = [(drawn(synthetic), drawn(real)) for _ in range(subsets)]
    key = ("kid", len(synthetic), subsets, subset_size, seed)
    known = once(kept, key, lambda: [within(real[r]) for _, r in draws])
    whole = within(synthetic[:]) if subset_size == len(synthetic) else None  # the order of the rows does not matter
    found = torch.tensor(
        [
            (within(synthetic[s]) if whole is None else whole) + mean - 2 * across(synthetic[s], real[r])
            for (s, r), mean in zip(draws, known, strict=True)
        ],
        dtype=torch.float64,
    )
    return found.mean().item(), found.std(correction=0).item()


def once(kept: MutableMapping[Any, Any] | None, key: object, make: Callable[[], T]) -> T:
    """The value under a key in `kept`. The value is made when it is missing. Where `kept` is None, it is made every
    time."""
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    return kept[key]


def frechet(synthetic: Table, real: Table) -> float:
    """Fréchet distance of the two Gaussians fitted to the features (Heusel et al. 2017: FID); lower is closer.

    The distance is |m_s - m_r|^2 + tr(C_s + C_r - 2 (C_s C_r)^(1/2)), with covariances that divide by n - 1. The trace of
    the root needs no root of a matrix: let A and B be the centred features divided by the root of n - 1; then the trace is
    the sum of the singular values of A B^T.

    Raises:
        DapError: a side has no more images than features. Its covariance is then singular, and the value would mostly
            measure how few images there are. Use `mmd2` by class instead.
    """
    for what, x in (("synthetic", synthetic), ("real", real)):
        if len(x) <= x.shape[1]:
            raise DapError(
                f"A Fréchet distance over {x.shape[1]} features needs more than {x.shape[1]} {what} images, not {len(x)}."
            )
    (s_mean, s_root), (r_mean, r_root) = (_moments(x) for x in (synthetic, real))
    spread = s_root.square().sum() + r_root.square().sum() - 2 * torch.linalg.svdvals(s_root @ r_root.T).sum()
    return ((s_mean - r_mean).square().sum() + spread).clamp_min(0).item()


def _moments(x: Table) -> tuple[Tensor, Tensor]:
    """The mean (D,), and a triangular matrix R (D, D) such that R^T R is the covariance.

    Rows are taken in parts, so that memory holds few of them in float64: R of the rows so far, above the next part, has the
    R of all these rows.
    """
    size = rows_in(AT_ONCE, x.shape[1])
    mean = torch.stack([part.double().sum(0) for part in x.split(size)]).sum(0) / len(x)  # pyright: ignore[reportCallIssue]
    root = mean.new_zeros(0, len(mean))
    for part in x.split(size):  # pyright: ignore[reportCallIssue]
        root = torch.linalg.qr(torch.cat([root, (part.double() - mean) / (len(x) - 1) ** 0.5]), mode="r").R
    return mean, root
