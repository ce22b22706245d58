"""Guidance of a sample: a `Guidance` looks at one `State` of the reverse process and returns what to add to x_{t-1}.

A guidance that lowers a scalar is an `Energy` under `Descend`, which is the only place that differentiates in x_t.
Guidances are added with `+`, scaled with a number, and can be confined to a `Window` of the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError, NotFinite
from dap.base.registry import Recorded
from dap.guidance.contract import check_words, energies_of, pushed
from dap.guidance.state import GradThrough, State, per_image_norm


class Guidance(Recorded, ABC):
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

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare what the classes need. The sampling loop calls this before a batch, with the labels in the batch."""

    def finish(self, state: State) -> None:
        """Look at the finished batch. The sampling loop calls this after the last step, with the last state."""

    def active(self, index: int, steps: int) -> bool:
        """Whether this guidance pushes at a step. At an inactive step it is not called, and no graph is built for it."""
        return True

    def __add__(self, other: Guidance) -> Guidance:
        if not isinstance(other, (Guidance, Energy)):
            return NotImplemented
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


class Energy(Recorded, ABC):
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

    def _alone(self, other: object) -> NoReturn:
        """Energies neither add nor scale by themselves."""
        name = type(self).__name__
        raise DapError(
            f"{name} is an energy; it becomes a guidance, which adds and scales, by Descend({name}(...), scale)."
        )

    __add__ = __radd__ = __mul__ = __rmul__ = _alone

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare what the classes need, as `Guidance.begin`."""

    def finish(self, state: State) -> None:
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
        if isinstance(self.energy, Guidance):
            raise DapError(
                f"{type(self.energy).__name__} is a guidance, which pushes by itself and is no energy; leave Descend out."
            )
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
            energy = energies_of(self.energy, state)
            # The graph is kept, because another guidance of a sum may go through the same one.
            (gradient,) = torch.autograd.grad(energy.sum(), state.x, retain_graph=True)
        if not torch.isfinite(gradient).all():
            # Before the first push the scale cannot be the cause: then the weights or their type are.
            advice = "use --dtype float32, or look at the weights with dap check"
            raise NotFinite(
                f"The gradient of {type(self.energy).__name__} is not finite at t = {state.t}",
                f"lower the scale, or {advice}" if state.index else advice,
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


def check_is_guidance(part: object) -> None:
    """Raise `DapError` if something is no guidance. An energy becomes one by `Descend`."""
    if isinstance(part, Energy):
        part._alone(None)
    if not isinstance(part, Guidance):
        kind = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
        raise DapError(f"A guidance is an object of a subclass of dap.guidance.Guidance, not {kind}.")


def settled(energy: Callable[[Tensor], Tensor], at: Float[Tensor, "1 d"], row: int) -> Tensor:
    """The energy of one image of a class, whose gradient is that of the energy of the whole class in this image.

    The energy is differentiated in `at` at once. So its graph is free when this function returns, and only the gradient stays.

    Args:
        energy: maps the features (1, D) of the image to the energies of all images of its class.
        at: the features, with the graph of the step behind them.
        row: which of the energies is that of the image.
    """
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        energies = energy(leaf)
        (slope,) = torch.autograd.grad(energies.sum(), leaf)
    return energies[row].detach() + ((at - at.detach()) * slope).sum()


@dataclass(frozen=True)
class Wrapper(Guidance):
    """A guidance around other guidances. It needs everything that these guidances need.

    A subclass says which `parts` it has, and what becomes of their pushes.

    Raises:
        DapError: a part is no guidance or has an unknown word, or the guidances inside tap different layers or halves.
    """

    def __post_init__(self) -> None:
        for part in self.parts():
            check_is_guidance(part)
            check_words(part)
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
class Sum(Wrapper):
    """The sum of the pushes of several guidances."""

    guidances: tuple[Guidance, ...]

    def parts(self) -> tuple[Guidance, ...]:
        return self.guidances

    def __call__(self, state: State) -> Tensor:
        total = torch.zeros_like(state.proposal)
        for part in self.guidances:
            if part.active(state.index, state.steps):
                total = total + pushed(part, state)
        return total


@dataclass(frozen=True)
class Scaled(Wrapper):
    """A push times a factor. With factor 0 no step is active."""

    guidance: Guidance
    factor: float

    def parts(self) -> tuple[Guidance, ...]:
        return (self.guidance,)

    def active(self, index: int, steps: int) -> bool:
        return self.factor != 0 and self.guidance.active(index, steps)

    def __call__(self, state: State) -> Tensor:
        return self.factor * pushed(self.guidance, state)


@dataclass(frozen=True)
class Window(Wrapper):
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
        return pushed(self.guidance, state)
