"""The backbone that is checked, and the tensors that its checks share."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dap import solvers
from dap.backbones.base import Backbone, Prediction
from dap.backbones.schedules import Time, steps_of
from dap.guidance.base import GradThrough
from dap.sampling import STEPS
from dap.testing.findings import draw

B = 3
"""The number of images in one pass."""


class Probe:
    """A backbone, and the values that its checks share. Each value is computed when it is first asked for.

    Args:
        backbone: the backbone to check.
        images: real images of the backbone's classes, (n, 3, h, w) in [0, 1]. Default: three images of Fashion-MNIST.
    """

    def __init__(self, backbone: Backbone, images: Tensor | None = None) -> None:
        self.backbone, self._given = backbone, images

    @cached_property
    def names(self) -> list[str]:
        """Three classes: the first, the middle and the last. A backbone that takes prompts gets "dress", "bag" and "sandal"."""
        known = self.backbone.class_names or ("dress", "bag", "sandal")
        return [known[0], known[len(known) // 2], known[-1]]

    @cached_property
    def times(self) -> tuple[Time, Time, Time]:
        """The first, the middle and the last time of the default solver's grid. In the middle x holds as much data as noise."""
        schedule = self.backbone.schedule
        most = steps_of(schedule)
        grid = solvers.make(self.backbone, None, min(STEPS, most)).timesteps

        def imbalance(t: Time) -> float:
            alpha, sigma = schedule.level(t)
            return abs(alpha - sigma)

        return grid[0], min(grid, key=imbalance), grid[-1]

    @cached_property
    def x(self) -> Tensor:
        """Noise (3, C, *spatial)."""
        return draw((B, *self.backbone.latent_shape), 1, self.backbone.device)

    @cached_property
    def condition(self) -> Tensor:
        return self.backbone.condition(self.names)

    @cached_property
    def images(self) -> Tensor:
        """Real images (3, 3, *size) in [0, 1], or noise if the backbone does not make flat pictures."""
        device, size = self.backbone.device, self.backbone.card.size
        if self._given is not None:
            return self._given.to(device).float()
        if len(self.backbone.latent_shape) != 3:
            empty = torch.zeros(1, *self.backbone.latent_shape, device=device)
            return draw((B, 3, *self.backbone.decode(empty).shape[2:]), 2, device).mul(0.25).add(0.5).clamp(0, 1)
        from dap.starter.images import training_images

        pictures, labels = training_images("test")
        chosen = torch.stack([pictures[labels == label][0] for label in (0, 1, 8)]).float() / 255
        return F.interpolate(chosen, (size, size), mode="area" if size < 32 else "bicubic").clamp(0, 1).expand(
            -1, 3, -1, -1
        ).to(device)  # fmt: skip

    @cached_property
    def latents(self) -> Tensor:
        return self.backbone.encode(self.images)

    @cached_property
    def half(self) -> str | None:
        """The half-precision type of the weights, or None."""
        kinds = {value.dtype for value in self.backbone.state().values()}
        return next((str(kind)[6:] for kind in (torch.bfloat16, torch.float16) if kind in kinds), None)

    @cached_property
    def tolerance(self) -> float:
        """The relative difference that rounding explains. On a GPU convolutions round to TF32."""
        return 5e-2 if self.half else 1e-2 if self.backbone.device.type == "cuda" else 1e-3

    @cached_property
    def layers(self) -> list[str]:
        """The layers that are checked closely: the first layer, the card's layer and the last layer."""
        names = self.backbone.layers
        return list(dict.fromkeys([names[0], self.backbone.card.layer, names[-1]]))

    def predict(
        self, x: Tensor, t: Time | None = None, layer: str | None = None, through: GradThrough = "nothing"
    ) -> Prediction:
        """A prediction, at the middle time unless a time is given, and without gradients unless `through` asks for them."""
        with torch.set_grad_enabled(through != "nothing"):
            time = self.times[1] if t is None else t
            return self.backbone.predict(x, time, self.condition[: len(x)], layer=layer, grad_through=through)

    @cached_property
    def eps(self) -> Tensor:
        """The plain prediction at `x`."""
        return self.predict(self.x).eps
