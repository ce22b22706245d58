r"""Mode guidance (MGD3): draw each image towards a mode of its class's data. Each slot has one mode.

Chan-Santiago, Tirupattur, Nayak, Liu & Shah, "MGD3: Mode-Guided Dataset Distillation using Diffusion Models", ICML 2025,
arXiv 2505.18963.

    x_{t-1} = \tilde x_{t-1} - \lambda \sigma_t (\hat x_0 - m_i),    \sigma_t the standard deviation of the reverse step

The paper stops guiding half-way through the run ("stop guidance"). Here a `Window` around the guidance does that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.guidance.base import Guidance, State


@runtime_checkable
class Centres(Protocol):
    """The source of modes; `dap.methods.diffusion.mgd3.ClassModes` finds them by clustering."""

    def begin(self, labels: Sequence[int]) -> None:
        """Prepare the modes of these labels."""
        ...

    def of(self, label: int) -> Float[Tensor, "slots c *spatial"]:
        """The modes of a class, which are clean latents. Row i belongs to slot i."""
        ...

    def seed(self, label: int, *purpose: object) -> int:
        """A seed that belongs to the class by name, so that its label does not change the seed."""
        ...


def targets(centres: Centres, state: State) -> Float[Tensor, "b c *spatial"]:
    """The mode of each image of the batch, on its device."""
    pairs = zip(state.labels.tolist(), state.slots.tolist(), strict=True)
    return torch.stack([centres.of(label)[slot] for label, slot in pairs]).to(state.x)


@dataclass(frozen=True)
class Modes(Guidance):
    """The push −scale · step_std · (x0_hat − mode of the slot).

    Args:
        centres: the modes.
        scale: λ ≥ 0, 0.1 in the paper. 0 gives the unguided sample bit for bit.

    Raises:
        DapError: the scale is negative or not finite.
    """

    centres: Centres
    scale: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise DapError(f"scale must be a finite number >= 0, not {self.scale}.")

    def begin(self, labels: Sequence[int]) -> None:
        if self.scale > 0:
            self.centres.begin(labels)

    def active(self, index: int, steps: int) -> bool:
        return self.scale > 0

    def __call__(self, state: State) -> Tensor:
        return -self.scale * state.step_std * (state.x0_hat.detach() - targets(self.centres, state))
