"""Denoisers in pixel space, and what their schedulers may say besides the noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import (
    Flag,
    Number,
    Off,
    Position,
    Positive,
    Table,
    Whole,
    Word,
    Words,
)

_LEVELS: Table = {
    "sample_size": Whole,
    "in_channels": Whole,
    "model_channels": Whole,
    "channel_mult": list[Whole] | tuple[Whole, ...],
    "num_blocks": Whole,
    "attn_resolutions": list[Whole] | tuple[Whole, ...],
    "num_class_embeds": Whole | None,
    "channels_per_head": Whole,
    "sigma_data": Positive,
}

PIXELS: Mapping[str, Table] = {
    "UNet2DModel": {
        "sample_size": Whole | list[Whole] | tuple[Whole, ...],
        "in_channels": Literal[3],
        "out_channels": Literal[3, 6],
        "center_input_sample": Flag,
        "time_embedding_type": Literal["positional", "learned"],
        "time_embedding_dim": Whole | None,
        "freq_shift": Number,
        "flip_sin_to_cos": Flag,
        "down_block_types": Words,
        "mid_block_type": Word | None,
        "up_block_types": Words,
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Whole,
        "mid_block_scale_factor": Positive,
        "downsample_padding": Position,
        "downsample_type": Literal["conv", "resnet"],
        "upsample_type": Literal["conv", "resnet"],
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
        "act_fn": Word,
        "attention_head_dim": Whole | None,
        "norm_num_groups": Whole,
        "attn_norm_num_groups": Whole | None,
        "norm_eps": Positive,
        "resnet_time_scale_shift": Word,
        "add_attention": Flag,
        "class_embed_type": Off,
        "num_class_embeds": Whole | None,
        "num_train_timesteps": Whole | None,
    },
    "ADMUNet2DModel": {
        "sample_size": Whole,
        "in_channels": Literal[3],
        "out_channels": Literal[3, 6],
        "model_channels": Whole,
        "channel_mult": list[Positive] | tuple[Positive, ...],
        "num_res_blocks": Whole,
        "attention_levels": list[Position] | tuple[Position, ...],
        "num_class_embeds": Whole | None,
        "num_heads": Whole | None,
        "num_head_channels": Whole | None,
        "heads_together": Flag,
    },
    "EDMUNet2DModel": {
        **_LEVELS,
        "style": Literal["song", "adm"],
        "channel_mult_emb": Whole,
        "channel_mult_noise": Whole,
        "fourier": Flag,
        "residual": Flag,
        "resample_filter": list[Whole] | tuple[Whole, ...],
    },
    "EDM2UNet2DModel": _LEVELS,
}
"""By the class of a network in pixel space its fields."""

NOISE_LEVELS: Table = {
    "num_train_timesteps": Annotated[int, Field(ge=2, le=10**5), Strict()],
    "sigma_min": Positive,
    "sigma_max": Positive,
    "sigma_data": Positive,
    "rho": Positive,
    "sigma_schedule": Literal["karras"],
    "prediction_type": Literal["epsilon"],
}
"""The fields of an `EDMEulerScheduler`."""

PIXEL_BETAS: Table = {
    "beta_schedule": Literal["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": Literal["epsilon", "v_prediction", "sample"],
    "clip_sample": Flag,
    "clip_sample_range": Positive,
}
"""Fields of a scheduler that are followed for pixels; they replace those of the same name in `BETAS`."""
