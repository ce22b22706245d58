"""What steers a sample: a `Guidance` looks at one `State` of the reverse process and returns what to add to x_{t-1}.

A guidance that lowers a scalar is an `Energy` under `Descend`, the only place that differentiates in x_t.
Guidances add with `+`, scale with a number and can be confined to a `Window` of the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dap.base.errors import DapError

GradThrough = Literal["nothing", "features", "denoiser"]
"""What x_t carries a graph through: nothing, the backbone up to the tapped layer, or the whole noise prediction."""


@dataclass(frozen=True)
class State:
    """One reverse step of a batch of B images, from noise level t to the next lower one.

    Attributes:
        x: x_t, (B, C, *spatial); a leaf that requires grad when the guidance asks for a gradient.
        proposal: x̃_{t−1}, what the sampler alone would take next, same shape, no graph.
        x0_hat: the prediction of x_0 at t; differentiable in x under "denoiser".
        eps: the guided noise prediction; differentiable in x under "denoiser".
        features: φ(x_t, t) of the tapped layer, (B, tokens, width), or None; differentiable in x under "features" and "denoiser".
        t: the timestep of the training schedule; a whole number unless the backbone is a flow.
        index: how many steps were done before, 0 … steps − 1.
        steps: the length of the run.
        alpha: how much of x_0 is in x_t: √ᾱ_t, on a flow 1 − sigma.
        sigma: how much noise: √(1 − ᾱ_t), on a flow t/T.
        labels: (B,) label of each image, in the data's label space.
        slots: (B,) which of the ipc images of its label each one is.
        step_std: the standard deviation of x_{t−1} around the mean of the reverse step, a number or (B, C, *spatial): the learned
            one where ancestral steps have it, else that of q(x_{t−1} | x_t, x_0), also where the solver draws no noise. 0 at
            the last step.
        next: x_{t−1} with the push, once it is taken; None while a guidance looks at the state.
    """

    x: Float[Tensor, "b c *spatial"]
    proposal: Float[Tensor, "b c *spatial"]
    x0_hat: Float[Tensor, "b c *spatial"]
    eps: Float[Tensor, "b c *spatial"]
    features: Float[Tensor, "b tokens width"] | None
    t: int | float
    index: int
    steps: int
    alpha: float
    sigma: float
    labels: Int[Tensor, " b"]
    slots: Int[Tensor, " b"]
    step_std: Float[Tensor, "b c *spatial"] | float = math.nan
    next: Float[Tensor, "b c *spatial"] | None = None

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, 0 at the first step and (steps − 1)/steps at the last."""
        return self.index / self.steps


class Guidance(ABC):
    """A push on the next sample. Attributes and the two hooks below have neutral defaults."""

    layer: str | None = None
    """The backbone layer whose features it needs."""
    branch: Literal["cond", "null"] = "cond"
    """Which half of classifier-free guidance supplies the features."""
    grad_through: GradThrough = "nothing"
    joint: bool = False
    """Whether an image depends on the other slots of its class, so that these must be sampled together."""
    sequential: bool = False
    """Whether an image depends on the earlier slots of its class, so that these must be sampled before it, one by one."""

    @abstractmethod
    def __call__(self, state: State) -> Float[Tensor, "b c *spatial"]:
        """What to add to x_{t−1}."""

    def begin(self, labels: Sequence[int]) -> None:  # noqa: B027 - a hook; most guidances need none
        """Called before a batch with the labels in it: prepare, load, compute what the class needs."""

    def finish(self, state: State) -> None:  # noqa: B027 - a hook; most guidances need none
        """Called after the last step with the last state."""

    def active(self, index: int, steps: int) -> bool:
        """Whether the step needs this guidance at all; an inactive step is not asked and builds no graph."""
        return True

    def __add__(self, other: Guidance) -> Guidance:
        return Sum((self, other))

    def __mul__(self, factor: float) -> Guidance:
        return Scaled(self, float(factor))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Nothing(Guidance):
    """The neutral element: vanilla sampling."""

    def __call__(self, state: State) -> Tensor:
        return torch.zeros_like(state.proposal)

    def active(self, index: int, steps: int) -> bool:
        return False


class Energy(ABC):
    """A scalar an image should have little of, differentiable in `State.x` through what `grad_through` keeps."""

    layer: str | None = None
    branch: Literal["cond", "null"] = "cond"
    grad_through: GradThrough = "features"
    joint: bool = False
    sequential: bool = False

    @abstractmethod
    def __call__(self, state: State) -> Float[Tensor, " b"]:
        """The energy of each image."""

    def begin(self, labels: Sequence[int]) -> None:  # noqa: B027 - a hook
        """As `Guidance.begin`."""

    def finish(self, state: State) -> None:  # noqa: B027 - a hook
        """As `Guidance.finish`."""


