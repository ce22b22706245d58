"""Distances of all pairs whose gradient takes little memory.

The gradient that torch takes of `torch.cdist` on a GPU holds n × m × d numbers at once: 11.8 GB for 100 images beside 1,000 real
ones of 29,000 features. Here it is taken for a few features at a time. Every sum is the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST = 2**27
"""From how many numbers n × m × d on, on a GPU, the gradient is taken in parts: half a GiB of float32."""

PART = 2**24
"""How many numbers a part has, at most, if it has more than one feature."""


def distances(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """‖x_i − y_j‖_p (n, m) of the rows of x (n, d) and y (m, d), computed as the norm of a difference; p is 1 or 2.

    The gradient at x_i = y_j is 0. It can be taken once.
    """
    if (x.requires_grad or y.requires_grad) and x.is_cuda and len(x) * len(y) * x.shape[1] > MOST:
        return in_parts(x, y, p)
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def in_parts(x: Tensor, y: Tensor, p: float = 2.0, part: int = PART) -> Tensor:
    """`distances`, whose gradient holds no more than `part` numbers at once, or those of one feature."""
    return _Distances.apply(x, y, p, part)  # pyright: ignore[reportReturnType]


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, p: float, part: int) -> Tensor:
        found = torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, found)
        ctx.p, ctx.part = p, part
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, found = ctx.saved_tensors
        # d‖v‖₂ = v/‖v‖ and d‖v‖₁ = sign v; where v is 0 the gradient is 0.
        weight = gradient if ctx.p == 1 else torch.where(found > 0, gradient / found, 0)
        of_x, of_y = (
            torch.empty_like(v) if need else None for v, need in zip((x, y), ctx.needs_input_grad, strict=False)
        )
        size = max(1, ctx.part // max(1, found.numel()))
        for start in range(0, x.shape[1], size):
            some = slice(start, start + size)
            gap = x[:, None, some] - y[None, :, some]
            gap = (gap.sign_() if ctx.p == 1 else gap).mul_(weight[..., None])
            if of_x is not None:
                of_x[:, some] = gap.sum(1)
            if of_y is not None:
                of_y[:, some] = -gap.sum(0)
        return of_x, of_y, None, None
