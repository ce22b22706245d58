"""Wan (Wan team 2025): a flow-matching transformer of clips, from any diffusers `WanPipeline` of one transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_channels, check_clip
from dap.backbones.prompts import PromptedBackbone, Tokenizer
from dap.backbones.schedules import Flow, Time
from dap.base.errors import DapError

SIZE = 480
"""The side of clips in px where no card.yaml says another: the shorter side of diffusers' default."""

TOKENS = 512
"""How many tokens of a prompt diffusers' `WanPipeline` gives to the transformer."""


class Wan(PromptedBackbone):
    """A Wan pipeline as a backbone: velocity prediction on a flow, latents (C, frames, h, w) of a causal autoencoder.

    Layers are the block indices "0" … "n−1". Features are all tokens of a block, frame after frame, (B, tokens, width).

    The network makes clips of any size and length. So the card says how large and how long they are; the card.yaml beside the
    weights may say another `size` and `frames`. The autoencoder takes 1 + 4k frames.

    Args:
        pipe: a `WanPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: the pipeline has two transformers or a time for each token (Wan 2.2), its parts do not fit each other, or the
            size or the frames on the card do not fit them.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        network, vae = pipe.transformer, pipe.vae
        if network is None or pipe.transformer_2 is not None or pipe.config.boundary_ratio is not None:
            raise DapError(f"{card.name} has two transformers (Wan 2.2), which dap does not sample; take a Wan 2.1.")
        if pipe.config.expand_timesteps:
            raise DapError(
                f"{card.name} takes a time for each token (Wan 2.2 TI2V), which dap does not feed; take a Wan 2.1."
            )
        check_channels(card, network.config.in_channels, network.config.out_channels, vae.config.z_dim)
        space, time = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
        patch = network.config.patch_size
        check_clip(card, space * max(patch[1:]), time * patch[0])
        side, long = card.size // space, ((card.frames or 1) - 1) // time + 1
        super().__init__(
            network,
            vae,
            card=card,
            schedule=Flow.from_config(pipe.scheduler.config, long * (side // patch[1]) ** 2),
            latent_shape=(vae.config.z_dim, long, side, side),
            layers=[str(i) for i in range(len(network.blocks))],
            predicts="velocity",
            tokenizers=[Tokenizer(pipe.tokenizer, TOKENS)],
            text_encoder=pipe.text_encoder,
        )
        self._pipe = pipe

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Wan:
        """The backbone of a `WanPipeline`.

        Raises:
            DapError: class names were given.
        """
        found.without_class_names()
        layer = str(0 if pipe.transformer is None else len(pipe.transformer.blocks) // 2)
        return cls(pipe, card=found.card("wan", size=SIZE, layer=layer, free=True))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        how = {"do_classifier_free_guidance": False, "max_sequence_length": TOKENS, "device": self.device}
        return (self._pipe.encode_prompt(prompts, **how)[0],)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        (states,) = self.encodings(condition)
        dtype = self.denoiser.dtype
        return self.denoiser(
            hidden_states=x.to(dtype),
            timestep=torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x)),
            encoder_hidden_states=states.to(dtype),
        ).sample.float()

    @property
    def _shift(self) -> Tensor:
        """The mean of each channel of the autoencoder's latents, (C, 1, 1, 1)."""
        return torch.tensor(self.vae.config.latents_mean, device=self.device).view(-1, 1, 1, 1)

    @property
    def _scale(self) -> Tensor:
        """One over the standard deviation of each channel of the autoencoder's latents, (C, 1, 1, 1)."""
        return 1 / torch.tensor(self.vae.config.latents_std, device=self.device).view(-1, 1, 1, 1)
