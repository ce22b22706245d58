"""Flows on the paths of SiT (Ma et al. 2024): the straight line, the cosine and the variance-preserving path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dap.backbones.schedules import Flow, Time

PathName = Literal["linear", "gvp", "vp"]

BETAS = (0.1, 20.0)
"""The rates of noise at the data and at the noise of the variance-preserving path (Song et al. 2021)."""


@dataclass(frozen=True)
class Interpolant(Flow):
    """x_τ = alpha(τ) x_0 + sigma(τ) eps with τ = t / steps from 0 (data) to 1 (noise), and the velocity dx/dτ.

    The grid of times of a run falls evenly from T to 0 before the shift, as in the authors' samplers.

    Args:
        steps, shift, even: as of a `Flow`.
        path: "linear" has alpha = 1 − τ and sigma = τ. "gvp" has cos(πτ/2) and sin(πτ/2); REPA calls it "cosine". "vp" has
            log alpha = −τ²(b₁ − b₀)/4 − τ b₀/2 with the rates b₀ = 0.1 and b₁ = 20, and sigma² = 1 − alpha².
    """

    even: bool = True
    path: PathName = "linear"

    def level(self, t: Time) -> tuple[float, float]:
        tau = t / self.steps
        if self.path == "linear":
            return 1 - tau, tau
        if self.path == "gvp":
            # At 1 the cosine is 6e-17 in floating point, and "no data" should be 0.
            return (0.0 if tau == 1 else math.cos(math.pi * tau / 2)), math.sin(math.pi * tau / 2)
        first, last = BETAS
        log_alpha = -(tau**2) * (last - first) / 4 - tau * first / 2
        return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))

    def slopes(self, t: Time) -> tuple[float, float]:
        if self.path == "linear":
            return -1.0, 1.0
        (alpha, sigma), tau = self.level(t), t / self.steps
        if self.path == "gvp":
            return -math.pi / 2 * sigma, math.pi / 2 * alpha
        first, last = BETAS
        slope = -alpha * (tau * (last - first) + first) / 2
        # Noise enters as the square root of time, so at the data itself its slope has no bound.
        return slope, (-alpha * slope / sigma if sigma else math.inf)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "path": self.path}

    def velocity_to_eps(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """eps = (alpha · v − alpha' · x) / (alpha · sigma' − alpha' · sigma)."""
        if self.path == "linear":
            return super().velocity_to_eps(x, t, velocity)
        (alpha, sigma), (slope, _) = self.level(t), self.slopes(t)
        if self.path == "gvp":
            return (alpha * velocity - slope * x) / (math.pi / 2)
        return sigma * x - alpha * sigma / slope * velocity  # because there sigma' = −alpha · alpha' / sigma

    def velocity_to_x0(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """x_0 = (sigma' · x − sigma · v) / (alpha · sigma' − alpha' · sigma)."""
        if self.path == "linear":
            return super().velocity_to_x0(x, t, velocity)
        (alpha, sigma), (slope, rise) = self.level(t), self.slopes(t)
        if self.path == "gvp":
            return (rise * x - sigma * velocity) / (math.pi / 2)
        return alpha * x + sigma**2 / slope * velocity
