"""Networks of diffusers that make clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import Factor, Flag, Number, Off, Positive, Table, Whole, Word

CLIPS: Mapping[str, Table] = {
    "WanTransformer3DModel": {
        "patch_size": list[Whole] | tuple[Whole, ...],
        "num_attention_heads": Whole,
        "attention_head_dim": Whole,
        "in_channels": Whole,
        "out_channels": Whole,
        "text_dim": Whole,
        "freq_dim": Whole,
        "ffn_dim": Whole,
        "num_layers": Whole,
        "cross_attn_norm": Flag,
        "qk_norm": Word | None,
        "eps": Positive,
        "image_dim": Off,  # these three belong to models that are told an image
        "added_kv_proj_dim": Off,
        "pos_embed_seq_len": Off,
        "rope_max_seq_len": Whole,
    },
    "AutoencoderKLWan": {
        "base_dim": Whole,
        "decoder_base_dim": Whole | None,
        "z_dim": Whole,
        "dim_mult": list[Whole] | tuple[Whole, ...],
        "num_res_blocks": Whole,
        "attn_scales": list[Number] | tuple[Number, ...],
        "temperal_downsample": list[Flag] | tuple[Flag, ...],
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
        "latents_mean": list[Number] | tuple[Number, ...],
        "latents_std": list[Positive] | tuple[Positive, ...],
        "is_residual": Flag,
        "in_channels": Factor,
        "out_channels": Factor,
        "patch_size": Off,
        "scale_factor_temporal": Literal[4],  # diffusers' own network takes four frames at a time whatever it says
        "scale_factor_spatial": Whole,
    },
}
"""By the class of a network its fields."""
