"""What backbones made of diffusers modules share: the autoencoder, the frozen state, and the tap at a layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Backbone, Prediction
from dap.backbones.schedules import Time
from dap.guidance.base import GradThrough

PIXELS = 64 * 256**2
"""Of the images that go through the autoencoder together."""


class _Tapped(Exception):
    """Leaves the network at the tapped layer with its features."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class ModuleBackbone(Backbone):
    """A denoiser and an autoencoder of diffusers, frozen.

    Subclasses name the modules that can be tapped, run the denoiser and say what its output means.

    Args:
        denoiser: the network that is tapped.
        vae: `AutoencoderKL`.
        others: further modules that decide a prediction, by name, such as text encoders.
    """

    def __init__(self, denoiser: Any, vae: Any, **others: Any) -> None:
        self._parts: dict[str, nn.Module] = {"denoiser": denoiser, "vae": vae, **others}
        for part in self._parts.values():
            # Training mode would drop labels or units at random.
            part.eval().requires_grad_(False)
        self.denoiser, self.vae = denoiser, vae
        self.device = next(denoiser.parameters()).device

    @abstractmethod
    def module(self, layer: str) -> nn.Module:
        """The module whose output a layer's features are."""

    @abstractmethod
    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        """The denoiser's raw output in float32; `t` is one time for all images, or a tensor (B,)."""

    @abstractmethod
    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        """What the raw output means, without features."""

    def predict(
        self,
        x: Tensor,
        t: Time,
        condition: Tensor,
        *,
        layer: str | None = None,
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            kept.append(tokens(output))
            if grad_through == "denoiser" or not torch.is_grad_enabled():
                return output
            # What follows builds no graph, though a U-Net's skip connections still carry one past this layer: the
            # enclosing `set_grad_enabled` turns gradients on again.
            torch.set_grad_enabled(False)
            return detached(output)

        graph = grad_through == "denoiser" or (grad_through == "features" and layer is not None)
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()), self._hook(layer, keep):
            prediction = self.read(x, t, self.run(x, t, condition))
        return Prediction(prediction.eps, prediction.variance, kept[0] if kept else None, prediction.x0)

    @torch.no_grad()
    def tap(self, x: Tensor, t: Time, condition: Tensor, layer: str) -> Tensor:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            raise _Tapped(tokens(output))

        with self._hook(layer, leave):
            try:
                self.run(x, t, condition)
            except _Tapped as tapped:
                return tapped.features
        raise AssertionError("the tapped layer was not reached")

    @contextmanager
    def _hook(self, layer: str | None, hook: Any) -> Iterator[None]:
        if layer is None:
            yield
            return
        handle = self.module(self.check_layer(layer)).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        x = (images * 2 - 1).to(self.vae.device, self.vae.dtype)
        means = [self.vae.encode(part).latent_dist.mean.float() for part in x.split(self._together)]
        return (torch.cat(means) - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_with_graph(latents).clamp(0, 1)

    def decode_with_graph(self, latents: Tensor) -> Tensor:
        z = (latents / self.vae.config.scaling_factor + self._shift).to(self.vae.device, self.vae.dtype)
        images = torch.cat([self.vae.decode(part).sample.float() for part in z.split(self._together)])
        return images / 2 + 0.5

    @property
    def _together(self) -> int:
        """Images that go through the autoencoder at once: its activations grow with the pixels."""
        return max(1, PIXELS // self.card.size**2)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def settings(self) -> dict[str, Any]:
        config = self.vae.config
        return {**super().settings(), "latents": [config.scaling_factor, self._shift]}

    def state(self) -> dict[str, Tensor]:
        parts: Mapping[str, nn.Module] = self._parts
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }


def stream(output: Any) -> Tensor:
    """The image stream of a block's output: a tensor, (hidden, skips) of a U-Net, or (text, image) of a joint transformer."""
    if isinstance(output, Tensor):
        return output
    first, second = output[0], output[1]
    return second if isinstance(second, Tensor) else first


def tokens(output: Any) -> Tensor:
    """A block's output as (B, tokens, width)."""
    x = stream(output)
    return x.flatten(2).transpose(1, 2) if x.ndim > 3 else x


def detached(output: Any) -> Any:
    """The same output without its graph."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, (tuple, list)):
        return type(output)(detached(part) for part in output)
    return output
