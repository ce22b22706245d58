r"""Diffusion As Priors: pull each image towards real images of its class in the backbone's own features.

Su, Wu, Chen, Shi, Wang, Ye & Zhu, "Diffusion Models as Dataset Distillation Priors", ICLR 2026, arXiv 2510.17421.

    g_t = -\nabla_{x_t} \frac1N \sum_j D_K(\varphi(x_t, t), \varphi(x_t^{(j)}, t))        (Eq. 7 and 8)

As an option, which is not in the paper, the guidance has one more term. It is the synthetic-synthetic half of the
energy distance / squared MMD, and it keeps the images of one class apart:

    + \lambda \nabla_{x_t} mean_{i' \ne i} D_K(\varphi(x_t^i), \varphi(x_t^{i'})).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.base import Energy, State
from dap.kernels import Kernel, Linear


@runtime_checkable
class RealFeatures(Protocol):
    """The source of real features; `dap.data.bank.FeatureBank` is one."""

    @property
    def layer(self) -> str:
        """The backbone layer that the features come from."""
        ...

    @property
    def branch(self) -> Literal["cond", "null"]:
        """The half of classifier-free guidance that the features come from."""
        ...

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare the real features of these labels."""
        ...

    def at(self, label: int, t: int | float) -> Float[Tensor, "n d"]:
        """φ(x_t^{(j)}, t) of the label's N real images at time t, after `transform`."""
        ...

    def shares(self, label: int) -> Float[Tensor, "slots n"] | None:
        """For each slot the weights of the real images that pull it; each row sums to 1. None: all images pull evenly."""
        ...

    def transform(self, features: Float[Tensor, "b tokens width"], label: int, t: int | float) -> Float[Tensor, "b d"]:
        """Treat features of a layer as the real features of a label at time t were treated: pool and normalise them."""
        ...


@dataclass(frozen=True)
class ToReals(Energy):
    """An energy in features that are compared with real ones. Layer and branch are those of the real features.

    Args:
        reals: the real features.
    """

    reals: RealFeatures

    @property
    def layer(self) -> str:
        return self.reals.layer

    @property
    def branch(self) -> Literal["cond", "null"]:
        return self.reals.branch

    def begin(self, labels: Sequence[int]) -> None:
        self.reals.begin(labels)


@dataclass(frozen=True)
class Representative(ToReals):
    """Mean kernel distance to real images of the class, in features of the backbone at the same noise level.

    Args:
        reals: the real features.
        kernel: K. The paper's is linear. A bandwidth that is left open is set from the real features of each step.
        squared: use D_K² instead of the paper's D_K. Each real image then pulls in proportion to its distance.
        repulsion: λ ≥ 0. Adds −λ · mean distance to the other slots of the class. With 1 the sum is the energy distance
            between the two sets. The other slots are held fixed, so each image has an energy of its own.

    Raises:
        DapError: repulsion is negative.
    """

    kernel: Kernel = field(default_factory=Linear)
    squared: bool = False
    repulsion: float = 0.0

    def __post_init__(self) -> None:
        if not self.repulsion >= 0:
            raise DapError(f"repulsion must be >= 0, not {self.repulsion}.")

    @property
    def joint(self) -> bool:
        return self.repulsion > 0

    def distance(self, kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
        return kernel.squared_distance(x, y) if self.squared else kernel.distance(x, y)

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        return by_class(state, self.reals, self._of_class)

    def _of_class(self, mine: Tensor, label: int, slots: Tensor, real: Tensor) -> Tensor:
        kernel = self.kernel.fit(real)
        to_real = self.distance(kernel, mine, real)
        shares = self.reals.shares(label)
        pull = to_real.mean(1) if shares is None else (to_real * shares.to(to_real)[slots]).sum(1)
        if self.repulsion > 0 and len(mine) > 1:
            apart = self.distance(kernel, mine, mine.detach())
            others = 1 - torch.eye(len(mine), dtype=apart.dtype, device=apart.device)
            pull = pull - self.repulsion * (apart * others).sum(1) / (len(mine) - 1)
        return pull


def by_class(
    state: State, reals: RealFeatures, of_class: Callable[[Tensor, int, Tensor, Tensor], Tensor]
) -> Float[Tensor, " b"]:
    """The energy of each image of a batch, from a function that sees one class at a time.

    Args:
        state: the batch, with its features.
        reals: the real features.
        of_class: gets the features (n, D) of the images of a class, the label, the slots of these images, and the real
            features (m, D). It returns the energy of each image, (n,).
    """
    assert state.features is not None
    device, rows, energies = state.features.device, list[Tensor](), list[Tensor]()
    for label in state.labels.unique().tolist():
        mine = (state.labels == label).nonzero()[:, 0].to(device)
        real = reals.at(label, state.t)  # before `transform`, which may measure by these
        features = reals.transform(state.features[mine], label, state.t)
        rows.append(mine)
        energies.append(of_class(features, label, state.slots.to(device)[mine], real.to(features)))
    return torch.cat(energies)[torch.cat(rows).argsort()]
