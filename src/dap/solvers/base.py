"""What a solver is: a step from one noise level to the next, and what the sampling loop asks of it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dap.backbones.schedules import Schedule, Time

Generators = Sequence[torch.Generator]


class Solver(ABC):
    """A run of `len(timesteps)` steps. Every batch needs a new solver, because a solver may have a history.

    Attributes:
        timesteps: the times at which the backbone is asked, in falling order.
        levels: (alpha, sigma) at each of these times, and (1, 0) for the end.
        multistep: whether a step looks at earlier predictions, so that a push on x alone would be forgotten.
        into_eps: whether a push may go through eps.
    """

    timesteps: tuple[Time, ...]
    levels: tuple[tuple[float, float], ...]
    multistep: bool = False
    into_eps: bool = True

    def _run_over(self, schedule: Schedule, timesteps: Sequence[Time]) -> None:
        self.timesteps = tuple(timesteps)
        self.levels = (*map(schedule.level, self.timesteps), (1.0, 0.0))

    @abstractmethod
    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        """Take a step: x at the next level, (B, C, *spatial).

        Args:
            index: of the step, 0 … steps − 1. Steps are taken in order.
            x: x_t at `timesteps[index]`, (B, C, *spatial).
            eps: the predicted noise there.
            x0: the predicted x_0 there.
            variance: the raw learned-range variance, or None.
            gens: one generator for each image. A step draws from them only if it is stochastic.
        """

    @abstractmethod
    def per_eps(self, index: int) -> float:
        """The derivative ∂x_{t−1}/∂eps of the first-order step at fixed x_t."""

    def pushed(self, index: int) -> bool:
        """Whether a guidance is asked at a step. A solver that takes a step again from its end has no push of its own there."""
        del index
        return True

    def std(self, index: int, variance: Tensor | None) -> Tensor | float:
        """The standard deviation of x_{t−1} around its mean: that of q(x_{t−1} | x_t, x_0).

        It depends only on the two noise levels, so a deterministic solver has it too: an ancestral step between the two
        levels would draw noise of this size. Ancestral steps with a learned variance have the learned one, (B, C, *spatial).

        Args:
            index: of the step.
            variance: the raw learned-range variance, or None.
        """
        del variance
        return spread(self.levels, index)

    def preview(
        self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators
    ) -> Tensor:
        """What `step` would return. The step is not taken: neither the history nor a generator changes."""
        before = [generator.get_state() for generator in gens]
        try:
            return self._copy().step(index, x, eps, x0, variance, gens)
        finally:
            for generator, state in zip(gens, before, strict=True):
                generator.set_state(state)

    def _copy(self) -> Solver:
        return copy.copy(self)


def posterior_weight(levels: Sequence[tuple[float, float]], index: int) -> float:
    """The weight of x_0 in the mean of q(x_s | x_t, x_0), variance-preserving: (alpha_s² − alpha_t²) / (alpha_s sigma_t²)."""
    (alpha, sigma), (after, _) = levels[index], levels[index + 1]
    return (after**2 - alpha**2) / (after * sigma**2)


def spread(levels: Sequence[tuple[float, float]], index: int) -> float:
    """The standard deviation of q(x_s | x_t, x_0), for both families of schedules."""
    (alpha, sigma), (after, left) = levels[index], levels[index + 1]
    return left / sigma * math.sqrt(max(0.0, sigma**2 - (alpha * left / after) ** 2))
