r"""Influence-Guided Diffusion (IGD): images that train a network as the real images do, and that differ from each other.

Chen, Du, Huang, Wang, Zhang & Wang, "Influence-Guided Diffusion for Dataset Distillation", ICLR 2025.

    x_{t-1} = \tilde x_{t-1} - \rho_t \nabla_{x_t} G_I(\hat x_0) - \gamma \nabla_{x_t} G_D(\hat x_0)
    G_I = mean_k [1 - cos(\nabla_\theta \ell(\theta_k; decode(\hat x_0), c), g_{k,c})]
    \rho_t = k u \sigma_t \|\epsilon\| / \|\nabla G_I\|,  u = 0.0015
    G_D = max over finished latents z of the class of cos(x_t, z)

θ_k are checkpoints of a network trained on the real data. g_{k,c} is the mean gradient of class c's real images at
checkpoint k. Here ρ_t is `Descend` with the unit "noise" and the scale k · `STRENGTH_UNIT`, and a `Window` picks the
guided steps.

The paper's formulas are known to us at second hand, without u and with x0_hat in G_D. u and x_t are what the sampler does in
Lokshaw-Chau/MinimaxDiffusion, which carries IGD's own scripts (diffusion/gaussian_diffusion.py, commit 3a9bbbdd); the authors'
copy of that file could not be read. Without u, k = 5 pushes several times as far in each step as the sampler itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.guidance.base import Energy, GradThrough, State

Through = Literal["denoiser", "x0"]
"""How the energies are differentiated in x_t: through the whole noise prediction, or as if x0_hat moved exactly as x_t does."""

Compared = Literal["x", "denoiser", "x0"]
"""The tensor that is kept apart from earlier slots: x_t itself, or x0_hat with the derivative that `Through` names."""

STRENGTH_UNIT = 0.0015
"""The scale of `Descend`, in units of the noise in x_t, that belongs to k = 1. It is the u of the equations above."""


@dataclass(frozen=True)
class Moment:
    """A network at one point of its training, seen from one class.

    Attributes:
        parameters: θ_k, leaves that require grad.
        loss: maps images (n, 3, h, w) in [0, 1] to their mean loss as members of the class.
        real: (P,), g_{k,c}, the mean gradient of real images. All parameters are flattened, one after another.
    """

    parameters: tuple[Tensor, ...]
    loss: Callable[[Tensor], Tensor]
    real: Float[Tensor, " p"]


@runtime_checkable
class Trajectory(Protocol):
    """The source of moments; `dap.methods.diffusion.igd.Surrogate` trains a network for them."""

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare the moments of these labels."""
        ...

    def images(self, latents: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b 3 *size"]:
        """The images of latents, roughly in [0, 1], with a graph."""
        ...

    def moments(self, label: int) -> Sequence[Moment]:
        """The checkpoints, for one of the labels that `begin` was given."""
        ...


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor], *, graph: bool = False) -> Float[Tensor, " p"]:
    """The gradient of a scalar in all parameters, as one vector. With `graph` the vector itself is differentiable."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=graph)])


def _carrier(through: Compared) -> GradThrough:
    """How far the sampler must carry a graph. "features" without a layer only makes x_t a leaf."""
    return "denoiser" if through == "denoiser" else "features"


def _x0(state: State, through: Through) -> Float[Tensor, "b c *spatial"]:
    return state.x0_hat if through == "denoiser" else state.x0_hat.detach() + (state.x - state.x.detach())


@dataclass(frozen=True)
class Influence(Energy):
    """G_I, 0 … 2: how far the gradient of each image points from that of the class's real images, over all checkpoints.

    Its gradient is of second order in the network. Images are taken one after another, because each has its own gradient.

    Args:
        trajectory: the checkpoints.
        through: see `Through`. The paper's is "denoiser".
    """

    trajectory: Trajectory
    through: Through = "denoiser"

    @property
    def grad_through(self) -> GradThrough:
        return _carrier(self.through)

    def begin(self, labels: Sequence[int]) -> None:
        self.trajectory.begin(labels)

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        images = self.trajectory.images(_x0(state, self.through))
        return torch.stack([self._of(image[None], at) for image, at in zip(images, state.labels.tolist(), strict=True)])

    def _of(self, image: Tensor, label: int) -> Tensor:
        apart = []
        for moment in self.trajectory.moments(label):
            mine = flat_gradient(moment.loss(image), moment.parameters, graph=True)
            apart.append(1 - F.cosine_similarity(mine, moment.real.to(mine), dim=0))
        return torch.stack(apart).mean()


@dataclass(frozen=True)
class Deviation(Energy):
    """G_D, −1 … 1: the largest cosine between an image and the finished latents of the earlier slots of its class.

    It is 0 for the first slot, which has no earlier ones.

    Args:
        memory: how many earlier slots are remembered, 64 in the paper.
        of: the tensor that is compared with them, see `Compared`.

    Raises:
        DapError: memory is less than 1.
    """

    memory: int = 64
    of: Compared = "x"
    _finished: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)
    sequential = True

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise DapError(f"memory must be at least 1, not {self.memory}.")

    @property
    def grad_through(self) -> GradThrough:
        return _carrier(self.of)

    def begin(self, labels: Sequence[int]) -> None:
        for label, slot in [*self._finished]:
            if label not in labels:
                del self._finished[label, slot]

    def finish(self, state: State) -> None:
        assert state.next is not None
        for row, where in enumerate(zip(state.labels.tolist(), state.slots.tolist(), strict=True)):
            self._finished[where] = state.next[row].detach().flatten()

    def before(self, label: int, slot: int) -> list[Tensor]:
        """The finished latents (C · spatial,) of the earlier slots that a slot is kept apart from."""
        slots = range(max(0, slot - self.memory), slot)
        return [self._finished[label, at] for at in slots if (label, at) in self._finished]

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        energies = []
        flat = (state.x if self.of == "x" else _x0(state, self.of)).flatten(1)
        for mine, label, slot in zip(flat, state.labels.tolist(), state.slots.tolist(), strict=True):
            others = self.before(label, slot)
            energies.append(F.cosine_similarity(mine[None], torch.stack(others)).amax() if others else 0 * mine.sum())
        return torch.stack(energies)
