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

from jaxtyping import Float
from torch import Tensor

from dap.guidance.base import State
from dap.guidance.representative import ToReals, by_class
from dap.kernels import Kernel, Linear


@dataclass(frozen=True)
class _SetEnergy(ToReals):
    """An energy of all images of a class and the real features of the class.

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
class MeanMatching(_SetEnergy):
    """The squared distance between the mean features of a class's images and of real images, divided by their number D:

    E(S) = ‖mean_i φ(s_i) − mean_j φ(r_j)‖² / D, the squared MMD under the linear kernel, in equal shares.

    Args:
        reals: the real features.
    """

    def shared(self, mine: Tensor, real: Tensor) -> Tensor:
        gap = mine.mean(0) - real.mean(0)
        return (gap.square().mean() / len(mine)).expand(len(mine))


@dataclass(frozen=True)
class SquaredMMD(_SetEnergy):
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
