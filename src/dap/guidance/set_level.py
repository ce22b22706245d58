r"""Energies of a set as a whole: how far the images of a class, taken together, are from real images of the class.

DAP pulls every image to the same real images. Its energy is lowest when all images of a class are alike, at the middle of the
real ones. An energy of the set asks only that the images *together* are like the real images, so it leaves them apart.

With the kernel mean embedding m_K(X) = mean_i K(x_i, .), the squared maximum mean discrepancy is (Gretton et al. 2012)

    MMD_K^2(S, R) = || m_K(S) - m_K(R) ||^2
                  = mean_{i,i'} K(s_i, s_i') - 2 mean_{i,j} K(s_i, r_j) + mean_{j,j'} K(r_j, r_j')

For the linear kernel this is || mean phi(S) - mean phi(R) ||^2, which needs nothing of the real images but their mean.

Every energy here is shared out evenly or term by term among the images, so that the sum over a class is the energy of the class
and its gradient is exact in all images at once. All images of a class must therefore be looked at together (`joint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dap.guidance.base import Energy, State
from dap.guidance.representative import RealFeatures
from dap.kernels import Kernel, Linear


@runtime_checkable
class Moment(Protocol):
    """The mean over images of the features of real images, (tokens, width), and the spread of each channel, (width)."""

    @property
    def mean(self) -> Float[Tensor, "tokens width"]: ...

    @property
    def std(self) -> Float[Tensor, " width"]: ...


@runtime_checkable
class RealMoments(Protocol):
    """The source of moments; `dap.data.moments.Moments` is one."""

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare the moments of these labels."""
        ...

    def at(self, label: int, t: int | float, layer: str) -> Moment:
        """The moments of a class's real images at a timestep and a layer."""
        ...


@dataclass(frozen=True)
class MeanMatching(Energy):
    r"""The squared distance between the mean features of a class's images and those of real images, per channel's spread:

        E(S) = mean_{tokens, channels} ((mean_i phi(s_i) - mu) / sigma_channel)^2

    This is the squared MMD under the linear kernel of features whose channels have spread 1, divided by their number.

    Args:
        moments: mu and sigma of the real images.
        layer: the layer whose features are compared.
        branch: the half of classifier-free guidance that supplies the features while sampling.
    """

    moments: RealMoments
    layer: str
    branch: Literal["cond", "null"] = "cond"
    joint = True

    def begin(self, labels: Sequence[int]) -> None:
        self.moments.begin(labels)

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        assert state.features is not None
        energy = state.features.new_zeros(len(state.features), dtype=torch.float32)
        for label, rows in by_label(state):
            real = self.moments.at(label, state.t, self.layer)
            gap = (state.features[rows].float().mean(0) - real.mean) / real.std
            energy = energy.index_copy(0, rows, (gap.square().mean() / len(rows)).expand(len(rows)))
        return energy


@dataclass(frozen=True)
class SquaredMMD(Energy):
    """The squared maximum mean discrepancy between a class's images and real images, for any kernel.

    An image's own energy is its row of the double sums, without the term of the real images alone, which no image changes.

    Args:
        reals: the real features.
        kernel: K. A bandwidth that is left open is set from the real features of each step.
    """

    reals: RealFeatures
    kernel: Kernel = field(default_factory=Linear)
    joint = True

    @property
    def layer(self) -> str:
        return self.reals.layer

    @property
    def branch(self) -> Literal["cond", "null"]:
        return self.reals.branch

    def begin(self, labels: Sequence[int]) -> None:
        self.reals.begin(labels)

    def __call__(self, state: State) -> Float[Tensor, " b"]:
        assert state.features is not None
        features = self.reals.transform(state.features)
        energy = features.new_zeros(len(features))
        for label, rows in by_label(state):
            mine, real = features[rows], self.reals.at(label, state.t).to(features)
            kernel = self.kernel.fit(real)
            row = kernel(mine, mine).mean(1) - 2 * kernel(mine, real).mean(1)
            energy = energy.index_copy(0, rows, (row / len(rows)).to(energy))
        return energy


def by_label(state: State) -> list[tuple[int, Tensor]]:
    """For each label of a batch the rows of its images, on the device of the features."""
    assert state.features is not None
    device = state.features.device
    return [(label, (state.labels == label).nonzero()[:, 0].to(device)) for label in state.labels.unique().tolist()]
