r"""How strong a push is at each step: schedules of gamma, as wrappers around a guidance.

With f_t times the push of a guidance, and the numbers alpha_t and sigma_t of the step:

    constant    f_t = 1
    sigma       f_t = sigma_t
    snr         f_t = SNR_t / (1 + SNR_t) = alpha_t^2 / (alpha_t^2 + sigma_t^2),    SNR_t = alpha_t^2 / sigma_t^2
    cosine      f_t = (1 + cos(pi i / (steps - 1))) / 2 at step i = 0, ..., steps - 1
    trust       f_t = min(1, tau / rms(eps_theta(x_t + push, t) - eps_theta(x_t, t))) for each image

SNR itself has no bound, so `snr` is the share of signal in the variance of x_t. It is also what the derivative
alpha_t d x0_hat / d x_t is under Gaussian data of unit variance. `trust` asks what the push does to the prediction that the step
was made with. With x_t = alpha_t x0_hat + sigma_t eps, the pushed sample is the content x0_hat + push / alpha_t under the same
noise. So the change of eps is the denoiser's error on the pushed content. It is small where the denoiser takes the push for
content, and push / sigma_t where it takes the push for noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dap.base.errors import DapError
from dap.base.registry import suggest
from dap.guidance.base import Guidance, Wrapper
from dap.guidance.contract import pushed
from dap.guidance.state import State

TRUST = 0.05
"""tau, the largest change of the predicted noise that a push may make. The noise itself has standard deviation 1."""


def signal_share(state: State) -> float:
    """alpha_t² / (alpha_t² + sigma_t²), from 0 at pure noise to 1."""
    return state.alpha**2 / (state.alpha**2 + state.sigma**2)


def half_cosine(state: State) -> float:
    """From 1 at the first step of the run to 0 at the last."""
    return (1 + math.cos(math.pi * state.index / max(1, state.steps - 1))) / 2


FACTORS: dict[str, Callable[[State], float]] = {
    "sigma": lambda state: state.sigma,
    "snr": signal_share,
    "cosine": half_cosine,
}
"""The factors of the schedules that depend on the step alone, by name."""

SCHEDULES = ("constant", *FACTORS, "trust")
"""The names of all schedules."""


@dataclass(frozen=True)
class Paced(Wrapper):
    """A push times a factor of the step.

    Args:
        guidance: the guidance whose push is multiplied.
        factor: the factor at a state, such as one of `FACTORS`.
    """

    guidance: Guidance
    factor: Callable[[State], float]

    def parts(self) -> tuple[Guidance, ...]:
        return (self.guidance,)

    def __call__(self, state: State) -> Tensor:
        return self.factor(state) * pushed(self.guidance, state)


@dataclass(frozen=True)
class Trusted(Wrapper):
    """A push that is shortened, image by image, where it changes the predicted noise by more than `most`.

    Every guided step costs one more prediction of the run. The change is measured at the whole push, and the push is shortened in
    proportion.

    Args:
        guidance: the guidance whose push is shortened.
        most: the largest root mean square change of the predicted noise.

    Raises:
        DapError: `most` is not positive. While sampling, the state has no `denoiser`.
    """

    guidance: Guidance
    most: float = TRUST

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.most > 0:
            raise DapError(f"The largest change of the predicted noise must be positive, not {self.most}.")

    def parts(self) -> tuple[Guidance, ...]:
        return (self.guidance,)

    def __call__(self, state: State) -> Tensor:
        if state.denoiser is None:
            raise DapError("The schedule trust must ask the denoiser, so it guides a run of sampling alone.")
        push = pushed(self.guidance, state)
        change = state.denoiser(state.x.detach() + push) - state.eps.detach()
        size = change.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (push.ndim - 1))
        return push * (self.most / size.clamp_min(1e-30)).clamp_max(1.0)


def scheduled(guidance: Guidance, name: str) -> Guidance:
    """The guidance under a schedule by its name, one of `SCHEDULES`.

    Raises:
        DapError: there is no such schedule.
    """
    if name not in SCHEDULES:
        raise DapError(f"There is no schedule {name!r} of the guidance. {suggest(name, SCHEDULES)}")
    if name == "constant":
        return guidance
    return Trusted(guidance) if name == "trust" else Paced(guidance, FACTORS[name])
