"""Reverse-time solvers: each takes a step from x_t to a lower noise level, given the prediction at t.

| name | what | noise | history |
|---|---|---|---|
| ddpm | respaced ancestral sampling, learned variance where there is one; the paper's (diffusers' `DDPMScheduler`) | yes | no |
| ddim | Song et al. 2021 with eta; on a flow, eta = 0 is Euler's method on the probability-flow ODE | eta | no |
| dpm++2m | DPM-Solver++ 2M, Lu et al. 2022 (diffusers); on a flow with a straight path it is Sana's own sampler | no | yes |
| dpm++2m-sde | its stochastic form (diffusers) | yes | yes |
| unipc | Zhao et al. 2023 (diffusers) | no | yes |
| heun | Heun's method on the probability-flow ODE (SiT, REPA, EDM); a step of it takes two passes | no | one pass |
| sde | Euler–Maruyama on the reverse SDE with w(τ) = 2 sigma, for flows (SiT, REPA) | yes | no |
| lcm | multistep consistency sampling, Luo et al. 2023, algorithm 3: for weights that were distilled to it | yes | no |

A guidance pushes x_{t−1}. A multistep solver would forget this push, because its next step looks at earlier predictions. So its
push goes into eps: it is divided by `Solver.per_eps`, by which the solver's first-order step moves x_{t−1} per unit of eps. For a
solver without history both ways give the same step.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Flow, Schedule, VariancePreserving, steps_of
from dap.base.errors import DapError
from dap.base.registry import suggest
from dap.base.seeding import normal
from dap.choices import SOLVERS, SolverName
from dap.solvers.base import Generators, Solver, posterior_weight, spread
from dap.solvers.ode import EulerMaruyama, Heun

CONSISTENT = 50
"""How many timesteps latent consistency models are distilled on, evenly spaced."""


class Ancestral(Solver):
    """Respaced ancestral sampling as in the DiT lineage, by diffusers' `DDPMScheduler`.

    `steps` timesteps are spaced evenly from T − 1 to 0. Only the x_0 of a backbone with a `clip` is clipped. The variance is
    the learned-range one of Nichol & Dhariwal (2021) if the backbone predicts it.
    """

    def __init__(
        self, schedule: VariancePreserving, learned_variance: bool, steps: int, clip: float | None = None
    ) -> None:
        from diffusers import DDPMScheduler

        self.scheduler: Any = DDPMScheduler(
            num_train_timesteps=len(schedule),
            trained_betas=_betas(schedule),
            variance_type="learned_range" if learned_variance else "fixed_small",
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
            timestep_spacing="linspace",
        )
        self.scheduler.set_timesteps(steps)
        self._run_over(schedule, [int(t) for t in self.scheduler.timesteps])

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        output: Any = eps if variance is None else torch.cat([eps, variance], dim=1)
        return self.scheduler.step(output, self.scheduler.timesteps[index], x, generator=list(gens)).prev_sample

    def std(self, index: int, variance: Tensor | None) -> Tensor | float:
        smallest = spread(self.levels, index)
        if variance is None or smallest == 0:
            return smallest
        alpha, after = self.levels[index][0], self.levels[index + 1][0]
        largest = math.sqrt(1 - (alpha / after) ** 2)
        return smallest * (largest / smallest) ** ((variance + 1) / 2)

    def per_eps(self, index: int) -> float:
        alpha, sigma = self.levels[index]
        return -posterior_weight(self.levels, index) * sigma / alpha


class Ddim(Solver):
    """x_s = alpha_s x_0 + √(sigma_s² − v²) eps + v z (Song, Meng & Ermon 2021, eq. 12), for both families of schedules.

    v = eta · sigma_s/sigma_t · √(sigma_t² − alpha_t² sigma_s²/alpha_s²) is eta times the spread of q(x_s | x_t, x_0), so eta = 1
    is ancestral sampling with the small variance. On a flow, eta = 0 is Euler's method on the probability-flow ODE, and eta > 0
    is a stochastic sampler with the same marginals. (`stochastic_sampling` of diffusers is something else: it draws all the
    noise anew at every step. On an exact Gaussian it loses a third of the spread, however many steps are taken.)

    The step is written here because diffusers' `DDIMScheduler` takes t − T/steps as the next timestep. This is not the next
    one of its own grid unless steps divides T. The timesteps here are "trailing": they fall from T − 1 by T/steps.
    """

    def __init__(self, schedule: Schedule, steps: int, eta: float = 0.0, clip: float | None = None) -> None:
        self.eta, self.clip = eta, clip
        if isinstance(schedule, Flow):
            self._run_over(schedule, schedule.times(steps))
        else:
            assert isinstance(schedule, VariancePreserving)
            n = len(schedule)
            self._run_over(schedule, [round(n - i * n / steps) - 1 for i in range(steps)])

    def _spread(self, index: int) -> float:
        return self.eta * spread(self.levels, index)

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        (after, left), spread = self.levels[index + 1], self._spread(index)
        x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
        moved = after * x0 + math.sqrt(max(0.0, left**2 - spread**2)) * eps
        return moved if spread == 0 else moved + spread * normal(x.shape[1:], gens, x)

    def per_eps(self, index: int) -> float:
        (alpha, sigma), (after, left) = self.levels[index], self.levels[index + 1]
        return math.sqrt(max(0.0, left**2 - self._spread(index) ** 2)) - after * sigma / alpha


class Multistep(Solver):
    """DPM-Solver++ 2M, its stochastic form, or UniPC, by diffusers. A learned variance is not used.

    On a flow (DPM-Solver++ 2M alone) the noise levels are diffusers' for such a flow, σ' = shift · σ / (1 + (shift − 1) · σ) for
    even σ from 1 − 1/T down to 0. As there, the network is asked at the whole times below T · σ'.
    """

    multistep = True

    def __init__(self, name: str, schedule: VariancePreserving | Flow, steps: int, clip: float | None = None) -> None:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        self.flow = isinstance(schedule, Flow)
        common: dict[str, Any] = {"num_train_timesteps": steps_of(schedule), "final_sigmas_type": "zero"}
        if isinstance(schedule, Flow):
            common |= {"use_flow_sigmas": True, "flow_shift": schedule.shift, "prediction_type": "flow_prediction"}
        else:
            common |= {"trained_betas": _betas(schedule), "timestep_spacing": "linspace"}
        self.stochastic, self.clip = name == "dpm++2m-sde", clip
        if name == "unipc":
            self.scheduler: Any = UniPCMultistepScheduler(**common)
        else:
            kind = "sde-dpmsolver++" if self.stochastic else "dpmsolver++"
            self.scheduler = DPMSolverMultistepScheduler(**common, algorithm_type=kind)
        self.scheduler.set_timesteps(steps)
        self._run_over(schedule, [int(t) for t in self.scheduler.timesteps])
        if self.flow:
            self.levels = tuple((1 - sigma, sigma) for sigma in self.scheduler.sigmas.tolist())

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        if self.flow:
            if self.scheduler.step_index is None:  # two steps of a long run may have the same whole time
                self.scheduler.set_begin_index(index)
            return self.scheduler.step(eps - x0, self.scheduler.timesteps[index], x).prev_sample
        if self.clip is not None:  # these solvers know no clipping, so they are given the noise of the clipped x_0
            alpha, sigma = self.levels[index]
            eps = (x - alpha * x0.clamp(-self.clip, self.clip)) / sigma
        options = {"variance_noise": normal(x.shape[1:], gens, x)} if self.stochastic else {}
        return self.scheduler.step(eps, self.scheduler.timesteps[index], x, **options).prev_sample

    def per_eps(self, index: int) -> float:
        (alpha, sigma), (after, left) = self.levels[index], self.levels[index + 1]
        # The first-order step of the stochastic form has the mean of the ancestral step; that of the others is DDIM's.
        return (
            -posterior_weight(self.levels, index) * sigma / alpha if self.stochastic else left - after * sigma / alpha
        )

    def _copy(self) -> Solver:
        twin = copy.copy(self)
        twin.scheduler = copy.copy(self.scheduler)
        for history in ("model_outputs", "timestep_list"):
            if hasattr(twin.scheduler, history):
                setattr(twin.scheduler, history, list(getattr(twin.scheduler, history)))
        return twin


class Consistency(Solver):
    """x_s = alpha_s f(x_t) + sigma_s z, with fresh noise z at every step but the last (Luo et al. 2023, LCM, algorithm 3).

    f(x_t) = c_out x_0 + c_skip x_t is the consistency function, with c_skip = 0.25 / (τ² + 0.25), c_out = τ / √(τ² + 0.25) and
    τ = 10 t. The timesteps are those of diffusers' `LCMScheduler`, a part of the 50 that such weights were distilled on.
    """

    def __init__(self, schedule: VariancePreserving, steps: int) -> None:
        apart = len(schedule) // CONSISTENT
        known = [k * apart - 1 for k in range(CONSISTENT, 0, -1)]
        self._run_over(schedule, [known[i * CONSISTENT // steps] for i in range(steps)])

    def _weights(self, index: int) -> tuple[float, float]:
        """(c_skip, c_out)."""
        scaled = 10.0 * self.timesteps[index]
        return 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)

    def step(self, index: int, x: Tensor, eps: Tensor, x0: Tensor, variance: Tensor | None, gens: Generators) -> Tensor:
        (after, left), (skip, out) = self.levels[index + 1], self._weights(index)
        moved = after * (out * x0 + skip * x)
        return moved if left == 0 else moved + left * normal(x.shape[1:], gens, x)

    def per_eps(self, index: int) -> float:
        alpha, sigma = self.levels[index]
        return -self.levels[index + 1][0] * self._weights(index)[1] * sigma / alpha

    def std(self, index: int, variance: Tensor | None) -> Tensor | float:
        return self.levels[index + 1][1]  # all the noise of a step is new


FLOWS = ("ddim", "heun", "sde", "dpm++2m")
"""The solvers that a flow can have. The last is for straight paths."""


def default_for(schedule: Schedule) -> SolverName:
    """The default solver of a schedule: the paper's, and on a flow the ODE."""
    return "ddim" if isinstance(schedule, Flow) else "ddpm"


