r"""Manifold guidance (ManifoldGD): draw x_t towards a plane fitted to the noised neighbourhood of its slot's mode.

Roy, Lee, Chakraborty & Lokhande, "ManifoldGD: Training-Free Hierarchical Manifold Guidance for Diffusion-Based Dataset
Distillation", CVPR 2026, arXiv 2602.23295, as its released code does it.

    \hat n = -(I - U U^T)(x_t - \mu) / \| \cdot \|,    push = scale \cdot tanh(d / bandwidth) \cdot \hat n

The cloud is a set of points around the mode, noised to x_t's level. \mu is the mean of the k points nearest to x_t, U
holds the leading principal directions of these points, and d is the distance from x_t to the nearest point. The paper
adds this push to MGD3's push: `Modes(…) + Manifold(…)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.base import Guidance, State
from dap.guidance.modes import Centres, targets

INNER = 0.1
"""The radius at which the evenly spaced half of a cloud begins. It ends at the current radius, which may be smaller."""


def normal_to_plane(x: Float[Tensor, " d"], points: Float[Tensor, "k d"], tangent: int) -> Float[Tensor, " d"]:
    """The vector from x straight to a plane. The plane goes through the points' mean, along their leading principal directions.

    The directions are the right singular vectors of the k centred points. These are the eigenvectors of the points'
    D × D covariance (with or without a ridge), but they cost only a k × D decomposition.

    Args:
        x: the start of the vector.
        points: at least tangent + 1 points.
        tangent: the dimension of the plane.
    """
    mean = points.mean(0)
    directions = torch.linalg.svd(points - mean, full_matrices=False).Vh[:tangent]
    away = x - mean
    return directions.T @ (directions @ away) - away


@dataclass(frozen=True)
class Manifold(Guidance):
    """A push of at most `scale` straight to the local tangent plane.

    Args:
        centres: the modes.
        scale: the length of a full push, 0.1 in the paper. 0 gives the unguided sample bit for bit.
        radius: the radius of the cloud of clean points around a mode.
        bandwidth: beyond this distance to the nearest point the push is nearly full.
        tangent: the dimension of the plane.
        neighbours: the number of noised points to which the plane is fitted.
        points: the number of points in a cloud.
        widening: the factor on the radius at the first step, 1 or more.
        warm: the fraction of the run in which the factor falls exponentially from `widening` to 1.

    Raises:
        DapError: a number is out of its range.
    """

    centres: Centres
    scale: float = 0.1
    radius: float = 0.1
    bandwidth: float = 0.2
    tangent: int = 3
    neighbours: int = 12
    points: int = 300
    widening: float = 2.0
    warm: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise DapError(f"scale must be a finite number >= 0, not {self.scale}.")
        if not (self.radius > 0 and self.bandwidth > 0 and self.widening >= 1 and 0 <= self.warm <= 1):
            raise DapError("A manifold needs radius > 0, bandwidth > 0, widening >= 1 and warm from 0 to 1.")
        if not 1 <= self.tangent < self.neighbours <= self.points:
            raise DapError(
                f"A plane of dimension {self.tangent} through {self.neighbours} neighbours of {self.points} points cannot "
                "be fitted; give 1 <= tangent < neighbours <= points."
            )

    def begin(self, labels: Sequence[int]) -> None:
        if self.scale > 0:
            self.centres.begin(labels)

    def active(self, index: int, steps: int) -> bool:
        return self.scale > 0

    def __call__(self, state: State) -> Tensor:
        centres = targets(self.centres, state)
        push = torch.empty_like(centres)
        for row, centre in enumerate(centres):
            label, slot = int(state.labels[row]), int(state.slots[row])
            seed = self.centres.seed(label, slot, "cloud", state.index)
            cloud = self.cloud(centre.flatten(), state, torch.Generator().manual_seed(seed))
            x = state.x[row].detach().flatten()
            distance, nearest = (cloud - x).norm(dim=1).topk(self.neighbours, largest=False)
            way = normal_to_plane(x.float(), cloud[nearest].float(), self.tangent)
            length = self.scale * torch.tanh(distance[0] / self.bandwidth)
            push[row] = (length * way / (way.norm() + 1e-8)).view_as(centre)
        return push

    def cloud(self, centre: Float[Tensor, " d"], state: State, generator: torch.Generator) -> Float[Tensor, "points d"]:
        """Points in all directions around a mode, noised to the level of x_t."""
        radius = self.radius_at(state.progress)
        shape = (self.points, centre.numel())
        direction = torch.randn(shape, generator=generator)
        even = torch.linspace(INNER, radius, self.points // 2)
        radii = torch.cat([even, radius * torch.rand(self.points - len(even), generator=generator)])
        clean = centre + (radii[:, None] * direction / direction.norm(dim=1, keepdim=True)).to(centre)
        return state.alpha * clean + state.sigma * torch.randn(shape, generator=generator).to(centre)

    def radius_at(self, progress: float) -> float:
        """The radius of the clouds when a fraction of the run, 0 … 1, is done."""
        left = max(0.0, 1 - progress / self.warm) if self.warm else 0.0
        return self.radius * (1 + (self.widening - 1) * (math.exp(left) - 1) / (math.e - 1))
