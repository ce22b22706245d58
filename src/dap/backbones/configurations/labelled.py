"""Class-conditional networks of dap's own for weights that diffusers has no network for, and their autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dap.backbones.configurations.types import Factor, Flag, Off, Positive, Table, Whole, Wholes, Word, Words

_PATCHES: Table = {
    "sample_size": Whole,
    "patch_size": Whole,
    "in_channels": Whole,
    "hidden_size": Whole,
    "num_layers": Whole,
    "num_attention_heads": Whole,
    "intermediate_size": Whole,
    "num_classes": Whole,
}

LABELLED: Mapping[str, Table] = {
    "UViT2DModel": {**_PATCHES, "qkv_bias": Flag, "time_mlp": Flag, "conv": Flag, "continuous": Flag},
    "MDTTransformer2DModel": {**_PATCHES, "out_channels": Whole, "decoder_layers": Whole},
    "LabelledLatteTransformer3DModel": {**_PATCHES, "out_channels": Whole, "num_frames": Whole},
    "LabelledUNet2DModel": {
        "sample_size": Whole,
        "in_channels": Whole,
        "out_channels": Whole,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": Wholes,
        "layers_per_block": Whole,
        "attention_head_dim": Whole,
        "cross_attention_dim": Whole,
        "num_classes": Whole,
    },
}
"""By the class of a network its fields."""

QUANTISED: Mapping[str, Table] = {
    "VQModel": {
        "in_channels": Factor,
        "out_channels": Factor,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": Wholes,
        "layers_per_block": Whole,
        "act_fn": Word,
        "latent_channels": Whole,
        "sample_size": Wholes,  # indifferent
        "num_vq_embeddings": Whole,
        "norm_num_groups": Whole,
        "vq_embed_dim": Whole | None,
        "scaling_factor": Positive,
        "norm_type": Literal["group"],
        "mid_block_add_attention": Flag,
        "lookup_from_codebook": Off,
        "force_upcast": Flag,  # indifferent
    }
}
"""The autoencoder of latent diffusion's ImageNet model. Latents are what the encoder gives; the decoder takes for each place the
nearest of its codes."""
