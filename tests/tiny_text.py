"""Tiny pipelines with random weights that are told text by several or large encoders: SDXL, LCM, and transformers."""

from __future__ import annotations

from typing import Any

from conftest import tiny_vae
from dap.pretraining.words import SCHEDULE, build_tokenizer
from dap.starter import CLASS_NAMES
from tiny import clip, seeded, stable_diffusion

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


def t5(tokens: int, width: int):
    """A T5 tokenizer that spells, and its encoder."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [f"▁{word}" for word in ("a", "photo", "of")] + [
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    ]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in letters)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=tokens)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
    return tokenizer, seeded(lambda: T5EncoderModel(config))


def pixart(kind: str = "Alpha", scheduler: Any = None, **transformer: Any):
    """A PixArt of 8 px images: three blocks, and a T5."""
    import diffusers

    tokenizer, encoder = t5(300, 16)
    fields = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 4,
        "attention_bias": True,
    }
    return getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae(),
        transformer=seeded(lambda: diffusers.PixArtTransformer2DModel(**{**fields, **transformer})),
        scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def autoencoder(channels: int, scaling: float, shift: float | None):
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            sample_size=8,
            scaling_factor=scaling,
            shift_factor=shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def flux(told: bool = True, **scheduler: Any):
    """A Flux of latents of four channels: two joint blocks and two single ones, a CLIP and a T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = build_tokenizer(CLASS_NAMES, 24)
    tokenizer_2, encoder_2 = t5(512, 16)
    transformer = seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=told,
            axes_dims_rope=(2, 2, 4),
        )
    )
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if told else {"shift": 1.0}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**shift, **scheduler}),
        vae=autoencoder(4, 0.4, 0.1),
        text_encoder=clip(tokenizer, 16, projected=False),
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def sana():
    """A Sana of 8 px images: two blocks, a deep compression autoencoder of factor 2, and a small Gemma."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(32, 127))]
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(letters))}, merges=[])
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
    )
    transformer = seeded(
        lambda: SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=4,
        )
    )
    blocks: dict[str, Any] = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (
            ("block_types", ("ResBlock", "EfficientViTBlock")),
            ("block_out_channels", (8, 8)),
            ("layers_per_block", (1, 1)),
            ("qkv_multiscales", ((), (5,))),
        )
    }
    vae = seeded(lambda: AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **blocks))
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=seeded(lambda: Gemma2Model(config)),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", final_sigmas_type="zero"
        ),
    )