def make(backbone: Backbone, solver: str | None, steps: int, eta: float | None = None) -> Solver:
    """A solver for one batch.

    Args:
        backbone: the backbone whose schedule is run backwards.
        solver: a name of `SOLVERS`. None: "ddpm", and on a flow "ddim". A flow can also have "heun", "sde" and, on a straight
            path, "dpm++2m".
        steps: the number of reverse steps, 2 … T. Each step is one pass of the backbone.
        eta: of "ddim", 0 … 1. 0 (default) is deterministic, and 1 is as stochastic as ancestral sampling.

    Raises:
        DapError: the solver is unknown, does not go with the schedule or with eta, or cannot take so many steps.
    """
    schedule = backbone.schedule
    flow = isinstance(schedule, Flow)
    name = solver or default_for(schedule)
    if name not in SOLVERS:
        raise DapError(f"Unknown solver {name!r}. {suggest(name, SOLVERS)}")
    if eta is not None and name != "ddim":
        raise DapError(f"eta belongs to the solver 'ddim'; {name!r} has none.")
    if not 0 <= (eta or 0.0) <= 1:
        raise DapError(f"eta must be between 0 and 1, not {eta}.")
    if flow and name not in FLOWS:
        raise DapError(
            f"{backbone.card.name} is a flow; its solvers are 'ddim' (with eta), 'heun', 'sde' and 'dpm++2m', not "
            f"{name!r}."
        )
    if name == "dpm++2m" and getattr(schedule, "path", "linear") != "linear":
        raise DapError(
            f"The solver 'dpm++2m' takes straight paths, and {backbone.card.name} has another; use 'ddim', 'heun' or 'sde'."
        )
    if name == "sde" and not flow:
        raise DapError(
            f"The solver 'sde' is for flows, and {backbone.card.name} is none; use 'ddpm', or 'ddim' with eta."
        )
    most = steps_of(schedule)
    if not 2 <= steps <= most:
        raise DapError(f"steps must be between 2 and {most}, not {steps}.")
    if name == "ddim":
        return Ddim(schedule, steps, eta or 0.0, backbone.clip)
    if name == "heun":
        intervals = Heun.intervals(steps)
        return Heun(schedule, steps, Ddim(schedule, intervals).timesteps, backbone.clip)
    if name == "sde" and isinstance(schedule, Flow):
        return EulerMaruyama(schedule, steps)
    if isinstance(schedule, Flow):
        return Multistep(name, schedule, steps)
    assert isinstance(schedule, VariancePreserving)
    if name == "ddpm":
        return Ancestral(schedule, backbone.learned_variance, steps, backbone.clip)
    if name == "lcm":
        if steps > CONSISTENT or most < CONSISTENT:
            raise DapError(
                f"The solver 'lcm' takes at most {CONSISTENT} of {most} steps, not {steps}; 4 of 1000 are usual."
            )
        return Consistency(schedule, steps)
    return Multistep(name, schedule, steps, backbone.clip)


def _betas(schedule: VariancePreserving) -> Any:
    abar = schedule.alphas_cumprod.double()
    return (1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])).float().numpy()
