"""Tiny pipelines of clips with random weights: LTX-Video and CogVideoX."""

from __future__ import annotations

from typing import Any

import torch

from tiny import seeded
from tiny_text import t5


def ltx(scheduler: Any = None, **vae: Any):
    """An LTX-Video of clips of 9 frames of 32 px: 6 x 2 x 4 x 4 latents, three blocks. Its grid is shifted and stretched."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    tokenizer, encoder = t5(128, 16)
    transformer = seeded(
        lambda: LTXVideoTransformer3DModel(
            in_channels=6,
            out_channels=6,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=3,
            caption_channels=16,
        )
    )
    autoencoder = seeded(
        lambda: AutoencoderKLLTXVideo(
            **{
                "latent_channels": 6,
                "block_out_channels": (4, 4, 4),
                "down_block_types": ("LTXVideoDownBlock3D",) * 3,
                "decoder_block_out_channels": (4, 4, 4),
                "layers_per_block": (1, 1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1, 1),
                "spatio_temporal_scaling": (True, True, True),
                "decoder_spatio_temporal_scaling": (True, True, True),
                "decoder_inject_noise": (False, False, False, False),
                "downsample_type": ("conv", "conv", "conv"),
                "upsample_residual": (False, False, False),
                "upsample_factor": (1, 1, 1),
                "patch_size": 1,
                "patch_size_t": 1,
                **vae,
            }
        ),
        std=0.1,
    )
    with torch.no_grad():
        autoencoder.latents_mean.copy_(torch.linspace(-0.3, 0.4, 6))
        autoencoder.latents_std.copy_(torch.linspace(0.6, 1.7, 6))
    stretched = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=16,
        max_image_seq_len=64,
        shift_terminal=0.1,
    )
    return LTXPipeline(
        scheduler=scheduler or stretched,
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def cogvideox(rotary: bool = False, **scheduler: Any):
    """A CogVideoX of clips of 9 frames of 16 px: 4 x 3 x 4 x 4 latents, three blocks, with turned queries (`rotary`) or not."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    tokenizer, encoder = t5(24, 16)
    transformer = seeded(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=3,
            sample_width=6,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=24,
            use_rotary_positional_embeddings=rotary,
        )
    )
    autoencoder = seeded(
        lambda: AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 3,
            up_block_types=("CogVideoXUpBlock3D",) * 3,
            block_out_channels=(4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.7,
        )
    )
    noise = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=autoencoder,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(**{**noise, **scheduler}),
    )
