"""Autoencoders of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dap.backbones.configurations.types import Factor, Flag, Number, Positive, Table, Whole, Wholes, Word, Words

AUTOENCODERS: Mapping[str, Table] = {
    "AutoencoderKL": {
        "in_channels": Factor,
        "out_channels": Factor,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Whole,
        "act_fn": Word,
        "latent_channels": Whole,
        "norm_num_groups": Whole,
        "scaling_factor": Positive,
        "shift_factor": Number | None,
        "latents_mean": list[Number] | tuple[Number, ...] | None,
        "latents_std": list[Positive] | tuple[Positive, ...] | None,
        "use_quant_conv": Flag,
        "use_post_quant_conv": Flag,
        "mid_block_add_attention": Flag,
        "sample_size": Wholes,  # indifferent: only decoding by tiles asks for it
        "force_upcast": Flag,  # indifferent: an overflow is decoded again in float32 whatever it says
    },
    "AutoencoderTiny": {
        "in_channels": Factor,
        "out_channels": Factor,
        "block_out_channels": list[Whole] | tuple[Whole, ...],  # the encoder's again, which diffusers adds
        "encoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "decoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "num_encoder_blocks": list[Whole] | tuple[Whole, ...],
        "num_decoder_blocks": list[Whole] | tuple[Whole, ...],
        "act_fn": Word,
        "upsample_fn": Word,
        "latent_channels": Whole,
        "upsampling_scaling_factor": Literal[2],
        "latent_magnitude": Number,  # indifferent, as the next: only the helpers for eight-bit latents ask for them
        "latent_shift": Number,
        "scaling_factor": Positive,
        "shift_factor": Literal[None, 0, False],
        "force_upcast": Flag,
    },
}
"""By the class of an autoencoder its fields. Autoencoders of other classes are not followed."""
