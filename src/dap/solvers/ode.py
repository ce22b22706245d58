"""Heun's method and Euler–Maruyama, the fixed-step samplers of SiT, REPA and EDM."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from dap.backbones.schedules import Flow, Schedule, Time
from dap.base.seeding import normal
from dap.solvers.base import Generators, Solver

LAST = 0.04
"""The part of the schedule that the last step of the reverse SDE takes, as in SiT and REPA."""


class Heun(Solver):
    """Heun's second-order method on the probability-flow ODE (Karras et al. 2022, algorithm 1; SiT and REPA for flows).

    An interval from t to s takes two passes: one at t, whose slope d gives a first x_s as Euler's method does, and one at this
    x_s, whose slope d' gives x_s + (d' − d) · length / 2. The last interval takes one pass. `steps` counts passes; if it is even,
    the first interval takes one pass too.

    On a flow the ODE is dx/dτ = alpha' x_0 + sigma' eps. On other schedules it is d(x/alpha) / d(sigma/alpha) = eps.

    A push is added to the first x_s. The second pass corrects the slope alone, so it keeps the push whole, and asks no guidance.

    Args:
        schedule: the schedule.
        steps: the number of passes.
        grid: the times at which intervals begin, in falling order, `intervals(steps)` of them.
        clip: the largest size of a value of x_0, or None.
    """

    into_eps = False

    def __init__(self, schedule: Schedule, steps: int, grid: Sequence[Time], clip: float | None = None) -> None:
        self.schedule, self.clip = schedule, clip
        times: list[Time] = []
        second: list[bool] = []
        for i, t in enumerate(grid):
            twice = i > 1 or (i == 1 and steps % 2 == 1)
            times += [t, t] if twice else [t]
            second += [True, False] if twice else [False]
        self._second = tuple(second)
        self._first: tuple[float, Tensor] | None = None
        """The length of the interval whose second pass comes next, and the slope of its first pass."""
        self._run_over(schedule, times)

    @staticmethod
    def intervals(steps: int) -> int:
        """How many intervals so many passes take."""
        return steps // 2 + 1

    def pushed(self, index: int) -> bool:
        return not self._second[index]

    def _length(self, index: int) -> float:
        """The length of the interval that begins at a first pass, in the variable of the ODE and in the units of x."""
        if isinstance(self.schedule, Flow):
            after = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else 0.0
            return (after - self.timesteps[index]) / self.schedule.steps
        (alpha, sigma), (after, left) = self.levels[index], self.levels[index + 1]
        return left - after * sigma / alpha

    def _slope(self, index: int, x: Tensor, eps: Tensor, x0: Tensor) -> Tensor:
        alpha, sigma = self.levels[index]
        if isinstance(self.schedule, Flow):
            slope, rise = self.schedule.slopes(self.timesteps[index])
            return slope * x0 + rise * eps
        if self.clip is None:
            return eps
        return (x - alpha * x0.clamp(-self.clip, self.clip)) / sigma

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        slope = self._slope(index, x, eps, x0)
        if self._second[index]:
            if self._first is None:  # a run that begins here has nothing to correct
                return x
            length, before = self._first
            return x + length / 2 * (slope - before)
        length = self._length(index)
        self._first = length, slope
        if isinstance(self.schedule, Flow):
            return x + length * slope
        return self.levels[index + 1][0] / self.levels[index][0] * x + length * slope

    def per_eps(self, index: int) -> float:
        alpha, sigma = self.levels[index]
        length = self._length(index - 1) / 2 if self._second[index] else self._length(index)
        if not isinstance(self.schedule, Flow):
            return length
        slope, rise = self.schedule.slopes(self.timesteps[index])
        return length * (rise - slope * sigma / alpha)


class EulerMaruyama(Solver):
    """Euler–Maruyama on the reverse SDE of a flow, dx = [v − w/2 · score] dτ + √w dW with w = 2 sigma (Ma et al. 2024, eq. 10).

    With score = −eps / sigma a step of length h towards the data is x − h (v + eps) + √(2 sigma h) z. The times fall evenly from
    1 to 0.04 before the shift, and the last step to 0 has no noise, as in the code of SiT and of REPA.

    Args:
        schedule: the flow.
        steps: the number of passes.
    """

    def __init__(self, schedule: Flow, steps: int) -> None:
        self.schedule = schedule
        even = [1 - (1 - LAST) * i / (steps - 1) for i in range(steps)]
        self._run_over(schedule, [schedule.steps * schedule.shifted(tau) for tau in even])

    def _length(self, index: int) -> float:
        after = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else 0.0
        return (self.timesteps[index] - after) / self.schedule.steps

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        slope, rise = self.schedule.slopes(self.timesteps[index])
        mean = x - self._length(index) * (slope * x0 + (rise + 1) * eps)
        std = self.std(index, variance)
        return mean if std == 0 else mean + std * normal(x.shape[1:], gens, x)

    def std(self, index: int, variance: Tensor | None) -> float:
        del variance
        last = index + 1 == len(self.timesteps)
        return 0.0 if last else math.sqrt(2 * self.levels[index][1] * self._length(index))

    def per_eps(self, index: int) -> float:
        (alpha, sigma), (slope, rise) = self.levels[index], self.schedule.slopes(self.timesteps[index])
        return -self._length(index) * (rise + 1 - slope * sigma / alpha)
