"""Distances of all pairs: the gradient in parts is torch's own, and that of a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dap import kernels
from dap.kernels import pairs

NAMES = (
    "linear",
    "polynomial",
    "cosine",
    "rbf(bandwidth=2)",
    "laplacian(bandwidth=3)",
    "linear + 0.5 * rbf(bandwidth=1)",
)


def drawn(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_gradients(of, x, y, weight):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = of(x, y)
    return value.detach(), *torch.autograd.grad((value * weight).sum(), (x, y))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 60),
    st.sampled_from([1.0, 2.0]),
    st.integers(0, 99),
)
def test_the_gradient_in_parts_is_that_of_torch(n, m, d, part, p, seed):
    x, y, weight = drawn(n, d, seed), drawn(m, d, seed + 1), drawn(n, m, seed + 2)
    y[0] = x[0]  # the norm has no gradient there, and 0 stands for it
    plain = with_gradients(
        lambda a, b: torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist"), x, y, weight
    )
    mine = with_gradients(lambda a, b: pairs.in_parts(a, b, p, part), x, y, weight)
    assert mine[0].equal(plain[0])
    for a, b in zip(mine[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    loop = torch.zeros_like(x)
    for i in range(n):
        for j in range(m):
            gap = x[i] - y[j]
            if gap.any():
                loop[i] += weight[i, j] * (gap.sign() if p == 1 else gap / gap.norm())
    torch.testing.assert_close(mine[1], loop, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_the_gradient_in_parts_is_that_of_differences(p):
    x, y = drawn(3, 4, 0).requires_grad_(), drawn(5, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pairs.in_parts(a, b, p, 7), (x, y))
    only = torch.autograd.grad(pairs.in_parts(x.detach(), y, p, 7).sum(), y)[0]
    assert only.equal(torch.autograd.grad(pairs.in_parts(x, y, p, 7).sum(), y)[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_has_the_same_distance_in_parts(name, monkeypatch):
    kernel = kernels.parse(name)
    x, y, weight = drawn(4, 6, 3, torch.float32), drawn(5, 6, 4, torch.float32), drawn(4, 5, 5, torch.float32)
    plain = with_gradients(kernel.distance, x, y, weight)
    asked = []

    def in_parts(a, b, p=2.0):
        asked.append(p)
        return pairs.in_parts(a, b, p, 10)

    monkeypatch.setattr(kernels, "distances", in_parts)
    mine = with_gradients(kernel.distance, x, y, weight)
    assert asked and mine[0].equal(plain[0])
    for a, b in zip(mine[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_part_holds_no_more_numbers_than_it_may(monkeypatch):
    seen = []
    really = torch.Tensor.mul_
    monkeypatch.setattr(torch.Tensor, "mul_", lambda self, other: seen.append(self.numel()) or really(self, other))
    x = drawn(10, 30, 0).requires_grad_()
    pairs.in_parts(x, drawn(20, 30, 1), 2.0, 600).sum().backward()
    assert seen == [600] * 10  # 10 x 20 pairs of 3 features


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU takes n x m x d numbers")
def test_memory_on_a_gpu_is_bounded():
    x = torch.randn(100, 20_000, device="cuda", requires_grad=True)
    y = torch.randn(500, 20_000, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.Linear().distance(x, y).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 1e9 < 4 * 100 * 500 * 20_000
