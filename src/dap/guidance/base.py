"""Guidance of a sample: a `Guidance` looks at one `State` of the reverse process and returns what to add to x_{t-1}.

A guidance that lowers a scalar is an `Energy` under `Descend`, which is the only place that differentiates in x_t.
Guidances are added with `+`, scaled with a number, and can be confined to a `Window` of the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dap.base.errors import DapError

GradThrough = Literal["nothing", "features", "denoiser"]
"""From where a gradient can flow back to x_t: from nothing, from the tapped layer's features, or from the noise prediction."""


@dataclass(frozen=True)
class State:
    """One reverse step of a batch of B images, from noise level t to the next lower one.

    Attributes:
        x: x_t, (B, C, *spatial). It is a leaf that requires grad if the guidance asks for a gradient.
        proposal: x̃_{t−1}, the next sample without guidance, of the same shape. It carries no graph.
        x0_hat: the prediction of x_0 at t. Under "denoiser" it is differentiable in x.
        eps: the noise prediction after classifier-free guidance. Under "denoiser" it is differentiable in x.
        features: φ(x_t, t) of the tapped layer, (B, tokens, width), or None. Under "features" and "denoiser" they are
            differentiable in x.
        t: the timestep of the training schedule; a whole number unless the backbone is a flow.
        index: how many steps were done before, 0 … steps − 1.
        steps: the length of the run.
        alpha: how much of x_0 is in x_t: √ᾱ_t, and on a flow 1 − sigma.
        sigma: how much noise is in x_t: √(1 − ᾱ_t), and on a flow t/T.
        labels: (B,), the label of each image, in the data's label space.
        slots: (B,), which of the ipc images of its class each image is.
        step_std: the standard deviation of x_{t−1} around the mean of the reverse step, a number or (B, C, *spatial). Ancestral
            steps with a learned variance have the learned one. All others have that of q(x_{t−1} | x_t, x_0), even if the
            solver draws no noise. It is 0 at the last step.
        next: x_{t−1} with the push. It is None while a guidance looks at the state, because the step is not taken yet.
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
    """A push on the next sample. The attributes and the two hooks have neutral defaults; a subclass sets what it needs.

    Attributes:
        layer: the backbone layer whose features the guidance needs, or None.
        branch: the half of classifier-free guidance that supplies the features.
        grad_through: how far the guidance differentiates.
        joint: whether an image depends on the other slots of its class. They are then sampled together.
        sequential: whether an image depends on the earlier slots of its class. They are then sampled before it, one by one.
    """

    layer: str | None = None
    branch: Literal["cond", "null"] = "cond"
    grad_through: GradThrough = "nothing"
    joint: bool = False
    sequential: bool = False

    @abstractmethod
    def __call__(self, state: State) -> Float[Tensor, "b c *spatial"]:
        """What to add to x_{t−1}."""

    def begin(self, labels: Sequence[int]) -> None:  # noqa: B027 - a hook; most guidances need none
        """Prepare what the classes need. The sampling loop calls this before a batch, with the labels in the batch."""

    def finish(self, state: State) -> None:  # noqa: B027 - a hook; most guidances need none
        """Look at the finished batch. The sampling loop calls this after the last step, with the last state."""

    def active(self, index: int, steps: int) -> bool:
        """Whether this guidance pushes at a step. At an inactive step it is not called, and no graph is built for it."""
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
    """A scalar that is to be lowered for each image, differentiable in `State.x` as far as `grad_through` says.

    The attributes are those of `Guidance`.
    """

    layer: str | None = None
    branch: Literal["cond", "null"] = "cond"
    grad_through: GradThrough = "features"
    joint: bool = False
    sequential: bool = False

    @abstractmethod
    def __call__(self, state: State) -> Float[Tensor, " b"]:
        """The energy of each image."""

    def begin(self, labels: Sequence[int]) -> None:  # noqa: B027 - a hook
        """Prepare what the classes need, as `Guidance.begin`."""

    def finish(self, state: State) -> None:  # noqa: B027 - a hook
        """Look at the finished batch, as `Guidance.finish`."""


@dataclass(frozen=True)
class Descend(Guidance):
    """Descends an energy: the push is −scale · ∇_{x_t} energy (DAP, Eq. 8: x_{t−1} = x̃_{t−1} + γ g_t).

    Args:
        energy: the scalar to lower.
        scale: γ ≥ 0. 0 gives the unguided sample bit for bit.
        unit: "paper" adds γ g_t as the paper writes it. "step" measures γ in units of the sampler's own step: the push of
            each image has the norm γ · ‖x̃_{t−1} − x_t‖, so that one γ means the same on every backbone. "noise" measures γ in
            units of the noise in x_t: the push has the norm γ · σ_t · ‖eps‖ (IGD's ρ_t).

    Raises:
        DapError: the scale is negative or not finite, the unit is unknown, or the energy keeps no gradient. While sampling,
            a gradient is not finite.
    """

    energy: Energy
    scale: float
    unit: Literal["paper", "step", "noise"] = "paper"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise DapError(f"scale must be a finite number >= 0, not {self.scale}.")
        if self.unit not in ("paper", "step", "noise"):
            raise DapError(f"unit must be 'paper', 'step' or 'noise', not {self.unit!r}.")
        if self.energy.grad_through == "nothing":
            name = type(self.energy).__name__
            raise DapError(f"The energy {name} keeps no gradient to descend; set its grad_through to 'features'.")

    @property
    def layer(self) -> str | None:
        return self.energy.layer

    @property
    def branch(self) -> Literal["cond", "null"]:
        return self.energy.branch

    @property
    def grad_through(self) -> GradThrough:
        return self.energy.grad_through

    @property
    def joint(self) -> bool:
        return self.energy.joint

    @property
    def sequential(self) -> bool:
        return self.energy.sequential

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
            # The graph is kept, because another guidance of a sum may go through the same one.
            (gradient,) = torch.autograd.grad(energy.sum(), state.x, retain_graph=True)
        if not torch.isfinite(gradient).all():
            # Before the first push the scale cannot be the cause: then the weights or their type are.
            advice = "use --dtype float32, or look at the weights with dap check"
            raise DapError(
                f"The gradient of {type(self.energy).__name__} is not finite at t = {state.t}; "
                f"{f'lower the scale, or {advice}' if state.index else advice}."
            )
        if self.unit != "paper":
            norm = per_image_norm(gradient)
            if self.unit == "step":
                length = per_image_norm(state.proposal - state.x.detach())
            else:
                length = state.sigma * per_image_norm(state.eps.detach())
            # A gradient of zero has no direction, so it pushes nothing.
            gradient = gradient * torch.where(norm > 1e-30, length / norm.clamp_min(1e-30), 0.0)
        return -self.scale * gradient


def per_image_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """The Euclidean norm of each image, shaped (B, 1, …) to broadcast."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class _Wrapper(Guidance):
    """A guidance around other guidances. It needs everything that these guidances need.

    Raises:
        DapError: the guidances inside tap different layers or halves.
    """

    def __post_init__(self) -> None:
        layers, branches = ({getattr(p, name) for p in self.parts() if p.layer} for name in ("layer", "branch"))
        if len(layers) > 1 or len(branches) > 1:
            raise DapError(f"Guidances tap different layers or branches ({sorted(layers)}); one run taps one.")

    @property
    def layer(self) -> str | None:
        return next((part.layer for part in self.parts() if part.layer), None)

    @property
    def branch(self) -> Literal["cond", "null"]:
        branches: list[Literal["cond", "null"]] = [part.branch for part in self.parts() if part.layer]
        return branches[0] if branches else "cond"

    @property
    def grad_through(self) -> GradThrough:
        asked: list[GradThrough] = [part.grad_through for part in self.parts()]
        return max(asked, key=get_args(GradThrough).index)

    @property
    def joint(self) -> bool:
        return any(part.joint for part in self.parts())

    @property
    def sequential(self) -> bool:
        return any(part.sequential for part in self.parts())

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
    """The sum of the pushes of several guidances."""

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
    """A push times a factor. With factor 0 no step is active."""

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

    `last=False` also leaves out the very last step, because nothing denoises the push of that step any more.

    Raises:
        DapError: start and stop are not in this order, or not in [0, 1].
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
