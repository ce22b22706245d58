"""Mixing of every image with a partner of its batch: CutMix and MixUp."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Generator, Tensor

from dap.evaluation.training.steps import Chance, Closed, Drawn, between


class Mixing(Closed):
    """Mixes every image of a batch with a partner; the loss is r CE(y) + (1 - r) CE(y_partner), with r the `share`."""

    p: Chance = 1.0
    """Probability for each batch."""
    alpha: PositiveFloat = 1.0
    """The part kept is drawn from Beta(alpha, alpha), once a batch; 1 makes it uniform."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`partner` (n,), int64, a permutation; `share` (1,), float64; and what else `apply` needs."""
        raise NotImplementedError

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Mixed images (n, c, h, w), differentiable in `images`."""
        raise NotImplementedError

    @staticmethod
    def share(drawn: Drawn) -> float:
        """r, how much of each mixed image is its own; 1 if this batch is not mixed."""
        return float(drawn["share"])

    def _common(self, n: int, generator: Generator) -> tuple[Tensor, float]:
        """Partners, and how much to keep."""
        from scipy.special import betaincinv

        partner = torch.randperm(n, generator=generator, device=generator.device)
        happens, level = between(0, 1, (2,), generator).tolist()
        return partner, float(betaincinv(self.alpha, self.alpha, level)) if happens < self.p else 1.0


class CutMix(Mixing):
    """Paste a partner's rectangle (Yun et al. 2019), the same one in the whole batch, as MinimaxDiffusion and RDED do.

    Its sides are sqrt(1 - lambda) of the image's, its centre is a uniform pixel, and what lies outside is cut off.
    """

    op: Literal["cutmix"] = "cutmix"

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """Besides `partner`, `box` (4,), int64: top, left, height, width; `share` is the exact area not pasted over."""
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


class MixUp(Mixing):
    """r x + (1 - r) x_partner (Zhang et al. 2018), with one r a batch."""

    op: Literal["mixup"] = "mixup"

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        partner, kept = self._common(n, generator)
        return {"partner": partner, "share": torch.tensor([kept], dtype=torch.float64)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        kept = self.share(drawn)
        return kept * images + (1 - kept) * images[drawn["partner"].to(images.device)]
