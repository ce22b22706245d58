"""Stable Diffusion 1 and 2 (Rombach et al. 2022) from any diffusers `StableDiffusionPipeline`: a text-conditioned U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card, Prediction
from dap.backbones.modules import ModuleBackbone
from dap.backbones.prompts import Prompts
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError


class UNet(ModuleBackbone):
    """A Stable Diffusion pipeline as a backbone. Classes are prompts, so it knows any class that has a name.

    Layers are "down.0" …, "mid" and "up.0" … in the order the U-Net runs them; features are a block's output, one token
    for each place of its grid, (B, h·w, channels).

    Args:
        pipe: a `StableDiffusionPipeline`; its safety checker is not used.
        schedule: of training.
        card: what belongs to the weights.

    Raises:
        DapError: a U-Net with inputs beyond latents, time and prompt, or a kind of prediction that is not known.
    """

    def __init__(self, pipe: Any, *, schedule: VariancePreserving, card: Card) -> None:
        unet, kind = pipe.unet, pipe.scheduler.config.get("prediction_type", "epsilon")
        if unet.config.in_channels != pipe.vae.config.latent_channels:
            raise DapError(
                f"The U-Net of {card.name} takes {unet.config.in_channels} channels, its autoencoder makes "
                f"{pipe.vae.config.latent_channels}: an inpainting or editing model cannot sample a class alone."
            )
        if kind not in ("epsilon", "v_prediction"):
            raise DapError(f"{card.name} predicts {kind!r}; epsilon and v_prediction are known.")
        super().__init__(unet, pipe.vae, text_encoder=pipe.text_encoder)
        self.card, self.prediction_type = card, kind
        self.schedule = self._preserving = schedule
        side = unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.latent_shape = (unet.config.in_channels, height, width)
        self._by_layer = {f"down.{i}": block for i, block in enumerate(unet.down_blocks)}
        if unet.mid_block is not None:
            self._by_layer["mid"] = unet.mid_block
        self._by_layer |= {f"up.{i}": block for i, block in enumerate(unet.up_blocks)}
        self.layers = tuple(self._by_layer)
        self.class_names = ()
        self.learned_variance = False
        self._prompts = Prompts(self._encode_prompts, card)
        self._pipe = pipe

    def _encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        return (self._pipe.encode_prompt(prompts, self.device, 1, False)[0],)

    def condition(self, class_names: Sequence[str]) -> Tensor:
        return self._prompts.condition(class_names)

    def prompt(self, texts: Sequence[str]) -> Tensor:
        return self._prompts.texts(texts)

    def null(self, n: int) -> Tensor:
        return self._prompts.null(n)

    def module(self, layer: str) -> nn.Module:
        return self._by_layer[layer]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        (context,) = self._prompts.rows(condition)
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        dtype = self.denoiser.dtype
        return self.denoiser(x.to(dtype), timestep, context.to(dtype)).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "prediction_type": self.prediction_type}

    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        eps = output if self.prediction_type == "epsilon" else self._preserving.velocity_to_eps(x, t, output)
        return Prediction(eps, None, None)
