r"""Diffusion As Priors: pull each image towards real images of its class in the backbone's own features.

Su, Wu, Chen, Shi, Wang, Ye & Zhu, "Diffusion Models as Dataset Distillation Priors", ICLR 2026, arXiv 2510.17421.

    g_t = -\nabla_{x_t} \frac1N \sum_j D_K(\varphi(x_t, t), \varphi(x_t^{(j)}, t))        (Eq. 7 and 8)

As an option, which is not in the paper, the guidance has one more term. It is the synthetic-synthetic half of the
energy distance / squared MMD, and it keeps the images of one class apart:

    + \lambda \nabla_{x_t} mean_{i' \ne i} D_K(\varphi(x_t^i), \varphi(x_t^{i'})).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.base import State
from dap.guidance.reals import RealFeatures, ToReals, by_class
from dap.kernels import Kernel, Linear

__all__ = ["RealFeatures", "Representative", "ToReals", "by_class"]


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
        return by_class(state, self.reals, self._of_class, together=self.joint, weighted=True)

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
