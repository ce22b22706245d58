"""What a guidance sees: the `State` of one step of the reverse process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

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
        denoiser: gives the noise prediction (B, C, *spatial) of another x_t at this step, as the run predicts it and without a
            graph. Each call costs what a prediction of the run costs. None where nothing can be asked.
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
    denoiser: Callable[[Tensor], Tensor] | None = None
    next: Float[Tensor, "b c *spatial"] | None = None

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, 0 at the first step and (steps − 1)/steps at the last."""
        return self.index / self.steps


def per_image_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """The Euclidean norm of each image, shaped (B, 1, …) to broadcast."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
