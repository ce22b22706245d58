"""CogVideoX 1.0 (Yang et al. 2024): text and clip in one transformer, from any diffusers `CogVideoXPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_channels, check_clip
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import KINDS, Time, VariancePreserving, ZeroTerminal
from dap.base.errors import DapError


class CogVideoX(PromptedBackbone):
    """A CogVideoX pipeline as a backbone: velocity prediction, and a schedule that ends at noise alone.

    Layers are the block indices "0" … "n−1". Features are the tokens of the clip that a block gives, frame after frame,
    (B, tokens, width). Latents are (C, frames, h, w). The weights of 2B add places to the tokens, those of 5B turn queries and
    keys by them.

    The network makes clips of any size and length. So the card says how large and how long they are; the card.yaml beside the
    weights may say another `size` and `frames`. The published autoencoder takes 1 + 8k frames.

    Args:
        pipe: a `CogVideoXPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: the parts do not fit each other, the weights predict no velocity, or the size or the frames on the card do not
            fit them.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        network, vae, noise = pipe.transformer, pipe.vae, pipe.scheduler.config
        config, space, time = network.config, pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        channels = vae.config.latent_channels
        check_channels(card, config.in_channels, config.out_channels or channels, channels)
        # The autoencoder takes latent frames two by two after the first: of an even number it makes more frames than went in.
        check_clip(card, space * config.patch_size, 2 * time)
        if config.temporal_compression_ratio != time:
            raise DapError(
                f"The transformer of {card.name} counts {config.temporal_compression_ratio} frames a latent frame, its "
                f"autoencoder {time}; take parts that were trained together."
            )
        if KINDS.get(noise.prediction_type) != "velocity":
            raise DapError(
                f"The scheduler of {card.name} says prediction_type {noise.prediction_type}; a CogVideoX predicts velocities, so "
                "set it to v_prediction in scheduler_config.json."
            )
        side, long = card.size // space, ((card.frames or 1) - 1) // time + 1
        self._longest = config.max_text_seq_length
        super().__init__(
            network,
            vae,
            card=card,
            schedule=ZeroTerminal.shifted(
                VariancePreserving.from_config({**noise, "rescale_betas_zero_snr": False}), noise.snr_shift_scale
            ),
            latent_shape=(channels, long, side, side),
            layers=[str(i) for i in range(config.num_layers)],
            predicts="velocity",
            tokenizers=tokenizers_of(pipe, {"": self._longest}),
            text_encoder=pipe.text_encoder,
        )
        self._pipe = pipe
        self._turns: tuple[Tensor, Tensor] | None = None
        if config.use_rotary_positional_embeddings:
            self._turns = pipe._prepare_rotary_positional_embeddings(card.size, card.size, long, self.device)

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> CogVideoX:
        """The backbone of a `CogVideoXPipeline`.

        Raises:
            DapError: class names were given, or the class `CogVideoX` does not take the pipeline.
        """
        found.without_class_names()
        config = pipe.transformer.config
        size, layer = config.sample_height * pipe.vae_scale_factor_spatial, str(config.num_layers // 2)
        return cls(pipe, card=found.card("cogvideox", size=size, layer=layer, free=True))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        how = {"do_classifier_free_guidance": False, "max_sequence_length": self._longest, "device": self.device}
        return (self._pipe.encode_prompt(prompts, **how)[0],)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def tokens(self, output: Any) -> Tensor:
        return output[0]  # a block gives the clip first and the text second

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        (states,) = self.encodings(condition)
        dtype = self.denoiser.dtype
        out = self.denoiser(
            hidden_states=x.transpose(1, 2).to(dtype),  # this network takes (B, frames, C, h, w)
            encoder_hidden_states=states.to(dtype),
            timestep=torch.as_tensor(t, device=x.device).expand(len(x)),
            image_rotary_emb=self._turns,
        ).sample.float()
        return out.transpose(1, 2)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "tokens": self._longest, "size": self.card.size}
