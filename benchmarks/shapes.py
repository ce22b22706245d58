"""Backbones of the sizes that people use, with random weights, because the values of the weights do not change the
time."""

from __future__ import annotations

from typing import Any

import torch

from dap.backbones import Backbone, from_pipeline, load

DIT_XL = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32}
DIT = {
    "dit-xl-2": DIT_XL,
    "dit-xl-2-512": DIT_XL | {"sample_size": 64},
    "dit-small": {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "sample_size": 16},
}
SD = {
    "sd-1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "sd-small": {
        "sample_size": 16, "cross_attention_dim": 768, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}  # fmt: skip
SHAPES = (*DIT, *SD, "starter", "starter-unet")


def build(shape: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    """A backbone of the named shape; the starters come with their weights."""
    if shape.startswith("starter"):
        return load(shape, device=str(device), dtype=str(dtype).removeprefix("torch."))  # pyright: ignore[reportArgumentType]
    with torch.device("meta"):
        pipe = stable_diffusion(SD[shape]) if shape in SD else dit(DIT[shape])
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to_empty(device=device).to(dtype)
            for tensor in (*part.parameters(), *part.buffers()):
                if tensor.is_floating_point():
                    tensor.data.normal_(std=0.02)
    if shape in SD:
        pipe.encode_prompt = lambda prompts, *_: (torch.randn(len(prompts), 77, 768, device=device, dtype=dtype), None)
    return from_pipeline(pipe, name=shape)


def autoencoder() -> Any:
    """A small autoencoder that reduces images by the factor 8, as the real autoencoder does. It can be small because
    the time of encoding and decoding is not measured."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )


def dit(config: dict[str, int]) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    kind: Any = DDIMScheduler
    scheduler = kind(beta_start=1e-4, beta_end=0.02, clip_sample=False)  # as DiT-XL/2 has it
    transformer = DiTTransformer2DModel(**config, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return DiTPipeline(transformer, autoencoder(), scheduler)


def stable_diffusion(unet: dict[str, Any]) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    kind: Any = UNet2DConditionModel
    scheduler: Any = PNDMScheduler
    return StableDiffusionPipeline(
        vae=autoencoder(),
        unet=kind(**unet),
        # Prompts are encoded once for each class, and this time is not measured.
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        ),
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        scheduler=scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
