"""PixArt-α and PixArt-Σ (Chen et al. 2024) from diffusers' `PixArtAlphaPipeline` or `PixArtSigmaPipeline`: a DiT told text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, image_size
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError

LONGEST = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""How many tokens of a prompt the text encoder of each pipeline reads."""


class PixArt(PromptedBackbone):
    """A PixArt pipeline as a backbone: the tokens of a T5 encoder enter each block of a DiT by cross-attention.

    Layers are the block indices "0" … "n−1". Features are the image tokens of a block, (B, tokens, width). Weights of 1024 px
    that are told the resolution and the aspect ratio are told those of the image that they make.

    Args:
        pipe: a `PixArtAlphaPipeline` or a `PixArtSigmaPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: the parts do not fit each other.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        config, kind = pipe.transformer.config, pipe.scheduler.config.get("prediction_type", "epsilon")
        given = config.out_channels or config.in_channels
        if (
            given not in (config.in_channels, 2 * config.in_channels)
            or config.in_channels != pipe.vae.config.latent_channels
        ):
            raise DapError(
                f"The transformer of {card.name} takes {config.in_channels} channels and gives {given}, its autoencoder makes "
                f"{pipe.vae.config.latent_channels}: a PixArt gives as many channels as it takes, or twice as many."
            )
        self._longest = next(LONGEST[of.__name__] for of in type(pipe).__mro__ if of.__name__ in LONGEST)
        super().__init__(
            pipe.transformer,
            pipe.vae,
            card=card,
            schedule=VariancePreserving.from_config(pipe.scheduler.config),
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            layers=[str(i) for i in range(config.num_layers)],
            predicts=kind,
            learned_variance=given == 2 * config.in_channels,
            tokenizers=tokenizers_of(pipe, {"": self._longest}, lower=True),
            text_encoder=pipe.text_encoder,
        )
        self._pipe = pipe

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> PixArt:
        """The backbone of a PixArt pipeline.

        Raises:
            DapError: class names were given, or the class `PixArt` does not take the pipeline.
        """
        found.without_class_names()
        config = pipe.transformer.config
        kind = "lcm" if type(pipe.scheduler).__name__ == "LCMScheduler" else "pixart"
        size, layer = image_size(config.sample_size, pipe.vae), str(round(config.num_layers * 8 / 28))
        return cls(pipe, card=replace(found.card(kind, size=size, layer=layer), guidance=None))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        return self._pipe.encode_prompt(
            prompts, False, device=self.device, clean_caption=False, max_sequence_length=self._longest
        )[:2]

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, mask = self.encodings(condition)
        dtype, told = self.denoiser.dtype, {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            side = torch.full((len(x), 1), float(self.card.size), dtype=dtype, device=x.device)
            told = {"resolution": side.expand(-1, 2), "aspect_ratio": torch.ones_like(side)}
        return self.denoiser(
            x.to(dtype),
            encoder_hidden_states=states.to(dtype),
            encoder_attention_mask=mask.to(dtype),
            timestep=torch.as_tensor(t, device=x.device).expand(len(x)),
            added_cond_kwargs=told,
        ).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "tokens": self._longest}
