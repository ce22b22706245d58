"""How close a set is to the real images, and how varied the set is, over features (n, D) of any extractor.

All functions compute in float64. Distances are Euclidean norms of differences. Only the radii of the neighbour balls, which
need all pairs of a class, use |x|^2 + |y|^2 - 2 x.y; the error of that formula is below 1e-7 of the norms here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.data.real.stored.streams import Stored
from dap.evaluation.measures.distributions import GramFunction, frechet, kid, mmd2, once, within
from dap.evaluation.measures.rows import Table
from dap.evaluation.training.batches import as_float, check_labelled
from dap.kernels import Kernel

CHUNK = 1000
"""The number of rows of a distance matrix that are held in memory at once."""

EMPTY: Mapping[str, Kernel] = MappingProxyType({})

MGD3_NEIGHBOURS = 50


def representativeness(synthetic: Tensor, real: Tensor, kernel: Kernel | None = None) -> float:
    """Mean over synthetic s and real r of D_K(s, r), by default of the linear kernel: |s - r|. Lower is closer.

    This is DAP's energy (Eq. 6 of the paper). The overview figure of the paper prints a "representativeness" (2.16) and a
    "diversity" (10.37) and defines neither. We show this function and `diversity` for that pair: the quantity that the
    method lowers, and the same distance between the synthetic images. The paper does not say which features, scale and real
    images its figure uses. Our values therefore compare sets with each other, and not with the figure.
    """
    of = _distances if kernel is None else kernel.distance
    s, r = synthetic.double(), real.double()
    return torch.cat([of(s, part).mean(0) for part in r.split(CHUNK)]).mean().item()


def nearest(synthetic: Tensor, real: Tensor) -> float:
    """Mean over synthetic s of min over real r of |s - r|; lower is closer, 0 for copies of real images."""
    return torch.stack([_distances(synthetic, part).amin(1) for part in real.split(CHUNK)]).amin(0).mean().item()


def diversity(synthetic: Tensor) -> float:
    """Mean over pairs of different images of |s - s'|; higher is more varied. Needs two images."""
    n = len(synthetic)
    return _distances(synthetic, synthetic).sum().item() / (n * (n - 1))


