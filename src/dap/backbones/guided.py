"""Classifier-free guidance around a backbone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone, Prediction
from dap.backbones.schedules import Time, steps_of
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.parsing import brief
from dap.guidance.base import GradThrough


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance around a backbone (Ho & Salimans 2022): eps = null + scale · (cond − null).

    The two halves are two calls, so that only the half that supplies the features builds a graph.

    Args:
        backbone: the backbone to wrap.
        scale: the scale of the formula above. 1 is the conditional model alone, which needs only one call.
        channels: how many latent channels are mixed. The other channels and the variance are those of the conditional half.
            The DiT code base mixes 3 of 4 channels, and every published table made with it inherits that.

    Raises:
        DapError: the scale is not 1, and the backbone's weights were not trained for classifier-free guidance; or `channels` is
            neither a number from 1 on nor "all".
    """

    backbone: Backbone
    scale: float
    channels: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        known = isinstance(self.channels, int) and not isinstance(self.channels, bool) and self.channels > 0
        if self.channels != "all" and not known:
            raise DapError(f"ClassifierFree takes channels as a number from 1 on or 'all', not {brief(self.channels)}.")
        if self.scale == 1 or self.backbone.classifier_free:
            return
        why = (
            "knows no classes"
            if self.backbone.unconditional
            else "was trained without a label that stands for no class"
        )
        raise DapError(
            f"{self.backbone.card.name} {why}, so classifier-free guidance has nothing to compare with; leave out --cfg, or give "
            f"--cfg 1 instead of {self.scale:g}."
        )

    def scale_at(self, t: Time) -> float:
        """The scale at a time: 1 outside the interval that the backbone's card names."""
        if (interval := self.backbone.card.cfg_interval) is None:
            return self.scale
        return self.scale if interval[0] <= t / steps_of(self.backbone.schedule) <= interval[1] else 1.0

    def predict(
        self,
        x: Float[Tensor, "b c *spatial"],
        t: Time,
        condition: Tensor,
        *,
        layer: str | None = None,
        branch: Literal["cond", "null"] = "cond",
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        """As `Backbone.predict`. The features come from the half that `branch` names."""

        cond = self._half(x, t, condition, layer if branch == "cond" else None, grad_through)
        scale = self.scale_at(t)
        if scale == 1 and branch == "cond":
            return cond
        null = self._half(x, t, self.backbone.null(len(x)), layer if branch == "null" else None, grad_through)
        x0 = None if cond.x0 is None or null.x0 is None else self._mixed(cond.x0, null.x0, scale)
        features = cond.features if branch == "cond" else null.features
        return Prediction(self._mixed(cond.eps, null.eps, scale), cond.variance, features, x0)

    def _half(self, x: Tensor, t: Time, condition: Tensor, layer: str | None, grad_through: GradThrough) -> Prediction:
        """One half. A half without the tapped layer needs a graph only if the gradient goes through the whole denoiser."""
        if layer is None and grad_through != "denoiser":
            grad_through = "nothing"
        if grad_through != "nothing":  # one graph holds all images, so parts would not save memory
            with torch.enable_grad():
                return self.backbone.predict(x, t, condition, layer=layer, grad_through=grad_through)
        with torch.no_grad():
            passed = functools.partial(self._passed, t, layer)
            return _joined(vram.in_parts(passed, max(1, len(x)), x.detach(), condition))

    def _mixed(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        guided = null + scale * (cond - null)
        mixed = cond.shape[1] if self.channels == "all" else self.channels
        return guided if mixed == cond.shape[1] else torch.cat([guided[:, :mixed], cond[:, mixed:]], dim=1)

    def _passed(self, t: Time, layer: str | None, x: Tensor, condition: Tensor) -> Prediction:
        return self.backbone.predict(x, t, condition, layer=layer, grad_through="nothing")


def _joined(parts: Sequence[Prediction]) -> Prediction:
    """The prediction for all images whose parts these are, in order."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, name) for part in parts] for name in ("eps", "variance", "features", "x0"))
    return Prediction(*(None if None in column else torch.cat(column) for column in columns))  # pyright: ignore
