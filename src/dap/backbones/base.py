"""A backbone: frozen diffusion weights behind one small interface, with everything that belongs to them in a `Card`."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.schedules import Schedule, Time
from dap.base.errors import DapError
from dap.base.registry import suggest
from dap.guidance.base import GradThrough


@dataclass(frozen=True)
class Card:
    """What belongs to weights rather than to a method.

    Attributes:
        name: how the manifest and the report call them.
        licence: of the weights; the dataset card repeats it.
        size: side in px of the images they make.
        cfg: classifier-free guidance scale; 1 switches it off.
        cfg_channels: how many latent channels it mixes, or "all". The DiT lineage mixes 3 of 4.
        layer: the layer whose features guide by default.
        scale: default γ of `dap`, in `unit`.
        unit: unit of `scale`, see `guidance.Descend`.
        template: prompt of a text-conditioned backbone, with {} for the class name; None for label-conditioned ones.
        negative_prompt: what its unconditional half is given.
        frequency_shift: of DiT's sinusoidal time embedding, whose i-th of 128 frequencies is 10000^(−i / (128 − shift)). The
            original code has 0, diffusers 1; weights trained with one are a little off under the other.
    """

    name: str
    licence: str
    size: int
    cfg: float
    cfg_channels: int | Literal["all"]
    layer: str
    scale: float
    unit: Literal["paper", "step"]
    template: str | None = None
    negative_prompt: str | None = None
    frequency_shift: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("paper", "step"):
            raise DapError(f"The unit on the card of {self.name} is {self.unit!r}; it should be 'paper' or 'step'.")
        if self.cfg_channels != "all" and not (isinstance(self.cfg_channels, int) and self.cfg_channels >= 1):
            raise DapError(f"cfg_channels on the card of {self.name} is {self.cfg_channels!r}; give a number or 'all'.")

    @property
    def prompts(self) -> dict[str, str]:
        """Template and negative prompt where there are any: they decide predictions, and are not among the weights."""
        told = {"template": self.template, "negative_prompt": self.negative_prompt}
        return {name: text for name, text in told.items() if text is not None}


@dataclass(frozen=True)
class Prediction:
    """What one pass of a backbone gives.

    Attributes:
        eps: predicted noise, (B, C, *spatial).
        variance: the raw learned-range variance channels, same shape, in [-1, 1], or None.
        features: output of the tapped layer, (B, tokens, width), or None.
        x0: predicted x_0, where the model knows it better than (x − sigma eps) / alpha does: a flow starts at alpha = 0.
    """

    eps: Float[Tensor, "b c *spatial"]
    variance: Float[Tensor, "b c *spatial"] | None
    features: Float[Tensor, "b tokens width"] | None
    x0: Float[Tensor, "b c *spatial"] | None = None


class Backbone(ABC):
    """A pre-trained diffusion model, its autoencoder and its label space; evaluation mode, no parameter trains.

    Subclasses set: `card`; `latent_shape` (C, *spatial); `layers`, the names that can be tapped; `class_names`, in the
    backbone's own label order; `schedule`; `learned_variance`; `device`.
    """

    card: Card
    latent_shape: tuple[int, ...]
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    schedule: Schedule
    learned_variance: bool
    device: torch.device

    @abstractmethod
    def condition(self, class_names: Sequence[str]) -> Tensor:
        """Conditions (n, …) for names of classes: the one place where label spaces cross.

        Raises:
            DapError: a name is not among this backbone's classes; the message lists both.
        """

    def prompt(self, texts: Sequence[str]) -> Tensor:
        """Conditions (n, …) for texts of single images, such as captions, instead of classes; good for the run they begin.

        Raises:
            DapError: this backbone takes labels, not text.
        """
        del texts
        raise DapError(
            f"{self.card.name} is told labels, not text. What works with captions needs a text-conditioned backbone, such as "
            "--backbone starter-unet or a Stable Diffusion."
        )

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """The unconditional condition, n times."""

    @abstractmethod
    def predict(
        self,
        x: Float[Tensor, "b c *spatial"],
        t: Time,
        condition: Tensor,
        *,
        layer: str | None = None,
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        """Noise prediction and, if a layer is named, its features, in one pass.

        Under "features" only the features carry a graph back to x: it ends at the tapped layer, so a gradient costs the
        backward pass of the layers before it and no more.
        """

    @abstractmethod
    def tap(
        self, x: Float[Tensor, "b c *spatial"], t: Time, condition: Tensor, layer: str
    ) -> Float[Tensor, "b tokens width"]:
        """Features alone, without a graph, leaving the network at the tapped layer."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b 3 *size"]) -> Float[Tensor, "b c *spatial"]:
        """Images in [0, 1] to latents of about unit variance (the posterior mean)."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b 3 *size"]:
        """Latents to images in [0, 1]."""

    def decode_with_graph(self, latents: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b 3 *size"]:
        """As `decode`, but differentiable in the latents, and not clamped, so that no gradient ends at black or white.

        Only guidances that look at pixels ask for it.

        Raises:
            DapError: this backbone cannot.
        """
        del latents
        raise DapError(f"{self.card.name} cannot carry a gradient through its decoder; give it decode_with_graph.")

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor that decides a prediction, by name, for `weights_hash`."""

    def settings(self) -> dict[str, Any]:
        """What decides a prediction beside the weights, for `weights_hash`. The schedule, unless a subclass adds to it."""
        return {"schedule": self.schedule.settings()}

    def weights_hash(self) -> str:
        """sha256 over the settings and the names and bytes of all weights as loaded."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name, value in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_layer(self, layer: str) -> str:
        """The layer itself if it can be tapped.

        Raises:
            DapError: it cannot; the message lists the layers that can.
        """
        if layer not in self.layers:
            raise DapError(f"{self.card.name} has no layer {layer!r} to tap. {suggest(layer, self.layers)}")
        return layer


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance around a backbone (Ho & Salimans 2022): eps = null + scale · (cond − null).

    The two halves are two calls, so that only the half that supplies the features builds a graph.

    Args:
        backbone: what to wrap.
        scale: 1 is the conditional model alone, and costs one call.
        channels: how many latent channels are mixed; the others, and the variance, are the conditional half's. The DiT
            code base mixes 3 of 4, and every published table made with it inherits that.
    """

    backbone: Backbone
    scale: float
    channels: int | Literal["all"] = "all"

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
        """As `Backbone.predict`; the features come from the half that `branch` names."""

        def half(which: str, of: Tensor) -> Prediction:
            wanted = layer is not None and which == branch
            through = grad_through if wanted or grad_through == "denoiser" else "nothing"
            with torch.set_grad_enabled(through != "nothing"):
                return self.backbone.predict(
                    x if through != "nothing" else x.detach(),
                    t,
                    of,
                    layer=layer if wanted else None,
                    grad_through=through,
                )

        cond = half("cond", condition)
        if self.scale == 1 and branch == "cond":
            return cond
        null = half("null", self.backbone.null(len(x)))
        mixed = x.shape[1] if self.channels == "all" else self.channels

        def mix(cond: Tensor, null: Tensor) -> Tensor:
            guided = null + self.scale * (cond - null)
            return guided if mixed == x.shape[1] else torch.cat([guided[:, :mixed], cond[:, mixed:]], dim=1)

        x0 = None if cond.x0 is None or null.x0 is None else mix(cond.x0, null.x0)
        features = cond.features if branch == "cond" else null.features
        return Prediction(mix(cond.eps, null.eps), cond.variance, features, x0)