def prdc(synthetic: Tensor, real: Tensor, k: int = 5, radii: Tensor | None = None) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) by k nearest neighbours.

    The ball of an image is open and reaches to the k-th nearest other image of its own set. With M synthetic images s
    and N real ones r:

        precision = 1/M #{s in the ball of some r}      density  = 1/(k M) #{(s, r): s in the ball of r}
        recall    = 1/N #{r in the ball of some s}      coverage = 1/N #{r whose ball holds some s}

    The balls of a synthetic set of k images or fewer reach to the (M - 1)-th neighbour. A single image has no ball, so recall
    is then left out. There must be k + 1 real images or more. `radii` (N,) are the radii of the real balls, where they are
    known already.
    """
    radii = _radii(real, k) if radii is None else radii
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


def minimax_representativeness(synthetic: Tensor, real: Tensor) -> float:
    """The largest cosine of each synthetic image to a real image, and of these the smallest over all synthetic images.
    Higher is closer (ManifoldGD's metric)."""
    return _cosines(synthetic, real).amax(1).amin().item()


def minimax_diversity(synthetic: Tensor) -> float:
    """1 - largest cosine of two synthetic images; higher is more varied (ManifoldGD's metric). Needs two images."""
    return 1 - _cosines(synthetic, synthetic).fill_diagonal_(-torch.inf).amax().item()


def mgd3_representativeness(synthetic: Tensor, real: Tensor, neighbours: int = MGD3_NEIGHBOURS) -> float:
    """Mean over synthetic s of the mean distance to its 50 nearest real images; lower is closer (MGD3's metric).

    Where there are fewer real images, all of them count. MGD3 measures in a t-SNE map of synthetic and real images together,
    and the scale of its values is the scale of that map. Here the distances are those of the given features, which may be
    the coordinates in such a map (`joint_map`).
    """
    table = torch.cat([_distances(synthetic, part) for part in real.split(CHUNK)], 1)
    return table.topk(min(neighbours, len(real)), dim=1, largest=False).values.mean().item()


def mgd3_diversity(synthetic: Tensor) -> float:
    """Smallest distance of two synthetic images; higher is more varied (MGD3's metric; see `mgd3_representativeness`).
    There must be two images or more."""
    return _distances(synthetic, synthetic).fill_diagonal_(torch.inf).amin().item()


def joint_map(synthetic: Tensor, real: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The t-SNE coordinates (n, 2) and (m, 2) of synthetic and real features in one map, as MGD3 measures in.

    The settings are scikit-learn's defaults. The perplexity is 30, or a third of the images where there are fewer than 91.
    500 images take about a second.
    """
    from sklearn.manifold import TSNE

    both = torch.cat([synthetic, real]).float()
    found = TSNE(perplexity=min(30.0, (len(both) - 1) / 3), random_state=seed).fit_transform(both.numpy())
    placed = torch.from_numpy(found)
    return placed[: len(synthetic)], placed[len(synthetic) :]


@dataclass(frozen=True)
class Comparison:
    """The results of `compare`."""

    values: dict[str, float]
    """Every measure that all classes have, as the mean over the classes, and the measures of the whole set."""
    by_class: list[dict[str, float]]
    """The measures of each class, in the order of the labels."""
    notes: dict[str, str]
    """The reason for each measure that is absent."""


def compare(
    synthetic: tuple[Table, Tensor],
    real: tuple[Table, Tensor],
    classes: int,
    *,
    k: int = 5,
    kernel: GramFunction | None = None,
    distances: Mapping[str, Kernel] = EMPTY,
    kept: MutableMapping[Any, Any] | None = None,
) -> Comparison:
    """All measures of this module within each class, and KID and the Fréchet distance of the whole set.

    Args:
        synthetic: features (n, D) and labels (n,).
        real: features (m, D) and labels (m,).
        classes: number of labels.
        k: neighbours of `prdc`.
        kernel: the kernel of `mmd2`.
        distances: kernels whose `representativeness` is added as `representativeness_<name>`; open bandwidths are fitted
            to the class's real features.
        kept: values that depend on the real features alone are kept here, for the next set that is compared with the same
            real features by the same kernels.

    Returns:
        For each class: representativeness, nearest, precision, density, coverage, recall, diversity, mmd2 and the pairs
        minimax_* and mgd3_*. A class with a single image has no recall, diversity, mmd2, minimax_diversity and
        mgd3_diversity; these measures then have no mean over the classes either. For the whole set: kid and kid_std (100
        subsets of the smaller side's size, at most 1000), and frechet where both sides have more images than features.

    Raises:
        DapError: a class has no synthetic images, or fewer than k + 1 real images.
    """
    have, have_real = (labels.bincount(minlength=classes).tolist() for labels in (synthetic[1], real[1]))
    for label in range(classes):
        if have[label] == 0:
            raise DapError(f"The synthetic set has no image of class {label}.")
        if have_real[label] <= k:
            raise DapError(
                f"Class {label} has {counted(have_real[label], 'real image')}; {k} neighbours need at least {k + 1}."
            )
    rows: list[dict[str, float]] = []
    for label in range(classes):
        s, r = synthetic[0][synthetic[1] == label].double(), real[0][real[1] == label].double()
        radii = once(kept, ("radii", label, k), lambda r=r: _radii(r, k))
        row = {"representativeness": representativeness(s, r), "nearest": nearest(s, r), **prdc(s, r, k, radii)}
        row["minimax_representativeness"] = minimax_representativeness(s, r)
        row["mgd3_representativeness"] = mgd3_representativeness(s, r)
        for name, open_kernel in distances.items():
            fitted = once(kept, ("kernel", name, label), lambda d=open_kernel, r=r: d.fit(r))
            row[f"representativeness_{name}"] = representativeness(s, r, fitted)
        if len(s) > 1:
            mean = once(kept, ("within", label), lambda r=r: within(r, kernel))
            row |= {"diversity": diversity(s), "mmd2": mmd2(s, r, kernel, within_real=mean)}
            row |= {"minimax_diversity": minimax_diversity(s), "mgd3_diversity": mgd3_diversity(s)}
        rows.append(row)
    shared = [name for name in max(rows, key=len) if all(name in row for row in rows)]
    values = {name: sum(row[name] for row in rows) / classes for name in shared}
    notes: dict[str, str] = {}
    if min(have) == 1:
        notes |= dict.fromkeys([n for n in max(rows, key=len) if n not in shared], "a class has a single image")
    size = min(len(synthetic[0]), len(real[0]), 1000)
    if size > 1:
        values["kid"], values["kid_std"] = kid(synthetic[0], real[0], subset_size=size, kept=kept)
    try:
        values["frechet"] = frechet(synthetic[0], real[0])
    except DapError as error:
        notes["frechet"] = str(error)
    return Comparison(values, rows, notes)


def measure(
    synthetic: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    features: Callable[[Tensor], Tensor],
    classes: int,
    *,
    k: int = 5,
    kernel: GramFunction | None = None,
) -> dict[str, float]:
    """The values of `compare`, computed from images.

    Args:
        synthetic: images (n, c, h, w) in [0, 1] and labels (n,).
        real: images and labels in the same form; their size may differ.
        features: images -> (n, D); called with at most 500 at a time.
        classes: number of labels.
        k: neighbours of `prdc`.
        kernel: of `mmd2`.

    Raises:
        DapError: images or labels are bad, features are not finite or not (n, D), or for a reason of `compare`.
    """
    check_labelled("synthetic set", synthetic, classes)
    check_labelled("real set", real, classes)
    of_synthetic, of_real = (extract(features, images) for images, _ in (synthetic, real))
    return compare((of_synthetic, synthetic[1]), (of_real, real[1]), classes, k=k, kernel=kernel).values


def extract(features: Callable[[Tensor], Tensor], images: Stored) -> Tensor:
    """Features (n, D), float64 on the CPU, of images (n, c, h, w), float in [0, 1] or uint8. Clips are images of
    3 · frames channels.

    Raises:
        DapError: the extractor returns features that are not (n, D) or not finite.
    """
    with torch.no_grad():
        together = max(1, 1500 // images.shape[1])  # 500 images, and of clips as many frames
        found = torch.cat([features(as_float(part)) for part in images.split(together)])  # pyright: ignore[reportCallIssue]
    if found.ndim != 2 or len(found) != len(images):
        raise DapError(
            f"The feature extractor gave {tuple(found.shape)} for {counted(len(images), 'image')}; (n, D) is needed."
        )
    if not found.isfinite().all():
        raise DapError("The feature extractor gave values that are not finite.")
    return found.cpu().double()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (n, m) between the rows of x (n, D) and of y (m, D)."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each row to its k-th nearest other row. It is made smaller by one part in 1e9, so that
    rounding does not put this neighbour inside the ball."""
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
