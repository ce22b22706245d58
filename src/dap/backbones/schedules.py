"""Noise schedules: how much of the data and how much of the noise is in x_t = alpha(t) x_0 + sigma(t) eps.

There are two families. Variance-preserving schedules (DDPM; DiT, Stable Diffusion) have alpha² + sigma² = 1 and whole timesteps
t = 0 … T − 1. Flow matching (Liu et al. 2023; Esser et al. 2024, Stable Diffusion 3) has alpha = 1 − sigma and a real time
t = T · sigma. SiT (Ma et al. 2024) has flows on other paths too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError

Time = int | float
"""A timestep of the training schedule: whole for variance-preserving schedules, real for flows."""


Predicts = Literal["eps", "velocity", "x0"]
"""What the output of a denoiser is: the noise, the velocity of the schedule's family, or the clean data."""


KINDS: dict[str, Predicts] = {"epsilon": "eps", "v_prediction": "velocity", "sample": "x0"}
"""diffusers' names of what a denoiser on a variance-preserving schedule predicts."""


def predicts_of(word: str) -> Predicts:
    """What a denoiser predicts, by a word of ours or of diffusers.

    Raises:
        DapError: the word is neither, for a guess would give images of something else.
    """
    known: dict[str, Predicts] = {"eps": "eps", "velocity": "velocity", "x0": "x0", **KINDS}
    if word not in known:
        raise DapError(
            f"A backbone cannot predict {word!r}; say 'eps', 'velocity' or 'x0', or as diffusers does {', '.join(KINDS)}."
        )
    return known[word]


