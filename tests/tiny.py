"""Tiny pipelines with random weights, of the kinds people load."""

from __future__ import annotations

from typing import Any

import torch

from conftest import tiny_vae
from dap.pretraining.words import SCHEDULE, build_text_encoder, build_tokenizer
from dap.starter import CLASS_NAMES


def seeded(build, std=0.15, seed=0):
    """A module with every parameter random, so that no zero initialisation hides a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return module.eval()


def clip(tokenizer: Any, width: int, projected: bool, seed: int = 0, layers: int = 3):
    """A CLIP text encoder of two heads, with a projection (`projected`) or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed=seed)


def stable_diffusion(prediction_type: str = "epsilon", **unet: Any):
    """A Stable Diffusion of 8 px images: 4 x 4 latents, two levels."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = build_tokenizer(CLASS_NAMES, 32)  # enough for "a photo of a great white shark" in letters
    options = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        unet=seeded(lambda: UNet2DConditionModel(**options | unet)),
        text_encoder=seeded(lambda: build_text_encoder(tokenizer)),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3():
    """A Stable Diffusion 3 of 8 px images: 16 x 4 x 4 latents with a shift, three joint blocks, two CLIPs and no T5."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer = build_tokenizer(CLASS_NAMES, 16)
    clips = [clip(tokenizer, 16, projected=True, layers=2) for _ in range(2)]
    transformer = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=4,
        )
    )
    vae = seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=2,
            sample_size=8,
            scaling_factor=1.5,
            shift_factor=0.06,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def wan():
    """A Wan of clips of 5 frames of 16 px: 4 x 2 x 4 x 4 latents, three blocks."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = build_tokenizer(CLASS_NAMES, 32)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformer = seeded(
        lambda: WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
        )
    )
    vae = seeded(
        lambda: AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 1.1, 0.9],
            scale_factor_spatial=4,
        )
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=seeded(lambda: UMT5EncoderModel(config)),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
    )


SITS: dict[str, dict[str, Any]] = {
    "sit": {"in_channels": 4, "out_channels": 8, "patch_size": 2},
    "repa": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "qk_norm": "layer", "path": "gvp", "data_at": 0},
    "lightningdit": {"norm": "rms", "feed_forward": "swiglu", "rotary": True, "hidden_size": 42},
    "no-shift": {"norm": "rms", "feed_forward": "swiglu", "qk_norm": "rms", "shifted": False, "path": "vp"},
}
"""Transformers of SiT's kind, one for each family of weights, and one with LightningDiT's other options."""


def sit_transformer(family: str = "sit", **options: Any):
    """4 x 4 latents, three blocks of width 32, three labels."""
    from dap.networks.sit import SiTTransformer2DModel

    sizes = {"sample_size": 4, "num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 8, "num_classes": 3}
    common = {"patch_size": 1, "in_channels": 6, "out_channels": 6, "hidden_size": 48}
    made = seeded(lambda: SiTTransformer2DModel(**{**sizes, **common, **SITS[family], **options}))
    with torch.no_grad():  # the table of positions is no weight: it stays what the authors compute
        made.pos_embed.copy_(SiTTransformer2DModel(**made.config).pos_embed)
    return made


def reg(shift: float = 1.0, **options: Any):
    """A REG of 32 px images: 4 x 8 x 8 latents, and class tokens of 80 numbers, which take two channels of a latent."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import Dinov2Config, Dinov2Model

    from dap.networks.reg import REGTransformer2DModel
    from dap.networks.reg_pipeline import REGPipeline

    sizes = {"sample_size": 8, "num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 8, "num_classes": 3}
    common = {"hidden_size": 48, "class_token_size": 80, "qk_norm": "layer"}
    transformer = seeded(lambda: REGTransformer2DModel(**{**sizes, **common, **options}))
    with torch.no_grad():
        transformer.pos_embed.copy_(REGTransformer2DModel(**transformer.config).pos_embed)
    vae = seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=32,
            scaling_factor=0.7,
        )
    )
    config = Dinov2Config(hidden_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14)
    return REGPipeline(
        transformer=transformer,
        vae=vae,
        class_encoder=seeded(lambda: Dinov2Model(config)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        id2label=dict(enumerate(CLASS_NAMES[:3])),
    )


def sit(family: str = "sit", shift: float = 1.0, **options: Any):
    """A SiT of 8 px images. The latents of the two forms of LightningDiT are standardised."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    from dap.networks.sit_pipeline import SiTPipeline

    transformer = sit_transformer(family, **options)
    channels = transformer.config.in_channels
    spread = {"latents_mean": [0.1 * i for i in range(6)], "latents_std": [1 + 0.2 * i for i in range(6)]}
    vae = seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            sample_size=8,
            **({"scaling_factor": 1.0, **spread} if channels == 6 else {"scaling_factor": 0.7}),
        )
    )
    names = dict(enumerate(CLASS_NAMES[: transformer.config.num_classes]))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return SiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler, id2label=names)
