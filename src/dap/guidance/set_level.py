r"""Energies of a set as a whole: how far the images of a class, taken together, are from real images of the class.

DAP pulls every image to the same real images. Its energy is lowest when all images of a class are alike, at the middle of the
real ones. An energy of the set asks only that the images *together* are like the real images, so it leaves them apart.

With the kernel mean embedding m_K(X) = mean_i K(x_i, .), the squared maximum mean discrepancy is (Gretton et al. 2012)

    MMD_K^2(S, R) = || m_K(S) - m_K(R) ||^2
                  = mean_{i,i'} K(s_i, s_i') - 2 mean_{i,j} K(s_i, r_j) + mean_{j,j'} K(r_j, r_j')

For the linear kernel this is || mean phi(S) - mean phi(R) ||^2. With -D_K in the place of K it is the energy distance
(Sejdinovic et al. 2013), which `Representative` has with repulsion 1: DAP's own distance, taken to the set.

Every energy here is shared out among the images, so that the sum over a class is the energy of the class and its gradient is
exact in all images at once. All images of a class must therefore be looked at together (`joint`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.devices.precision import precise
from dap.base.errors import DapError
from dap.guidance.base import State
from dap.guidance.reals import ToReals, by_class
from dap.kernels import EPSILON, Kernel, Linear


@dataclass(frozen=True)
class SetEnergy(ToReals):
    """An energy of all images of a class and the real features of the class. A subclass says the `shared` part of each image.

    Args:
        reals: the real features.
    """

    joint = True

    @abstractmethod
    def shared(self, mine: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
        """The share of each image in the energy of a class."""

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        return by_class(state, self.reals, lambda mine, label, slots, real: self.shared(mine, real))


@dataclass(frozen=True)
class MeanMatching(SetEnergy):
    """The squared distance between the mean features of a class's images and of real images, divided by their number D:

    E(S) = ‖mean_i φ(s_i) − mean_j φ(r_j)‖² / D, the squared MMD under the linear kernel, in equal shares.

    Args:
        reals: the real features.
    """

    def shared(self, mine: Tensor, real: Tensor) -> Tensor:
        gap = mine.mean(0) - real.mean(0)
        return (gap.square().mean() / len(mine)).expand(len(mine))


@dataclass(frozen=True)
class SquaredMMD(SetEnergy):
    """The squared maximum mean discrepancy between a class's images and real images, for any kernel.

    The share of an image is its row of the double sums, without the term of the real images alone, which no image changes.

    Args:
        reals: the real features.
        kernel: K. A bandwidth that is left open is set from the real features of each step.
    """

    kernel: Kernel = field(default_factory=Linear)

    def shared(self, mine: Tensor, real: Tensor) -> Tensor:
        kernel = self.kernel.fit(real)
        return (kernel(mine, mine).mean(1) - 2 * kernel(mine, real).mean(1)) / len(mine)


@dataclass(frozen=True)
class EnergyDistance(SetEnergy):
    """The energy distance between a class's images and real images, without the term of the real images alone,

    E(S) = 2 E D_K(S, R) − E D_K(S, S') over pairs of different images (Székely & Rizzo 2013).

    `Representative` with repulsion 1 has the same direction: n/2 times the gradient. Its own value is none of the set, because
    each image holds the others fixed. So this energy says how like the real images a set is.

    Args:
        reals: the real features.
        kernel: K of the distance. A bandwidth that is left open is set from the real features of each step.
    """

    kernel: Kernel = field(default_factory=Linear)

    def shared(self, mine: Tensor, real: Tensor) -> Tensor:
        kernel, n = self.kernel.fit(real), len(mine)
        apart = kernel.distance(mine, mine) * (1 - torch.eye(n, dtype=mine.dtype, device=mine.device))
        return (2 * kernel.distance(mine, real).mean(1) - apart.sum(1) / max(n - 1, 1)) / n


@dataclass(frozen=True)
class LogDet(SetEnergy):
    """Keeps the images of a class apart: the negative log-determinant of their kernel matrix, in equal shares,

    E(S) = −(1/n) log det((G + ρ I) / (1 + ρ)),  G_ij = K(s_i, s_j) / √(K(s_i, s_i) K(s_j, s_j)),

    as a determinantal point process has it (Kulesza & Taskar 2012). It is 0 if no two images have anything in common under the
    kernel, and largest if all are alike. Features alone are compared by their direction, so no image gains by large features. It
    asks nothing of real images, and stands beside an energy that does.

    Args:
        reals: the real features, which say the layer, how features are pooled and normalised, and an open bandwidth.
        kernel: K, with K(x, x) > 0.
        ridge: ρ > 0. It bounds the energy where two images are alike.

    Raises:
        DapError: the ridge is not positive.
    """

    kernel: Kernel = field(default_factory=Linear)
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if not 1e-6 <= self.ridge <= 1e6:
            raise DapError(f"ridge must be positive, from 1e-6 to 1e6, not {self.ridge}.")

    def shared(self, mine: Tensor, real: Tensor) -> Tensor:
        kernel, n = self.kernel.fit(real), len(mine)
        length = kernel.diag(mine).clamp_min(EPSILON).sqrt()
        alike = precise(kernel(mine, mine) / (length[:, None] * length))
        # The diagonal is 1 whatever the features are; rounding would give it a gradient, the only one of an image alone.
        one = torch.eye(n, dtype=alike.dtype, device=alike.device)
        gram = (alike + alike.T) / 2 * (1 - one) + (1 + self.ridge) * one
        value = -torch.linalg.cholesky(gram / (1 + self.ridge)).diagonal().log().sum() * 2 / n
        return (value.to(mine.dtype) / n).expand(n)
