"""Denoisers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import (
    Deep,
    Flag,
    Number,
    Off,
    Position,
    Positive,
    Table,
    Whole,
    Wholes,
    Word,
    Words,
)

ATTENTION: Table = {
    "attention_head_dim": Whole,
    "num_attention_heads": Whole,
    "num_layers": Whole,
    "patch_size": Whole,
}

DENOISERS: Mapping[str, Table] = {
    "DiTTransformer2DModel": {
        **ATTENTION,
        "in_channels": Whole,
        "out_channels": Whole | None,
        "sample_size": Whole,
        "num_embeds_ada_norm": Whole,
        "norm_num_groups": Whole,
        "norm_type": Literal["ada_norm_zero"],
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "activation_fn": Word,
        "attention_bias": Flag,
        "upcast_attention": Flag,
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
    },
    "UNet2DConditionModel": {
        "sample_size": Whole | list[Whole] | tuple[Whole, ...],
        "in_channels": Whole,
        "out_channels": Whole,
        "center_input_sample": Flag,
        "flip_sin_to_cos": Flag,
        "freq_shift": Number,
        "down_block_types": Words,
        "mid_block_type": Word | None,
        "up_block_types": Words,
        "only_cross_attention": Flag | list[Flag] | tuple[Flag, ...],
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Wholes,
        "downsample_padding": Position,
        "mid_block_scale_factor": Positive,
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
        "act_fn": Word,
        "norm_num_groups": Whole | None,
        "norm_eps": Positive,
        "cross_attention_dim": Wholes,
        "transformer_layers_per_block": Deep,
        "reverse_transformer_layers_per_block": Deep | None,
        "encoder_hid_dim": Whole | None,
        "encoder_hid_dim_type": Literal[None, "text_proj"],
        "attention_head_dim": Wholes,
        "num_attention_heads": Wholes | None,
        "dual_cross_attention": Flag,
        "use_linear_projection": Flag,
        "class_embed_type": Off,
        "num_class_embeds": Off,
        "addition_embed_type": Off,
        "time_cond_proj_dim": Whole | None,
        "upcast_attention": Flag | None,
        "resnet_time_scale_shift": Word,
        "resnet_skip_time_act": Flag,
        "resnet_out_scale_factor": Positive,
        "time_embedding_type": Literal["positional", "fourier"],
        "time_embedding_dim": Whole | None,
        "time_embedding_act_fn": Word | None,
        "timestep_post_act": Word | None,
        "conv_in_kernel": Whole,
        "conv_out_kernel": Whole,
        "attention_type": Literal["default"],
        "mid_block_only_cross_attention": Flag | None,
        "cross_attention_norm": Word | None,
        # These four say how a condition is added that is refused above.
        "addition_time_embed_dim": Any,
        "class_embeddings_concat": Any,
        "addition_embed_type_num_heads": Any,
        "projection_class_embeddings_input_dim": Any,
    },
    "SD3Transformer2DModel": {
        **ATTENTION,
        "sample_size": Whole,
        "in_channels": Whole,
        "out_channels": Whole,
        "joint_attention_dim": Whole,
        "caption_projection_dim": Whole,
        "pooled_projection_dim": Whole,
        "pos_embed_max_size": Whole,
        "dual_attention_layers": list[Position] | tuple[Position, ...],
        "qk_norm": Word | None,
    },
}
"""By the class of a network its fields."""

BY_KIND: Mapping[str, Mapping[str, Table]] = {
    "sdxl": {
        "UNet2DConditionModel": {**DENOISERS["UNet2DConditionModel"], "addition_embed_type": Literal["text_time"]},
    },
}
"""By the name of a kind of pipeline the networks of which it follows other fields than another kind does."""
