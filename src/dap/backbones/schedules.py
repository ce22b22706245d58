"""Noise schedules: how much of the data and how much noise x_t holds, x_t = alpha(t) x_0 + sigma(t) eps.

Two families. Variance-preserving (DDPM; DiT, Stable Diffusion): alpha² + sigma² = 1 over the whole-number timesteps 0 … T − 1.
Flow matching (Liu et al. 2023; Esser et al. 2024, Stable Diffusion 3): alpha = 1 − sigma, with a real time t = T · sigma.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError

Time = int | float
"""A timestep of the training schedule: whole for variance-preserving schedules, real for flows."""


class Schedule(ABC):
    """What `Backbone.schedule` says of its noise."""

    @abstractmethod
    def level(self, t: Time) -> tuple[float, float]:
        """(alpha, sigma) at timestep t."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that tells one schedule of the kind from another, as JSON."""

    def eps_to_x0(self, x: Tensor, t: Time, eps: Tensor) -> Tensor:
        """The x_0 that a noise prediction means, (x − sigma · eps) / alpha."""
        alpha, sigma = self.level(t)
        return (x - sigma * eps) / alpha


@dataclass(frozen=True, eq=False)
class VariancePreserving(Schedule):
    """A DDPM schedule.

    Args:
        alphas_cumprod: abar_t for t = 0 … T − 1, (T,) float32, falling and above 0.
    """

    alphas_cumprod: Float[Tensor, " t"]

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def level(self, t: Time) -> tuple[float, float]:
        abar = self.alphas_cumprod[int(t)]
        return abar.sqrt().item(), (1 - abar).sqrt().item()

    def settings(self) -> dict[str, Any]:
        return {"alphas_cumprod": self.alphas_cumprod.tolist()}

    def velocity_to_eps(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """eps = alpha · v + sigma · x of a v-prediction, v = alpha · eps − sigma · x_0 (Salimans & Ho 2022)."""
        alpha, sigma = self.level(t)
        return alpha * velocity + sigma * x

    @staticmethod
    def from_betas(start: float, end: float, steps: int, shape: str = "linear") -> VariancePreserving:
        """The schedule of `steps` betas from start to end: "linear", or "scaled_linear" in their square roots.

        Raises:
            DapError: another shape.
        """
        if shape == "linear":
            beta = torch.linspace(start, end, steps, dtype=torch.float64)
        elif shape == "scaled_linear":
            beta = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
        else:
            raise DapError(f"The noise schedule {shape!r} is not supported; linear and scaled_linear are.")
        return VariancePreserving((1 - beta).cumprod(0).float())

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> VariancePreserving:
        """The schedule in the config of a diffusers scheduler.

        Raises:
            DapError: a kind of schedule that is not supported.
        """
        if config.get("trained_betas") is not None:
            beta = torch.tensor(config["trained_betas"], dtype=torch.float64)
            return VariancePreserving((1 - beta).cumprod(0).float())
        if config.get("rescale_betas_zero_snr"):
            raise DapError(
                "A schedule rescaled to zero terminal signal is not supported: its first x_t says nothing of eps."
            )
        return VariancePreserving.from_betas(
            config["beta_start"],
            config["beta_end"],
            config["num_train_timesteps"],
            config.get("beta_schedule", "linear"),
        )


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: x_t = (1 − sigma) x_0 + sigma eps with sigma = t / steps, and velocity v = eps − x_0.

    Args:
        steps: T, the time at which x is pure noise.
        shift: how sampling grids are pushed towards noise, sigma' = shift · sigma / (1 + (shift − 1) · sigma).
    """

    steps: int = 1000
    shift: float = 1.0

    def level(self, t: Time) -> tuple[float, float]:
        sigma = t / self.steps
        return 1 - sigma, sigma

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "shift": self.shift}

    def velocity_to_eps(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """eps = x + (1 − sigma) · v."""
        return x + (1 - t / self.steps) * velocity

    def velocity_to_x0(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """x_0 = x − sigma · v, also where alpha is 0 and eps says nothing of x_0."""
        return x - t / self.steps * velocity
