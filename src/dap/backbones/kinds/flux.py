"""FLUX.1 (Black Forest Labs 2024) from any diffusers `FluxPipeline`: a flow on patches of latents, mostly guidance-distilled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, image_size
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Flow, Time
from dap.base.errors import DapError

SIDE = 128
"""The side of the latents that diffusers' pipeline makes when it is not told a size; the weights themselves have none."""

LONGEST = {True: 512, False: 256}
"""How many tokens of a prompt T5 reads, for weights that are told a guidance (dev) and for others (schnell)."""


class Flux(PromptedBackbone):
    """A Flux pipeline as a backbone: velocity prediction on a flow, text and image tokens in one transformer.

    Layers are the joint blocks "0" … "n−1" and the single blocks "single.0" … after them. Features are the image tokens of a
    block, (B, tokens, width). Latents are (B, 16, h, w), and each token is a patch of 2 × 2 of them.

    Weights that are told the scale of the guidance (dev) get `guidance` of the card. `cfg` is beside it, and mixes two passes.
    The size of the images is free: `size` in card.yaml chooses another than 1024 px.

    Args:
        pipe: a `FluxPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: a text encoder is missing, the parts do not fit each other, or the size is none for patches.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        config, factor = pipe.transformer.config, pipe.vae_scale_factor
        if pipe.text_encoder is None or pipe.text_encoder_2 is None:
            raise DapError(f"{card.name} lacks a text encoder; a Flux reads prompts with a CLIP and a T5.")
        channels = pipe.vae.config.latent_channels
        if not config.in_channels == (config.out_channels or config.in_channels) == 4 * channels:
            raise DapError(
                f"The transformer of {card.name} takes {config.in_channels} channels and gives {config.out_channels}, its "
                f"autoencoder makes {channels}; a Flux takes and gives four times as many, one patch of 2 x 2 latents."
            )
        if card.size % (2 * factor):
            raise DapError(
                f"card.yaml of {card.name} says size: {card.size}, but a Flux makes sides that {2 * factor} divides."
            )
        self._longest, side = LONGEST[bool(config.guidance_embeds)], card.size // factor
        super().__init__(
            pipe.transformer,
            pipe.vae,
            card=card if config.guidance_embeds else replace(card, guidance=None),
            schedule=Flow.from_config(pipe.scheduler.config, (side // 2) ** 2, even=True),
            latent_shape=(channels, side, side),
            layers=[
                *map(str, range(config.num_layers)),
                *(f"single.{i}" for i in range(config.num_single_layers)),
            ],
            predicts="velocity",
            tokenizers=tokenizers_of(pipe, {"_2": self._longest}),
            text_encoder=pipe.text_encoder,
            text_encoder_2=pipe.text_encoder_2,
        )
        self._pipe = pipe
        # The places of the tokens: text has none, and a patch has a row and a column.
        rows, columns = torch.meshgrid(torch.arange(side // 2), torch.arange(side // 2), indexing="ij")
        self._places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Flux:
        """The backbone of a `FluxPipeline`.

        Raises:
            DapError: class names were given, or the class `Flux` does not take the pipeline.
        """
        found.without_class_names()
        size, layer = image_size(SIDE, pipe.vae), str(pipe.transformer.config.num_layers // 2)
        return cls(pipe, card=found.card("flux", size=size, layer=layer, free=True))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        return self._pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self._longest)[:2]

    def module(self, layer: str) -> nn.Module:
        single, number = layer.startswith("single."), int(layer.removeprefix("single."))
        return (self.denoiser.single_transformer_blocks if single else self.denoiser.transformer_blocks)[number]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, pooled = self.encodings(condition)
        (n, channels, h, w), dtype, guidance = x.shape, self.denoiser.dtype, self.card.guidance
        patches = x.reshape(n, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
        time = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(n)
        out = self.denoiser(
            hidden_states=patches.to(dtype),
            timestep=time.to(dtype) / 1000,
            guidance=None if guidance is None else torch.full((n,), guidance, device=x.device),
            pooled_projections=pooled.to(dtype),
            encoder_hidden_states=states.to(dtype),
            txt_ids=torch.zeros(states.shape[1], 3, dtype=dtype, device=x.device),
            img_ids=self._places.to(x.device, dtype),
        ).sample.float()
        return out.reshape(n, h // 2, w // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def settings(self) -> dict[str, Any]:
        told = {"guidance": self.card.guidance, "tokens": self._longest, "size": self.card.size}
        return {**super().settings(), **told}