@dataclass(frozen=True)
class Descend(Guidance):
    """Descends an energy: the push is −scale · ∇_{x_t} energy (DAP, Eq. 8: x_{t−1} = x̃_{t−1} + γ g_t).

    Args:
        energy: the scalar to lower.
        scale: γ ≥ 0. 0 gives the unguided sample bit for bit.
        unit: "paper" adds γ g_t as the paper writes it. "step" measures γ in units of the sampler's own step: the push
            has norm γ · ‖x̃_{t−1} − x_t‖ for each image, so that one γ means the same on every backbone. "noise" measures it
            in units of the noise in x_t: norm γ · σ_t · ‖eps‖ (IGD's ρ_t).

    Raises:
        DapError: on a negative or non-finite scale, an unknown unit, or, while sampling, a non-finite gradient.
    """

    energy: Energy
    scale: float
    unit: Literal["paper", "step", "noise"] = "paper"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise DapError(f"scale must be a finite number >= 0, not {self.scale}.")
        if self.unit not in ("paper", "step", "noise"):
            raise DapError(f"unit must be 'paper', 'step' or 'noise', not {self.unit!r}.")
        for name in ("layer", "branch", "grad_through", "joint", "sequential"):
            object.__setattr__(self, name, getattr(self.energy, name))

    def begin(self, labels: Sequence[int]) -> None:
        if self.scale > 0:
            self.energy.begin(labels)

    def finish(self, state: State) -> None:
        if self.scale > 0:
            self.energy.finish(state)

    def active(self, index: int, steps: int) -> bool:
        return self.scale > 0

    def __call__(self, state: State) -> Tensor:
        with torch.enable_grad():
            energy = self.energy(state)
            # Another guidance of a sum may still go through the same graph.
            (gradient,) = torch.autograd.grad(energy.sum(), state.x, retain_graph=True)
        if not torch.isfinite(gradient).all():
            raise DapError(
                f"The gradient of {type(self.energy).__name__} is not finite at t = {state.t}; lower the scale."
            )
        if self.unit != "paper":
            norm = per_image_norm(gradient)
            if self.unit == "step":
                length = per_image_norm(state.proposal - state.x.detach())
            else:
                length = state.sigma * per_image_norm(state.eps.detach())
            # A gradient of zero has no direction and pushes nothing.
            gradient = gradient * torch.where(norm > 1e-30, length / norm.clamp_min(1e-30), 0.0)
        return -self.scale * gradient


def per_image_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """The Euclidean norm of each image, shaped (B, 1, …) to broadcast."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class _Wrapper(Guidance):
    """A guidance around others: it needs whatever they need."""

    def __post_init__(self) -> None:
        parts = self.parts()
        order: tuple[GradThrough, ...] = ("nothing", "features", "denoiser")
        layers, branches = {p.layer for p in parts if p.layer}, {p.branch for p in parts if p.layer}
        if len(layers) > 1 or len(branches) > 1:
            raise DapError(f"Guidances tap different layers or branches ({sorted(layers)}); one run taps one.")
        object.__setattr__(self, "layer", next(iter(layers), None))
        object.__setattr__(self, "branch", next(iter(branches), "cond"))
        object.__setattr__(self, "grad_through", max((p.grad_through for p in parts), key=order.index))
        object.__setattr__(self, "joint", any(p.joint for p in parts))
        object.__setattr__(self, "sequential", any(p.sequential for p in parts))

    @abstractmethod
    def parts(self) -> tuple[Guidance, ...]:
        """The guidances inside."""

    def begin(self, labels: Sequence[int]) -> None:
        for part in self.parts():
            part.begin(labels)

    def finish(self, state: State) -> None:
        for part in self.parts():
            part.finish(state)

    def active(self, index: int, steps: int) -> bool:
        return any(part.active(index, steps) for part in self.parts())


@dataclass(frozen=True)
class Sum(_Wrapper):
    """The pushes of several guidances, added."""

    guidances: tuple[Guidance, ...]

    def parts(self) -> tuple[Guidance, ...]:
        return self.guidances

    def __call__(self, state: State) -> Tensor:
        total = torch.zeros_like(state.proposal)
        for part in self.guidances:
            if part.active(state.index, state.steps):
                total = total + part(state)
        return total


@dataclass(frozen=True)
class Scaled(_Wrapper):
    """A push times a factor; factor 0 is inactive."""

    guidance: Guidance
    factor: float

    def parts(self) -> tuple[Guidance, ...]:
        return (self.guidance,)

    def active(self, index: int, steps: int) -> bool:
        return self.factor != 0 and self.guidance.active(index, steps)

    def __call__(self, state: State) -> Tensor:
        return self.factor * self.guidance(state)


@dataclass(frozen=True)
class Window(_Wrapper):
    """A guidance in the part of the run where start <= progress < stop, both fractions in [0, 1].

    `last=False` also leaves out the very last step, after which nothing denoises the push any more.
    """

    guidance: Guidance
    start: float = 0.0
    stop: float = 1.0
    last: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start <= self.stop <= 1:
            raise DapError(f"A window needs 0 <= start <= stop <= 1, not start={self.start}, stop={self.stop}.")

    def parts(self) -> tuple[Guidance, ...]:
        return (self.guidance,)

    def active(self, index: int, steps: int) -> bool:
        inside = self.start <= index / steps < self.stop and (self.last or index < steps - 1)
        return inside and self.guidance.active(index, steps)

    def __call__(self, state: State) -> Tensor:
        return self.guidance(state)
