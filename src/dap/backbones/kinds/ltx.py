"""LTX-Video (HaCohen et al. 2024): a flow-matching transformer of clips, from any diffusers `LTXPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_channels, check_clip
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Flow, Time

SIZE = 512
"""The side of clips in px where no card.yaml says another: the height of diffusers' default."""

TOKENS = 128
"""How many tokens of a prompt diffusers' `LTXPipeline` gives to the transformer."""

RATE = 25
"""The frames a second that the transformer is told: diffusers' default."""


class LTX(PromptedBackbone):
    """An LTX-Video pipeline as a backbone: velocity prediction on a flow, latents (C, frames, h, w), each of them one token.

    Layers are the block indices "0" … "n−1". Features are all tokens of a block, frame after frame, (B, tokens, width).

    The network makes clips of any size and length. So the card says how large and how long they are; the card.yaml beside the
    weights may say another `size` and `frames`. The published autoencoder takes sides of 32 px and 1 + 8k frames. It keeps mean
    and deviation of its latents among its weights.

    Args:
        pipe: an `LTXPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: the parts do not fit each other, or the size or the frames on the card do not fit them.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        network, vae = pipe.transformer, pipe.vae
        channels, space, time = (
            vae.config.latent_channels,
            vae.spatial_compression_ratio,
            vae.temporal_compression_ratio,
        )
        check_channels(card, network.config.in_channels, network.config.out_channels or channels, channels)
        check_clip(card, space, time)
        side, long = card.size // space, ((card.frames or 1) - 1) // time + 1
        super().__init__(
            network,
            vae,
            card=card,
            schedule=Flow.from_config(pipe.scheduler.config, long * side**2, even=True),
            latent_shape=(channels, long, side, side),
            layers=[str(i) for i in range(len(network.transformer_blocks))],
            predicts="velocity",
            tokenizers=tokenizers_of(pipe, {"": TOKENS}),
            text_encoder=pipe.text_encoder,
        )
        self._pipe = pipe
        # Places are told in seconds and pixels, so that clips of all sizes share them.
        self._places = (time / RATE, space, space)

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> LTX:
        """The backbone of an `LTXPipeline`.

        Raises:
            DapError: class names were given, or the class `LTX` does not take the pipeline.
        """
        found.without_class_names()
        layer = str(len(pipe.transformer.transformer_blocks) // 2)
        return cls(pipe, card=found.card("ltx", size=SIZE, layer=layer, free=True))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        how = {"do_classifier_free_guidance": False, "max_sequence_length": TOKENS, "device": self.device}
        return self._pipe.encode_prompt(prompts, **how)[:2]

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, mask = self.encodings(condition)
        (n, _, frames, height, width), dtype = x.shape, self.denoiser.dtype
        out = self.denoiser(
            hidden_states=x.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=states.to(dtype),
            timestep=torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(n),
            encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self._places,
        ).sample.float()
        return out.transpose(1, 2).reshape(x.shape)

    @property
    def _shift(self) -> Tensor:
        """The mean of each channel of the autoencoder's latents, (C, 1, 1, 1)."""
        return self.vae.latents_mean.to(self.device).float().view(-1, 1, 1, 1)

    @property
    def _scale(self) -> Tensor:
        """The scaling factor over the standard deviation of each channel of the autoencoder's latents, (C, 1, 1, 1)."""
        return self.vae.config.scaling_factor / self.vae.latents_std.to(self.device).float().view(-1, 1, 1, 1)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "tokens": TOKENS, "frames a second": RATE}
