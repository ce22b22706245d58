"""The interface of a backbone: frozen diffusion weights, and a `Card` with everything that belongs to them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.schedules import Schedule, Time
from dap.base.describing.backbones import arguments, code_and_networks
from dap.base.errors import DapError
from dap.base.registry import Recorded, suggest
from dap.choices import SolverName
from dap.guidance.base import GradThrough


@dataclass(frozen=True)
class Card:
    """Facts that belong to weights, and not to a method.

    Attributes:
        name: the name of the weights in the manifest and the report.
        licence: the licence of the weights. The card of a distilled set repeats it.
        size: the side in px of the images that the weights make.
        cfg: the scale of classifier-free guidance. 1 switches it off.
        cfg_channels: how many latent channels classifier-free guidance mixes, or "all". The DiT lineage mixes 3 of 4.
        layer: the layer whose features guide by default.
        frames: how many frames the clips have that the weights make; None for weights that make images.
        scale: the default γ of the method `dap`, in the unit `unit`.
        unit: the unit of `scale`, "paper" or "step", see `dap.guidance.Descend`.
        template: the prompt of a text-conditioned backbone, with {} for the class name. None: the backbone takes labels.
        negative_prompt: the text that the unconditional half of a text-conditioned backbone is given.
        frequency_shift: a number in DiT's sinusoidal time embedding: the i-th of 128 frequencies is
            10000^(−i / (128 − shift)). The original code has 0, diffusers has 1. Weights that were trained with one of them
            predict a little wrong with the other.
        cfg_interval: the times between which classifier-free guidance is on (Kynkäänniemi et al. 2024), as parts of the schedule
            from 0 (the data) to 1 (the noise). None: always.
        guidance: the scale of classifier-free guidance that a guidance-distilled network is told as an input (LCM, Flux).
            None: the network takes no such input. It is apart from `cfg`, which mixes two predictions.
        steps, solver, eta: how weights are sampled that were distilled to few steps. None: as all others.
        guessed: whether `layer` is only one in the middle, which nobody has compared with others. What samples such a backbone
            with its default layer chooses one on real images first, as `layer: auto` does.

    Raises:
        DapError: the unit or `cfg_channels` has a value that it cannot have.
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
    frames: int | None = None
    cfg_interval: tuple[float, float] | None = None
    guidance: float | None = None
    steps: int | None = None
    solver: SolverName | None = None
    eta: float | None = None
    guessed: bool = False

    def __post_init__(self) -> None:
        if self.unit not in ("paper", "step"):
            raise DapError(f"The unit on the card of {self.name} is {self.unit!r}; it should be 'paper' or 'step'.")
        if self.cfg_channels != "all" and not (isinstance(self.cfg_channels, int) and self.cfg_channels >= 1):
            raise DapError(f"cfg_channels on the card of {self.name} is {self.cfg_channels!r}; give a number or 'all'.")
        if self.cfg_interval is not None and not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise DapError(
                f"cfg_interval on the card of {self.name} is {list(self.cfg_interval)}; give two rising numbers from 0 to 1."
            )

    def check_images(self, size: int, frames: int | None) -> None:
        """Check that real images are as those that the weights make. Else their features are of another scale, even where a
        pooled feature has the same length.

        Raises:
            DapError: they have another side, or they are clips of another length.
        """
        if size != self.size:
            raise DapError(
                f"The real images have {size} × {size} px, and {self.name} makes {self.size} × {self.size} px. Open them with "
                f"size={self.size}."
            )
        if frames != self.frames:
            have, make = ("images" if n is None else f"clips of {n} frames" for n in (frames, self.frames))
            raise DapError(
                f"The real data are {have}, and {self.name} makes {make}. Open them with frames={self.frames}."
            )

    def written(self) -> dict[str, Any]:
        """The fields as a card.yaml beside the weights has them. A layer that is only guessed is left out."""
        unsaid = {"guessed", "layer"} if self.guessed else {"guessed"}
        said = {name: value for name, value in vars(self).items() if value is not None and name not in unsaid}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    @property
    def prompts(self) -> dict[str, str]:
        """The template and the negative prompt, if there are any. They decide predictions, but are not among the weights."""
        told = {"template": self.template, "negative_prompt": self.negative_prompt}
        return {name: text for name, text in told.items() if text is not None}


@dataclass(frozen=True)
class Prediction:
    """The result of one pass of a backbone.

    Attributes:
        eps: predicted noise, (B, C, *spatial).
        variance: the raw channels of a learned-range variance, of the same shape, in [-1, 1], or None.
        features: the output of the tapped layer, (B, tokens, width), or None.
        x0: the predicted x_0, or None if (x − sigma eps) / alpha is the x_0. A flow returns its x_0, because a flow
            starts at alpha = 0, where this formula fails.
    """

    eps: Float[Tensor, "b c *spatial"]
    variance: Float[Tensor, "b c *spatial"] | None
    features: Float[Tensor, "b tokens width"] | None
    x0: Float[Tensor, "b c *spatial"] | None = None


