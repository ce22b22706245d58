"""Stable Diffusion 3's flow-matching transformer (Esser et al. 2024) from any diffusers `StableDiffusion3Pipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_channels, image_size
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Flow, Time
from dap.base.errors import DapError


class MMDiT(PromptedBackbone):
    """A Stable Diffusion 3 pipeline as a backbone: velocity prediction on a flow, text and image tokens in one transformer.

    Layers are the block indices "0" … "n−1". Features are the image tokens of a block, (B, tokens, width).

    Args:
        pipe: a `StableDiffusion3Pipeline`. Text encoders that it lacks count as zeros, as in diffusers.
        card: the facts that belong to the weights.

    Raises:
        DapError: a CLIP text encoder is missing, or the parts do not fit each other.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        named = {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
        config = pipe.transformer.config
        if named["text_encoder"] is None or named["text_encoder_2"] is None:
            raise DapError(
                f"{card.name} lacks a CLIP text encoder; a Stable Diffusion 3 can do without text_encoder_3 alone."
            )
        check_channels(card, config.in_channels, config.out_channels, pipe.vae.config.latent_channels)
        super().__init__(
            pipe.transformer,
            pipe.vae,
            card=card,
            schedule=Flow.from_config(pipe.scheduler.config, (config.sample_size // config.patch_size) ** 2),
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            layers=[str(i) for i in range(len(pipe.transformer.transformer_blocks))],
            predicts="velocity",
            tokenizers=tokenizers_of(pipe),
            **{name: part for name, part in named.items() if part is not None},
        )
        self._pipe = pipe

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> MMDiT:
        """The backbone of a `StableDiffusion3Pipeline`.

        Raises:
            DapError: class names were given.
        """
        found.without_class_names()
        config = pipe.transformer.config
        size, layer = image_size(config.sample_size, pipe.vae), str(config.num_layers // 2)
        return cls(pipe, card=found.card("mmdit", size=size, layer=layer))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        states, _, pooled, _ = self._pipe.encode_prompt(
            prompts, prompts, prompts, device=self.device, do_classifier_free_guidance=False
        )
        return states, pooled

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, pooled = self.encodings(condition)
        dtype = self.denoiser.dtype
        return self.denoiser(
            hidden_states=x.to(dtype),
            timestep=torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x)),
            encoder_hidden_states=states.to(dtype),
            pooled_projections=pooled.to(dtype),
        ).sample.float()
