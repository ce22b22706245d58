"""How close a set is to the real images, and how varied, over features (n, D) of any extractor.

Everything is computed in float64. Distances are Euclidean norms of differences; only the radii of the neighbour balls,
which need all pairs of a class, use |x|^2 + |y|^2 - 2 x.y, whose error there is below 1e-7 of the norms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dap.errors import DapError
from dap.evaluation.batches import Labelled, check_labelled

Kernel = Callable[[Tensor, Tensor], Tensor]
"""k(x, y): (n, D), (m, D) -> (n, m), positive semi-definite."""

CHUNK = 1000
"""Rows of a distance or kernel matrix held at once."""


def representativeness(synthetic: Tensor, real: Tensor) -> float:
    """Mean over synthetic s and real r of |s - r|; lower is closer. DAP's energy with the linear kernel (its Eq. 6)."""
    return torch.cat([_distances(synthetic, part).mean(0) for part in real.split(CHUNK)]).mean().item()


def nearest(synthetic: Tensor, real: Tensor) -> float:
    """Mean over synthetic s of min over real r of |s - r|; lower is closer, 0 for copies of real images."""
    return torch.stack([_distances(synthetic, part).amin(1) for part in real.split(CHUNK)]).amin(0).mean().item()


def diversity(synthetic: Tensor) -> float:
    """Mean over pairs of different images of |s - s'|; higher is more varied. Needs two images."""
    n = len(synthetic)
    return _distances(synthetic, synthetic).sum().item() / (n * (n - 1))


def prdc(synthetic: Tensor, real: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) by k nearest neighbours.

    The ball of an image is open and reaches to the k-th nearest other image of its own set. With M synthetic images s
    and N real ones r:

        precision = 1/M #{s in the ball of some r}      density  = 1/(k M) #{(s, r): s in the ball of r}
        recall    = 1/N #{r in the ball of some s}      coverage = 1/N #{r whose ball holds some s}

    A synthetic set of k images or fewer takes its balls from M - 1 neighbours; a single image has no ball, so recall is
    then left out. Needs k + 1 real images.
    """
    radii = _radii(real, k)
    parts = zip(real.split(CHUNK), radii.split(CHUNK), strict=True)
    in_real = torch.cat([_distances(synthetic, part) < radius for part, radius in parts], 1)
    found = {
        "precision": _fraction(in_real.any(1)),
        "density": in_real.sum().item() / (k * len(synthetic)),
        "coverage": _fraction(in_real.any(0)),
    }
    if len(synthetic) > 1:
        radii = _radii(synthetic, min(k, len(synthetic) - 1))
        in_synthetic = [(_distances(part, synthetic) < radii).any(1) for part in real.split(CHUNK)]
        found["recall"] = _fraction(torch.cat(in_synthetic))
    return found


def mmd2(synthetic: Tensor, real: Tensor, kernel: Kernel | None = None) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); lower is closer, may be negative.

    mean of k(s_i, s_j) over i != j, plus the same for real images, minus twice the mean of k(s_i, r_j).
    The default kernel is KID's. Needs two images on either side.
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


def minimax_representativeness(synthetic: Tensor, real: Tensor) -> float:
    """Smallest, over synthetic images, of the largest cosine to a real one; higher is closer (ManifoldGD's metric)."""
    return _cosines(synthetic, real).amax(1).amin().item()


def minimax_diversity(synthetic: Tensor) -> float:
    """1 - largest cosine of two synthetic images; higher is more varied (ManifoldGD's metric). Needs two images."""
    return 1 - _cosines(synthetic, synthetic).fill_diagonal_(-torch.inf).amax().item()


def measure(
    synthetic: Labelled,
    real: Labelled,
    features: Callable[[Tensor], Tensor],
    classes: int,
    *,
    k: int = 5,
    kernel: Kernel | None = None,
) -> dict[str, float]:
    """Every measure of this module within each class, averaged over the classes.

    Args:
        synthetic: images (n, c, h, w) in [0, 1] and labels (n,).
        real: likewise, of any other size.
        features: images -> (n, D); called with at most 500 at a time.
        classes: number of labels.
        k: neighbours of `prdc`.
        kernel: of `mmd2`.

    Returns:
        representativeness, nearest, precision, density, coverage, recall, minimax_representativeness, diversity, mmd2
        and minimax_diversity. If some class has a single synthetic image, those that need two (diversity, recall, mmd2,
        minimax_diversity) are left out.

    Raises:
        DapError: bad images or labels, a class without synthetic or with fewer than k + 1 real images, or features that
            are not finite, or not (n, D).
    """
    check_labelled("synthetic set", synthetic, classes)
    check_labelled("real set", real, classes)
    have, have_real = (labels.bincount(minlength=classes).tolist() for labels in (synthetic[1], real[1]))
    for label in range(classes):
        if have[label] == 0:
            raise DapError(f"The synthetic set has no image of class {label}.")
        if have_real[label] <= k:
            raise DapError(f"Class {label} has {have_real[label]} real images; {k} neighbours need at least {k + 1}.")
    of_synthetic, of_real = extract(features, synthetic[0]), extract(features, real[0])
    rows: list[dict[str, float]] = []
    for label in range(classes):
        s, r = of_synthetic[synthetic[1] == label], of_real[real[1] == label]
        row = {"representativeness": representativeness(s, r), "nearest": nearest(s, r), **prdc(s, r, k)}
        row["minimax_representativeness"] = minimax_representativeness(s, r)
        if min(have) > 1:
            row.update(diversity=diversity(s), mmd2=mmd2(s, r, kernel), minimax_diversity=minimax_diversity(s))
        rows.append(row)
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: sum(row[name] for row in rows) / classes for name in shared}


def extract(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features (n, D) of images (n, c, h, w), float64 on the CPU.

    Raises:
        DapError: the extractor returns something that is not (n, D), or not finite.
    """
    with torch.no_grad():
        found = torch.cat([features(part) for part in images.split(500)])
    if found.ndim != 2 or len(found) != len(images):
        raise DapError(f"The feature extractor gave {tuple(found.shape)} for {len(images)} images; (n, D) is needed.")
    if not found.isfinite().all():
        raise DapError("The feature extractor gave values that are not finite.")
    return found.cpu().double()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, D), (m, D) -> (n, m)."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance (n,) to the k-th nearest other row, less one part in 1e9, so that rounding puts no neighbour inside."""
    x = x.double()
    radii = []
    for start in range(0, len(x), CHUNK):
        distances = torch.cdist(x[start : start + CHUNK], x, compute_mode="use_mm_for_euclid_dist")
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii) * (1 - 1e-9)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    x, y = (torch.nn.functional.normalize(v.double(), dim=1) for v in (x, y))
    return x @ y.T


def _fraction(condition: Tensor) -> float:
    return condition.double().mean().item()
