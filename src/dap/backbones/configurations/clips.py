"""Networks of diffusers that make clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import Factor, Flag, Number, Off, Positive, Table, Whole, Word, Words

Wides = list[Whole] | tuple[Whole, ...]
Dropout = Annotated[float, Field(ge=0, lt=1), Strict()]
Flags = list[Flag] | tuple[Flag, ...]

CLIPS: Mapping[str, Table] = {
    "WanTransformer3DModel": {
        "patch_size": Wides,
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
        "dim_mult": Wides,
        "num_res_blocks": Whole,
        "attn_scales": list[Number] | tuple[Number, ...],
        "temperal_downsample": Flags,
        "dropout": Dropout,
        "latents_mean": list[Number] | tuple[Number, ...],
        "latents_std": list[Positive] | tuple[Positive, ...],
        "is_residual": Flag,
        "in_channels": Factor,
        "out_channels": Factor,
        "patch_size": Off,
        "scale_factor_temporal": Literal[4],  # diffusers' own network takes four frames at a time whatever it says
        "scale_factor_spatial": Whole,
    },
    "LTXVideoTransformer3DModel": {
        "in_channels": Whole,
        "out_channels": Whole | None,
        "patch_size": Literal[1],  # diffusers' pipeline makes noise for tokens of one latent alone
        "patch_size_t": Literal[1],
        "num_attention_heads": Whole,
        "attention_head_dim": Whole,
        "cross_attention_dim": Whole,
        "num_layers": Whole,
        "activation_fn": Word,
        "qk_norm": Word | None,
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "caption_channels": Whole,
        "attention_bias": Flag,
        "attention_out_bias": Flag,
    },
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": Whole,
        "attention_head_dim": Whole,
        "in_channels": Whole,
        "out_channels": Whole | None,
        "flip_sin_to_cos": Flag,
        "freq_shift": Number,
        "time_embed_dim": Whole,
        "ofs_embed_dim": Off,
        "text_embed_dim": Whole,
        "num_layers": Whole,
        "dropout": Dropout,
        "attention_bias": Flag,
        "sample_width": Whole,
        "sample_height": Whole,
        "sample_frames": Whole,
        "patch_size": Whole,
        "patch_size_t": Literal[None],  # CogVideoX 1.5 pads the frames of a clip, and cuts some off again
        "temporal_compression_ratio": Whole,
        "max_text_seq_length": Whole,
        "activation_fn": Word,
        "timestep_activation_fn": Word,
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "spatial_interpolation_scale": Positive,
        "temporal_interpolation_scale": Positive,
        "use_rotary_positional_embeddings": Flag,
        "use_learned_positional_embeddings": Off,  # these belong to a model that is told an image
        "patch_bias": Flag,
    },
    "AutoencoderKLCogVideoX": {
        "in_channels": Factor,
        "out_channels": Factor,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": Wides,
        "latent_channels": Whole,
        "layers_per_block": Whole,
        "act_fn": Word,
        "norm_eps": Positive,
        "norm_num_groups": Whole,
        "temporal_compression_ratio": Whole,
        "sample_height": Whole,  # these two decide how large a tile is, and dap cuts no tiles
        "sample_width": Whole,
        "scaling_factor": Positive,
        "shift_factor": Off,
        "latents_mean": Off,
        "latents_std": Off,
        "force_upcast": Flag | Number,  # indifferent, as in diffusers
        "use_quant_conv": Off,
        "use_post_quant_conv": Off,
        "invert_scale_latents": Flag,  # only a model that is told an image uses it
    },
    "AutoencoderKLLTXVideo": {
        "in_channels": Factor,
        "out_channels": Factor,
        "latent_channels": Whole,
        "block_out_channels": Wides,
        "down_block_types": Words,
        "decoder_block_out_channels": Wides,
        "layers_per_block": Wides,
        "decoder_layers_per_block": Wides,
        "spatio_temporal_scaling": Flags,
        "decoder_spatio_temporal_scaling": Flags,
        "decoder_inject_noise": list[Literal[False]] | tuple[Literal[False], ...],
        "downsample_type": Words,
        "upsample_residual": Flags,
        "upsample_factor": Wides,
        "timestep_conditioning": Off,
        "patch_size": Whole,
        "patch_size_t": Whole,
        "resnet_norm_eps": Positive,
        "scaling_factor": Positive,
        "encoder_causal": Flag,
        "decoder_causal": Flag,
        "spatial_compression_ratio": Whole | None,
        "temporal_compression_ratio": Whole | None,
    },
}
"""By the class of a network its fields."""