class Schedule(ABC):
    """How much data and how much noise there is at every time of a backbone."""

    @abstractmethod
    def level(self, t: Time) -> tuple[float, float]:
        """(alpha, sigma) at timestep t."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything in which two schedules of the same kind can differ, as JSON values."""

    @abstractmethod
    def velocity(self, x: Tensor, t: Time, velocity: Tensor) -> tuple[Tensor, Tensor | None]:
        """(eps, x_0) of a predicted velocity. x_0 is None if `eps_to_x0` gives the same x_0."""

    def read(self, predicts: Predicts, x: Tensor, t: Time, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The noise that a denoiser's output stands for, and the x_0 if the output gives it better than `eps_to_x0`.

        Args:
            predicts: the kind of the output, which `predicts_of` checks.
            x: x_t, (B, C, *spatial).
            t: the time.
            output: the output of the denoiser, (B, C, *spatial).

        Returns:
            (eps, x_0), both (B, C, *spatial); x_0 may be None.
        """
        predicts = predicts_of(predicts)
        if predicts == "eps":
            return output, None
        if predicts == "velocity":
            return self.velocity(x, t, output)
        alpha, sigma = self.level(t)
        return (x - alpha * output) / sigma, output

    def eps_to_x0(self, x: Tensor, t: Time, eps: Tensor) -> Tensor:
        """The x_0 that belongs to a predicted noise, (x − sigma · eps) / alpha."""
        alpha, sigma = self.level(t)
        return (x - sigma * eps) / alpha


@dataclass(frozen=True, eq=False)
class VariancePreserving(Schedule):
    """A DDPM schedule.

    Args:
        alphas_cumprod: abar_t for t = 0 … T − 1, a tensor (T,) in float32. The values fall with t and are above 0; only that of a
            `ZeroTerminal` ends at 0.
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

    def velocity(self, x: Tensor, t: Time, velocity: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.velocity_to_eps(x, t, velocity), None

    @staticmethod
    def from_betas(start: float, end: float, steps: int, shape: str = "linear") -> VariancePreserving:
        """The schedule of `steps` betas from start to end.

        Args:
            start, end: the first and the last beta.
            steps: T.
            shape: "linear" (evenly spaced), "scaled_linear" (even square roots) or "squaredcos_cap_v2", the cosine of Nichol &
                Dhariwal (2021, eq. 17), which has its own betas: abar(t) = cos²((t/T + 0.008) / 1.008 · π/2), no beta above
                0.999.

        Raises:
            DapError: the shape has another name.
        """
        if shape == "linear":
            beta = torch.linspace(start, end, steps, dtype=torch.float64)
        elif shape == "scaled_linear":
            beta = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
        elif shape == "squaredcos_cap_v2":
            at = torch.arange(steps + 1, dtype=torch.float64) / steps
            abar = ((at + 0.008) / 1.008 * math.pi / 2).cos().square()
            beta = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
        else:
            known = "linear, scaled_linear and squaredcos_cap_v2"
            raise DapError(f"The noise schedule {shape!r} is not supported; {known} are.")
        return VariancePreserving((1 - beta).cumprod(0).float())

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> VariancePreserving:
        """The schedule in the config of a diffusers scheduler.

        Raises:
            DapError: the schedule is of a kind that is not supported.
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


class ZeroTerminal(VariancePreserving):
    """A schedule whose last x_t is noise alone, alpha(T − 1) = 0 (Lin et al. 2024), for weights that predict velocities.

    There eps = x says nothing of x_0, so x_0 = alpha · x − sigma · v is read from the velocity.
    """

    def velocity(self, x: Tensor, t: Time, velocity: Tensor) -> tuple[Tensor, Tensor | None]:
        alpha, sigma = self.level(t)
        return self.velocity_to_eps(x, t, velocity), alpha * x - sigma * velocity

    @staticmethod
    def shifted(schedule: VariancePreserving, by: float) -> ZeroTerminal:
        """The schedule of CogVideoX (Yang et al. 2024), as diffusers' schedulers of it compute it.

        abar' = abar / (s + (1 − s) · abar) divides the ratio of signal to noise by s. Then √abar' is moved and stretched, so that
        it ends at 0 and begins where it began (Lin et al. 2024, algorithm 1).

        Args:
            schedule: the schedule of the betas.
            by: s, above 0.
        """
        abar = schedule.alphas_cumprod.double()
        root = (abar / (by + (1 - by) * abar)).sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return ZeroTerminal(root.square().float())


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: x_t = (1 − sigma) x_0 + sigma eps with sigma = t / steps, and velocity v = eps − x_0.

    Args:
        steps: T, the time at which x is pure noise.
        shift: moves sampling grids towards noise: sigma' = shift · sigma / (1 + (shift − 1) · sigma).
        even: whether the steps of a run are even before the shift, 1, 1 − 1/n, … 1/n, as in Flux. Else the last is at the
            schedule's first time, as in diffusers' scheduler.
        terminal: the sigma that the last step of a run begins at (LTX-Video). The shifted grid is stretched to it. None: it is
            not stretched.
        dynamic: whether the shift was computed from the number of tokens. diffusers then shifts the schedule's first time once,
            and otherwise twice.
    """

    steps: int = 1000
    shift: float = 1.0
    even: bool = False
    terminal: float | None = None
    dynamic: bool = False

    def level(self, t: Time) -> tuple[float, float]:
        sigma = t / self.steps
        return 1 - sigma, sigma

    def settings(self) -> dict[str, Any]:
        said = {"even": self.even, "dynamic": self.dynamic, "terminal": self.terminal}
        return {"steps": self.steps, "shift": self.shift, **{name: value for name, value in said.items() if value}}

    def velocity(self, x: Tensor, t: Time, velocity: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.velocity_to_eps(x, t, velocity), self.velocity_to_x0(x, t, velocity)

    def velocity_to_eps(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """eps = x + (1 − sigma) · v."""
        return x + (1 - t / self.steps) * velocity

    def velocity_to_x0(self, x: Tensor, t: Time, velocity: Tensor) -> Tensor:
        """x_0 = x − sigma · v. This also holds where alpha is 0 and eps says nothing of x_0."""
        return x - t / self.steps * velocity

    def slopes(self, t: Time) -> tuple[float, float]:
        """The derivatives of alpha and sigma by τ = t / steps. The velocity is alpha' x_0 + sigma' eps."""
        del t
        return -1.0, 1.0

    def shifted(self, tau: float) -> float:
        """The place of an even grid's τ in [0, 1] on the shifted grid."""
        return self.shift * tau / (1 + (self.shift - 1) * tau)

    def _ended(self, sigmas: list[float]) -> list[float]:
        """Times of falling sigmas, stretched so that the last one is `terminal`."""
        wide = 1.0 if self.terminal is None else (1 - self.terminal) / (1 - sigmas[-1])
        return [self.steps * (1 - (1 - sigma) * wide) if wide != 1 else self.steps * sigma for sigma in sigmas]

    def times(self, steps: int) -> list[float]:
        """The falling times of a run of so many steps, without the end 0. They are those of diffusers' Euler scheduler."""
        if self.even:
            return self._ended([self.shifted(1 - i / steps) for i in range(steps)])
        if self.dynamic:
            last = 1 / self.steps
            return self._ended([self.shifted(1 - (1 - last) * i / (steps - 1)) for i in range(steps)])
        from diffusers import FlowMatchEulerDiscreteScheduler

        ends: dict[str, Any] = {} if self.terminal is None else {"shift_terminal": self.terminal}
        grid: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.steps, shift=self.shift, **ends)
        grid.set_timesteps(steps)
        return [float(t) for t in grid.timesteps]

    @staticmethod
    def from_config(config: Mapping[str, Any], tokens: int, *, even: bool = False) -> Flow:
        """The schedule in the config of a diffusers scheduler of flows.

        Args:
            config: the config. Schedulers of both families call the shift `flow_shift`.
            tokens: how many image tokens the transformer has. A dynamic shift depends on it.
            even: see the class.
        """
        shift, dynamic = config.get("shift", config.get("flow_shift", 1.0)), bool(config.get("use_dynamic_shifting"))
        if dynamic:
            low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            start, end = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
            mu = start + (end - start) * (tokens - low) / (high - low)
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        return Flow(
            config["num_train_timesteps"], shift, even, config.get("shift_terminal") or None, dynamic and not even
        )


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


def steps_of(schedule: Schedule) -> int:
    """How many timesteps the training schedule has: t runs from 0 to this number, for a flow including it."""
    return schedule.steps if isinstance(schedule, Flow) else len(schedule)  # pyright: ignore[reportArgumentType]
