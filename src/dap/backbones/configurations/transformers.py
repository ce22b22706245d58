"""Transformers of diffusers that are told text, and the autoencoder of Sana."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import Factor, Flag, Number, Off, Positive, Table, Whole, Word, Words

SHAPE: Table = {
    "attention_head_dim": Whole,
    "num_attention_heads": Whole,
    "num_layers": Whole,
    "patch_size": Whole,
    "in_channels": Whole,
}
DROPOUT = Annotated[float, Field(ge=0, lt=1), Strict()]
Wides = list[Whole] | tuple[Whole, ...]
Multiples = list[Wides] | tuple[Wides, ...]

TRANSFORMERS: Mapping[str, Table] = {
    "PixArtTransformer2DModel": {
        **SHAPE,
        "out_channels": Whole | None,
        "sample_size": Whole,
        "cross_attention_dim": Whole,
        "caption_channels": Whole | None,
        "interpolation_scale": Number | None,
        "use_additional_conditions": Flag | None,
        "num_embeds_ada_norm": Whole,
        "norm_num_groups": Whole,
        "norm_type": Literal["ada_norm_single"],
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "activation_fn": Word,
        "attention_bias": Flag,
        "attention_type": Literal["default"],
        "upcast_attention": Flag,
        "dropout": DROPOUT,
    },
    "FluxTransformer2DModel": {
        **SHAPE,
        "out_channels": Whole | None,
        "num_single_layers": Whole,
        "joint_attention_dim": Whole,
        "pooled_projection_dim": Whole,
        "guidance_embeds": Flag,
        "axes_dims_rope": Wides,
    },
    "SanaTransformer2DModel": {
        **SHAPE,
        "out_channels": Whole | None,
        "sample_size": Whole,
        "num_cross_attention_heads": Whole | None,
        "cross_attention_head_dim": Whole | None,
        "cross_attention_dim": Whole | None,
        "caption_channels": Whole,
        "mlp_ratio": Positive,
        "attention_bias": Flag,
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "interpolation_scale": Number | None,
        "guidance_embeds": Off,
        "guidance_embeds_scale": Number,  # indifferent where nothing is embedded
        "qk_norm": Word | None,
        "timestep_scale": Positive,
        "dropout": DROPOUT,
    },
    "AutoencoderDC": {
        "in_channels": Factor,
        "latent_channels": Whole,
        "attention_head_dim": Whole,
        "encoder_block_types": Word | Words,
        "decoder_block_types": Word | Words,
        "encoder_block_out_channels": Wides,
        "decoder_block_out_channels": Wides,
        "encoder_layers_per_block": Wides,
        "decoder_layers_per_block": Wides,
        "encoder_qkv_multiscales": Multiples,
        "decoder_qkv_multiscales": Multiples,
        "upsample_block_type": Word,
        "downsample_block_type": Word,
        "decoder_norm_types": Word | Words,
        "decoder_act_fns": Word | Words,
        "encoder_out_shortcut": Flag,
        "decoder_in_shortcut": Flag,
        "decoder_conv_act_fn": Word,
        "scaling_factor": Positive,
    },
}
"""By the class of a network its fields."""
