"""Tiny pipelines with random weights that are told text by several or large encoders: SDXL, LCM, and transformers."""

from __future__ import annotations

from typing import Any

from conftest import tiny_vae
from dap.pretraining.words import SCHEDULE, build_tokenizer
from dap.starter import CLASS_NAMES
from tiny import seeded, stable_diffusion

LEVELS = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
"""The U-Net of an SDXL, whose attention is at the lower levels."""


def clip(tokenizer: Any, width: int, projected: bool, seed: int = 0):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed=seed)


def sdxl(scheduler: Any = None, zeros: bool = True, **unet: Any):
    """An SDXL of 8 px images: 4 x 4 latents, two encoders of widths 16 and 24."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokenizer = build_tokenizer(CLASS_NAMES, 24)
    fields = {
        "cross_attention_dim": 40,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        unet=seeded(lambda: UNet2DConditionModel(**{**LEVELS, **fields, **unet})),
        text_encoder=clip(tokenizer, 16, projected=False),
        text_encoder_2=clip(tokenizer, 24, projected=True, seed=1),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(CLASS_NAMES, 24),
        scheduler=scheduler or EulerDiscreteScheduler(**SCHEDULE),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def lcm():
    """A latent consistency model of 8 px images, whose U-Net is told the scale of the guidance."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    parts = stable_diffusion(time_cond_proj_dim=16).components
    kept = {name: parts[name] for name in ("vae", "unet", "text_encoder", "tokenizer", "feature_extractor")}
    return LatentConsistencyModelPipeline(
        **kept, scheduler=LCMScheduler(**SCHEDULE), safety_checker=None, requires_safety_checker=False
    )
