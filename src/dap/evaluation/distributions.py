"""How far the distribution of a set's features lies from that of the real ones: MMD, KID and the Fréchet distance.

Everything is computed in float64, over features (n, D) of any extractor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dap.errors import DapError

GramFunction = Callable[[Tensor, Tensor], Tensor]
"""k(x, y): (n, D), (m, D) -> (n, m), positive semi-definite; every `dap.kernels.Kernel` is one."""

CHUNK = 1000
"""Rows of a kernel matrix held at once."""


def mmd2(synthetic: Tensor, real: Tensor, kernel: GramFunction | None = None) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); lower is closer, may be negative.

    mean of k(s_i, s_j) over i != j, plus the same for real images, minus twice the mean of k(s_i, r_j), over all images
    of both sides. The default kernel is KID's. Needs two images on either side.
    """
    kernel = kernel or kid_kernel
    s, r = synthetic.double(), real.double()

    def within(x: Tensor) -> float:
        total = sum(kernel(part, x).sum().item() for part in x.split(CHUNK))
        diagonal = sum(kernel(part, part).diagonal().sum().item() for part in x.split(CHUNK))
        return (total - diagonal) / (len(x) * (len(x) - 1))

    across = sum(kernel(s, part).sum().item() for part in r.split(CHUNK)) / (len(s) * len(r))
    return within(s) + within(r) - 2 * across


def kid_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3 (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(
    synthetic: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance as torch-fidelity and torchmetrics define it, over these features.

    The mean and standard deviation, over `subsets` draws without replacement of `subset_size` images from either side,
    of `mmd2` with `kid_kernel`. Their default of 1000 exceeds most distilled sets; where it is the size of both sides,
    every draw is the whole and the mean is `mmd2` itself.

    Raises:
        DapError: a side has fewer than `subset_size` images, or that is below 2.
    """
    fewest = min(len(synthetic), len(real))
    if not 2 <= subset_size <= fewest:
        raise DapError(f"KID needs subsets of 2 to {fewest} images here, not {subset_size}; lower subset_size.")
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:subset_size]]

    found = torch.tensor([mmd2(drawn(synthetic), drawn(real)) for _ in range(subsets)], dtype=torch.float64)
    return found.mean().item(), found.std(correction=0).item()


def frechet(synthetic: Tensor, real: Tensor) -> float:
    """Fréchet distance of the two Gaussians fitted to the features (Heusel et al. 2017: FID); lower is closer.

    |m_s - m_r|^2 + tr(C_s + C_r - 2 (C_s C_r)^(1/2)), with covariances over n - 1. With A and B the centred features over
    the root of n - 1, the last trace is the sum of the singular values of A B^T, which needs no root of a matrix.

    Raises:
        DapError: a side has no more images than features, so that its covariance is singular and the value mostly
            measures how few images there are. Use `mmd2` by class there.
    """
    for what, x in (("synthetic", synthetic), ("real", real)):
        if len(x) <= x.shape[1]:
            raise DapError(
                f"A Fréchet distance over {x.shape[1]} features needs more than {x.shape[1]} {what} images, not {len(x)}."
            )
    (s_mean, s_root), (r_mean, r_root) = (_moments(x.double()) for x in (synthetic, real))
    spread = s_root.square().sum() + r_root.square().sum() - 2 * torch.linalg.svdvals(s_root @ r_root.T).sum()
    return ((s_mean - r_mean).square().sum() + spread).clamp_min(0).item()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,), and a triangular (D, D) matrix R with R^T R the covariance."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R
