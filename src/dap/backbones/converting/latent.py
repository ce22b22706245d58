"""Latent diffusion's class-conditional model of ImageNet in one file (Rombach et al. 2022; cin256-v2) as a pipeline.

The file is laid out like a Stable Diffusion in one file. In place of a text encoder it has a table of embedded labels, and its
autoencoder is quantised: latents are what the encoder gives, and the decoder takes for each place the nearest of its codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.parts import class_names
from dap.backbones.converting.shapes import Unlike, unet_config
from dap.base.alone import alone

LABELS = "cond_stage_model.embedding.weight"
"""The table of embedded labels; its last row is the null label."""

SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of its authors' training."""
CHANNELS = 3
"""The channels of the latents of the published model, whose autoencoder makes 4 px a latent. Its attentions have one head."""


def latent_pipeline(
    path: Path, unet: Any, state: Mapping[str, Tensor], coder: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """The pipeline.

    Args:
        path: the file, for its name.
        unet: diffusers' U-Net with the weights of the file.
        state: all tensors of the file.
        coder: those of the autoencoder, without the prefix.
        dtype: the number format of the weights.

    Raises:
        Unlike: the tensors are not those of such a model.
    """
    from accelerate import init_empty_weights
    from diffusers import DDIMScheduler, VQModel

    from dap.networks.labelled_pipeline import LatentDiffusionPipeline
    from dap.networks.labelled_unet import LabelledUNet2DModel

    table = state[LABELS]
    said = {name: unet.config[name] for name in _FIELDS}
    with alone(), init_empty_weights(include_buffers=False):
        network = LabelledUNet2DModel(**said, num_classes=len(table) - 1)
        vae: Any = VQModel(**quantised_config(coder))
    network.unet, network.embedding.weight = unet, torch.nn.Parameter(table.to(dtype, copy=True))
    named = {renamed(name, vae.config.block_out_channels): value for name, value in coder.items()}
    for problem, names in (("lacks", vae.state_dict().keys() - named), ("also has", named.keys() - vae.state_dict())):
        if names:
            raise Unlike(f"its autoencoder {problem} {min(names)}")
    flat = {name: value.flatten(1) if _LINEAR.search(name) else value for name, value in named.items()}
    vae.load_state_dict({name: value.to(dtype, copy=True) for name, value in flat.items()}, assign=True)
    names = dict(enumerate(class_names(path, len(table) - 1, None)))
    scheduler: Any = DDIMScheduler
    noise = scheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    return LatentDiffusionPipeline(network.eval(), vae.eval(), noise, names)


_FIELDS = (
    *("sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
    *("layers_per_block", "attention_head_dim", "cross_attention_dim"),
)


def latent_config(shapes: Mapping[str, tuple[int, ...]], side: int, heads: int | None) -> dict[str, Any]:
    """The fields of the U-Net.

    Raises:
        Unlike: it is another latent diffusion than the published one, and nobody says how many heads it has.
    """
    config = unet_config(shapes, side, heads or 1)
    if heads is None and config["in_channels"] != CHANNELS:
        raise Unlike(
            f"it has latents of {config['in_channels']} channels, so it is not the published cin256-v2, and the file does not "
            "say how many heads each of its attentions has; give dap convert --heads"
        )
    return config


def quantised_config(coder: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of the `VQModel`.

    Raises:
        Unlike: a tensor is missing or has a wrong number of dimensions.
    """
    levels = 1 + max((int(m[1]) for name in coder if (m := re.match(r"encoder\.down\.(\d{1,2})\.", name))), default=-1)
    wanted = {"quantize.embedding.weight": 2, "decoder.conv_in.weight": 4, "quant_conv.weight": 4}
    wanted |= {f"encoder.down.{level}.block.0.conv2.weight": 4 for level in range(levels)}
    for name, rank in wanted.items():
        if name not in coder or coder[name].ndim != rank or not coder[name].numel():
            raise Unlike(f"its autoencoder has no {name} of {rank} dimensions")
    if not levels:
        raise Unlike("its autoencoder has no levels")
    codes = coder["quantize.embedding.weight"]
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            len(coder[f"encoder.down.{level}.block.0.conv2.weight"]) for level in range(levels)
        ),
        "layers_per_block": sum(f"encoder.down.0.block.{i}.conv2.weight" in coder for i in range(16)),
        "latent_channels": coder["decoder.conv_in.weight"].shape[1],
        "num_vq_embeddings": len(codes),
        "vq_embed_dim": codes.shape[1],
        "scaling_factor": 1.0,
    }


_LINEAR = re.compile(r"attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight$")
"""Layers that the authors have as convolutions of one pixel, and diffusers as linear ones."""


def renamed(name: str, widths: Any) -> str:
    """diffusers' name of a tensor of an autoencoder, by its name in latent diffusion.

    diffusers counts the levels of a decoder from the smallest image.
    """
    last = len(widths) - 1
    name = re.sub(r"^encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0", name)
    name = re.sub(
        r"^decoder\.up\.(\d{1,3})\.(block|upsample)",
        lambda m: f"decoder.up_blocks.{last - int(m[1])}.{'resnets' if m[2] == 'block' else 'upsamplers.0'}",
        name,
    )
    name = re.sub(r"\.mid\.block_([12])", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", name)
    if ".mid.attn_1." in name:
        name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(".norm.", ".group_norm.")
        name = re.sub(r"attentions\.0\.([qkv])\.", r"attentions.0.to_\1.", name).replace(".proj_out.", ".to_out.0.")
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
