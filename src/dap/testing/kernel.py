"""The contract of a `Kernel`: it is positive semi-definite, and its distance is a metric with a finite gradient.

Source: DAP, Theorems 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dap.base.parsing import counted
from dap.kernels import Kernel
from dap.testing.findings import Finding, Verdicts, difference, draw, kind_of, run, slope, warn, wrong

SETS = ((24, 6, 1.0), (24, 6, 0.2), (16, 40, 1.0), (30, 2, 2.0))
"""The number, the width and the spread of the random points on which a kernel is tried."""


class Probe:
    """A kernel and sets of random points (n, d) in float64. `fitted` gives each set with the kernel that is fitted to it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.points = [draw((n, d), 10 + i).double() * spread for i, (n, d, spread) in enumerate(SETS)]

    def fitted(self) -> Iterator[tuple[Tensor, Kernel]]:
        for points in self.points:
            yield points, self.kernel.fit(points)


def fit(p: Probe) -> Verdicts:
    for points in (p.points[0], p.points[0][:1], torch.ones(5, 6).double()):
        got = p.kernel.fit(points)
        if not isinstance(got, Kernel):
            yield wrong(f"fit returns {kind_of(got)}; return a kernel, self if nothing is open.")
        elif not torch.isfinite(got(points, points)).all():
            yield wrong(
                f"fitted to {counted(len(points), 'point')}, of which some are equal, the kernel is not finite."
            )
    return "fit gives a kernel, also from a single point and from equal points"


def shapes(p: Probe) -> Verdicts:
    x = p.points[0].float()
    kernel, y = p.kernel.fit(x), x[:7]
    got = {
        "k(x, y)": (kernel(x, y), (24, 7)),
        "diag(x)": (kernel.diag(x), (24,)),
        "distance(x, y)": (kernel.distance(x, y), (24, 7)),
        "squared_distance(x, y)": (kernel.squared_distance(x, y), (24, 7)),
        "distance of bfloat16 features": (kernel.distance(x.bfloat16(), y.bfloat16()), (24, 7)),
    }
    for name, (value, wanted) in got.items():
        if tuple(value.shape) != wanted:
            yield wrong(f"{name} is {kind_of(value)} for 24 and 7 points; make it {wanted}.")
        elif not torch.isfinite(value).all():
            yield wrong(f"{name} is not finite.")
        elif "squared" not in name and value.dtype != torch.float32:
            yield wrong(f"{name} is {kind_of(value)}; make it float32.")
    return "k (n, m), diag (n,) and distance (n, m), float32 and finite"


def symmetric(p: Probe) -> Verdicts:
    worst = max(difference(k(x, x).T, k(x, x)) for x, k in p.fitted())
    if worst > 1e-6:
        yield wrong(f"k(x, y) and k(y, x) differ by {worst:.1e} (relative); a kernel is symmetric.")
    return f"k(x, y) = k(y, x), to {worst:.0e}"


def positive(p: Probe) -> Verdicts:
    worst = 0.0
    for x, k in p.fitted():
        gram = k(x, x)
        values = torch.linalg.eigvalsh((gram + gram.T) / 2)
        worst = min(worst, (values.min() / values.abs().max().clamp_min(1e-30)).item())
    if worst < -1e-6:
        yield wrong(
            f"the smallest eigenvalue of k(x, x) is {worst:.1e} of the largest: not positive semi-definite, so the distance "
            "is none. Sums and products of kernels, and exp(−distance²), are safe."
        )
    return f"positive semi-definite on random points: smallest eigenvalue {worst:.0e} of the largest"


def diagonal(p: Probe) -> Verdicts:
    worst = max(difference(k.diag(x), k(x, x).diagonal()) for x, k in p.fitted())
    if worst > 1e-6:
        yield wrong(f"diag(x) differs from the diagonal of k(x, x) by {worst:.1e} (relative); make them the same.")
    return f"diag(x) is the diagonal of k(x, x), to {worst:.0e}"


def zero(p: Probe) -> Verdicts:
    pairs = [(k.distance(x, x), x) for x, k in p.fitted()]
    worst = max((d.diagonal().max() / d.median().clamp_min(1e-30)).item() for d, _ in pairs)
    if not worst < 1e-3:
        yield wrong(f"a point is {worst:.1e} (of the median distance) away from itself; this distance should be 0.")
    return f"a point is no distance away from itself ({worst:.0e} of the median)"


def triangle(p: Probe) -> Verdicts:
    worst = 0.0
    for x, k in p.fitted():
        d = k.distance(x, x)
        worst = max(worst, ((d[:, None, :] - d[:, :, None] - d[None]).max() / d.max().clamp_min(1e-30)).item())
    if worst > 1e-4:
        yield wrong(f"a detour is shorter than the straight way by {worst:.1e} of the largest distance: not a metric.")
    return "no detour is shorter than the straight way"


def consistent(p: Probe) -> Verdicts:
    worst = 0.0
    for x, k in p.fitted():
        expanded = k.diag(x)[:, None] + k.diag(x)[None] - 2 * k(x, x)
        worst = max(worst, difference(k.squared_distance(x, x), expanded.clamp_min(0)))
    if worst > 1e-5:
        yield wrong(f"squared_distance differs from k(x, x) + k(y, y) − 2 k(x, y) by {worst:.1e} (relative).")
    return f"the distance is the kernel's own, to {worst:.0e}"


def gradient(p: Probe) -> Verdicts:
    x, y = p.points[0], p.points[0][:5] + 0.3
    kernel = p.kernel.fit(x)
    leaf = x.float().requires_grad_()
    distance = kernel.distance(leaf, leaf.detach())
    if not distance.requires_grad:
        yield wrong("the distance carries no graph to x; something is detached, so nothing can guide.")
        return ""
    (at_equal,) = torch.autograd.grad(distance.sum(), leaf)
    if not torch.isfinite(at_equal).all():
        yield wrong("the gradient is not finite where x equals y; keep a small number under every root.")
    by_graph, by_difference = slope(lambda v: kernel.distance(v, y), x, h=1e-5)
    gap = abs(by_graph - by_difference) / max(by_difference, 1e-30)
    if not gap < 1e-3:
        yield wrong(
            f"the gradient is {by_graph:.4g} along a random direction, a finite difference {by_difference:.4g}."
        )
    return f"finite at equal points, and equal to a finite difference elsewhere, to {gap:.0e}"


def close(p: Probe) -> Verdicts:
    """Check close points: as close as a guided image comes to its target, and with as many entries as features have."""
    x = 1 + draw((4, 2000), 31)
    y = x + 3e-4 * draw((4, 2000), 32)
    kernel = p.kernel.fit(x)
    exact = kernel.distance(x.double(), y.double()).diagonal()
    gap = ((kernel.distance(x, y).diagonal() - exact).abs() / exact.clamp_min(1e-12)).max().item()
    if not gap < 0.05:
        yield warn(
            f"in float32 the distance of close points is off by {gap:.0%}; override squared_distance with a form that does "
            "not subtract large numbers."
        )
    return f"close points keep their distance in float32, to {gap:.0e}"


CHECKS = {
    "fit": fit,
    "shapes": shapes,
    "symmetric": symmetric,
    "positive": positive,
    "diagonal": diagonal,
    "zero": zero,
    "triangle": triangle,
    "consistent": consistent,
    "gradient": gradient,
    "close points": close,
}


def findings(kernel: Kernel) -> Iterator[Finding]:
    """The findings of all checks. Each finding comes as soon as it is made."""
    return run(CHECKS, Probe(kernel))
