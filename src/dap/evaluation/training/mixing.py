"""CutMix and MixUp: every image of a batch is mixed with another image of the batch, its partner."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from dap.base.fields import Divisor, Share
from dap.evaluation.training.steps import Closed, Drawn, between


class Mixing(Closed, frozen=True):
    """Mixes every image of a batch with a partner.

    The loss is r CE(y) + (1 - r) CE(y_partner), where y is the label and r is the `share`.
    """

    p: Share = 1.0
    """Probability that a batch is mixed."""
    alpha: Divisor = 1.0
    """The part of an image that is kept is drawn from Beta(alpha, alpha), once a batch. With 1 the part is uniform."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """Draw the parameters of one batch of n images.

        Returns:
            `partner` (n,), int64, a permutation; `share` (1,), float64; and the other parameters that `apply` needs.
        """
        raise NotImplementedError

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The mixed images (n, c, h, w), differentiable in `images`."""
        raise NotImplementedError

    @staticmethod
    def share(drawn: Drawn) -> float:
        """r, the part of each mixed image that is the image's own; 1 if this batch is not mixed."""
        return float(drawn["share"])

    def _common(self, n: int, generator: Generator) -> tuple[Tensor, float]:
        """The partners, and the part of each image to keep: 1 if this batch is not mixed."""
        from scipy.special import betaincinv

        partner = torch.randperm(n, generator=generator, device=generator.device)
        happens, level = between(0, 1, (2,), generator).tolist()
        return partner, float(betaincinv(self.alpha, self.alpha, level)) if happens < self.p else 1.0


class CutMix(Mixing, frozen=True):
    """CutMix (Yun et al. 2019): paste a rectangle of the partner into each image.

    The rectangle is the same in the whole batch, as in MinimaxDiffusion and RDED. Its sides are sqrt(1 - lambda) times
    the sides of the image, and its centre is a uniform pixel. The part of the rectangle outside the image is cut off.
    """

    op: Literal["cutmix"] = "cutmix"

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """Draw `partner`, `share` and `box`.

        `box` (4,), int64, is top, left, height and width of the rectangle. `share` is the exact part of the area that
        is not pasted over.
        """
        partner, kept = self._common(n, generator)
        edges = []
        for side in (height, width):
            half = int(side * math.sqrt(1 - kept)) // 2
            centre = int(torch.randint(side, (1,), generator=generator, device=generator.device))
            edges.append((max(centre - half, 0), min(centre + half, side)))
        (top, bottom), (left, right) = edges
        box = (top, left, bottom - top, right - left)
        share = 1 - box[2] * box[3] / (height * width)
        return {"partner": partner, "box": torch.tensor(box), "share": torch.tensor([share], dtype=torch.float64)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        top, left, height, width = drawn["box"].tolist()
        mixed = images.clone()
        inside = (..., slice(top, top + height), slice(left, left + width))
        mixed[inside] = images[inside][drawn["partner"].to(images.device)]
        return mixed


class MixUp(Mixing, frozen=True):
    """MixUp (Zhang et al. 2018): r x + (1 - r) x_partner, with one r a batch."""

    op: Literal["mixup"] = "mixup"

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        partner, kept = self._common(n, generator)
        return {"partner": partner, "share": torch.tensor([kept], dtype=torch.float64)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        kept = self.share(drawn)
        return kept * images + (1 - kept) * images[drawn["partner"].to(images.device)]