class Backbone(Recorded, ABC):
    """A pre-trained diffusion model, its autoencoder and its label space. No parameter trains.

    `dap.backbones.ModuleBackbone` makes a backbone from a torch network. It is the easier start for a backbone of your
    own.

    Attributes:
        card: the facts that belong to the weights.
        latent_shape: the shape of a latent, (C, *spatial).
        layers: the names of the layers that can be tapped.
        class_names: the names of the classes, in the backbone's own label order. Empty for a backbone that takes
            prompts.
        schedule: says how much noise there is at every time.
        learned_variance: whether predictions have a variance.
        device: the device of the weights.
        clip: the largest size that a value of the predicted x_0 may have while a solver steps, or None. Models of pixels are
            sampled so by their authors; features, energies and pushes see the prediction as it is.
        unconditional: whether the weights know no classes. Then every class has the same condition, and a class comes into
            an image through real images alone.
        classifier_free: whether the weights were trained with a condition that stands for "no class". Classifier-free
            guidance needs it. Without it `null` is still a condition that favours no class.
    """

    card: Card
    latent_shape: tuple[int, ...]
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    schedule: Schedule
    learned_variance: bool
    device: torch.device
    clip: float | None = None
    unconditional: bool = False
    classifier_free: bool = True

    @abstractmethod
    def condition(self, class_names: Sequence[str]) -> Tensor:
        """Conditions (n, …) for names of classes. This is the only place where the data's labels become the backbone's.

        Raises:
            DapError: a name is not among this backbone's classes. The message lists the names of both.
        """

    def prompt(self, texts: Sequence[str]) -> Tensor:
        """Conditions (n, …) for texts of single images, such as captions. They are valid for the run that is begun with them.

        Raises:
            DapError: this backbone takes labels and not text.
        """
        del texts
        raise DapError(
            f"{self.card.name} is told labels, not text. Work with captions needs a text-conditioned backbone, such as "
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
        """The noise prediction and, if a layer is named, the features of this layer, in one pass.

        Under "features" only the features carry a graph back to x. The graph ends at the tapped layer, so a gradient costs
        the backward pass of the layers up to there and no more.

        Args:
            x: x_t.
            t: the time, one for all images.
            condition: (B, …), from `condition`, `prompt` or `null`.
            layer: a name of `layers`, or None.
            grad_through: how far a gradient can flow back to x.

        Raises:
            DapError: there is no such layer.
        """

    @abstractmethod
    def tap(
        self, x: Float[Tensor, "b c *spatial"], t: Time, condition: Tensor, layer: str
    ) -> Float[Tensor, "b tokens width"]:
        """The features alone, without a graph. The layers behind the tapped one need not be run."""

    def features(
        self, x: Float[Tensor, "b c *spatial"], t: Time, condition: Tensor, layers: Sequence[str]
    ) -> dict[str, Float[Tensor, "b tokens width"]]:
        """The features of several layers by name, differentiable in x.

        The default asks `predict` once for each layer. A backbone that can tap all layers in one pass, and leave the network
        behind the last of them, should override it.

        Raises:
            DapError: there is no such layer.
        """
        found: dict[str, Tensor] = {}
        for layer in layers:
            features = self.predict(x, t, condition, layer=layer, grad_through="features").features
            assert features is not None
            found[layer] = features
        return found

    @abstractmethod
    def encode(self, images: Float[Tensor, "b 3 *size"]) -> Float[Tensor, "b c *spatial"]:
        """Images in [0, 1] to latents of about unit variance: the mean of the posterior, and no graph."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b 3 *size"]:
        """Latents to images in [0, 1], without a graph."""

    def decode_with_graph(self, latents: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b 3 *size"]:
        """Latents to images, as `decode`, but differentiable in the latents.

        Pixels are not clamped to [0, 1], so that no gradient ends at black or white. Only guidances that look at pixels
        need this method.

        Raises:
            DapError: this backbone cannot carry a gradient through its decoder.
        """
        del latents
        raise DapError(f"{self.card.name} cannot carry a gradient through its decoder; give it decode_with_graph.")

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor that decides a prediction, by name, for `weights_hash`."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides a prediction besides the weights, for `weights_hash`: the schedule, and a subclass's own."""
        clip = {} if self.clip is None else {"clip": self.clip}
        interval = {} if self.card.cfg_interval is None else {"cfg_interval": list(self.card.cfg_interval)}
        return {"schedule": self.schedule.settings(), **clip, **interval}

    @contextmanager
    def widened(self) -> Iterator[bool]:
        """Compute in float32 while the block runs, with the same weights. Gives whether anything changes by it."""
        yield False

    def weights_hash(self) -> str:
        """The sha256 of the settings and of the names and bytes of all weights as they were loaded.

        Code of the user's belongs to it too, be it that of the backbone or of a network in it: with other code the same weights
        predict otherwise. So do the arguments of a user's backbone that can be described and are no networks, and all that
        decides the output of the networks of a user, see `Describer.network`.
        """
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for said in (code_and_networks(self), arguments(self)):
            if said:
                digest.update(json.dumps(said, sort_keys=True).encode())
        for name, value in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_layer(self, layer: str) -> str:
        """Return the layer if it can be tapped.

        Raises:
            DapError: the layer cannot be tapped. The message lists the layers that can be tapped.
        """
        if layer not in self.layers:
            raise DapError(f"{self.card.name} has no layer {layer!r} to tap. {suggest(layer, self.layers)}")
        return layer
