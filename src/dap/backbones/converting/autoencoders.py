"""Autoencoders as the code of latent diffusion (Rombach et al. 2022) saves them, such as VA-VAE (Yao et al. 2025)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.checkpoints import opened, unwrapped
from dap.backbones.honoured import check_fields
from dap.backbones.hub import open_autoencoder
from dap.backbones.known import KINDS
from dap.base.alone import alone
from dap.base.errors import DapError, first_line
from dap.base.files import expanded

STATISTICS = "latents_stats.pt"
"""The file of LightningDiT with the mean and the standard deviation of each channel of its latents."""

NAMES = (
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
"""Parts of the names in latent diffusion's code and in diffusers."""


def autoencoder_for(
    source: str, path: Path, channels: int, *, standardised: bool, dtype: torch.dtype, offline: bool
) -> Any:
    """The autoencoder of a flow's checkpoint.

    Args:
        source: the folder or hub id of an `AutoencoderKL`, or a file as latent diffusion's code saves it.
        path: the checkpoint. Statistics of its latents may lie beside it.
        channels: the latent channels of the checkpoint.
        standardised: whether the latents are standardised by channel.
        dtype: the number format of the weights.
        offline: read only the local cache.

    Raises:
        DapError: there is no such autoencoder, it has another number of channels, or nothing says how latents are standardised.
    """
    file = expanded(source)
    if file.is_file():
        made = from_checkpoint(file, dtype)
    else:
        name = str(dtype).removeprefix("torch.")
        made = open_autoencoder(source, dtype=name, offline=offline, pipeline="SiTPipeline")
    if made.config.latent_channels != channels:
        raise DapError(
            f"{path.name} works on {channels} latent channels, the autoencoder {source} has {made.config.latent_channels}; give "
            "--vae the one it was trained with."
        )
    if standardised and made.config.latents_mean is None:
        mean, std = _statistics(path.with_name(STATISTICS), channels)
        made.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=1.0, shift_factor=None)
    return made


def _statistics(file: Path, channels: int) -> tuple[list[float], list[float]]:
    if not file.is_file():
        raise DapError(
            f"The latents of a LightningDiT are standardised by channel; put the {STATISTICS} that its authors publish with the "
            f"checkpoint beside it, at {file}, or give --vae an autoencoder whose configuration has latents_mean and latents_std."
        )
    found = opened(file)
    parts = [found.get(name) for name in ("mean", "std")]
    numbers = [part.flatten().float() for part in parts if isinstance(part, Tensor) and part.numel() == channels]
    if len(numbers) < 2 or not all(torch.isfinite(part).all() for part in numbers) or (numbers[1] <= 0).any():
        raise DapError(f"{file} should hold a mean and a positive std of {channels} channels each; fetch it anew.")
    return numbers[0].tolist(), numbers[1].tolist()


def from_checkpoint(path: Path, dtype: torch.dtype) -> Any:
    """The `AutoencoderKL` in a file as latent diffusion's code saves it. Its latents are scaled by 1.

    Raises:
        DapError: the file is no such autoencoder.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    found = unwrapped(opened(path), ("state_dict", "model"))
    state = {
        str(name): value
        for name, value in found.items()
        if isinstance(value, Tensor) and re.match(r"(encoder|decoder|quant_conv|post_quant_conv)\.", str(name))
    }
    config = _config(path, {name: tuple(value.shape) for name, value in state.items()})
    check_fields(config, "AutoencoderKL", KINDS["SiTPipeline"], path)
    levels = len(config["block_out_channels"])
    mine = {_renamed(name, levels): value for name, value in state.items()}
    mine = {
        name: value.flatten(1) if re.search(r"attentions\.\d+\.to_\w+(\.0)?\.weight$", name) else value
        for name, value in mine.items()
    }
    try:
        with alone(), init_empty_weights(include_buffers=False):
            made = AutoencoderKL(**config)
        made.load_state_dict({name: value.to(dtype, copy=True) for name, value in mine.items()}, assign=True)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        said = str(error).strip().splitlines()[-1].strip() or first_line(error)
        raise DapError(f"{path} is no autoencoder of latent diffusion's code: {said}") from error
    return made


def _renamed(name: str, levels: int) -> str:
    for old, new in NAMES:
        name = re.sub(old, new, name)
    # There the decoder's levels count from the image, in diffusers from the latent.
    return re.sub(r"(?<=decoder\.up_blocks\.)\d+", lambda found: str(levels - 1 - int(found[0])), name)


def _config(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields of an `AutoencoderKL` with these tensors.

    Raises:
        DapError: a tensor is missing or of another rank.
    """

    def shape(name: str) -> tuple[int, ...]:
        if len(found := shapes.get(name, ())) != 4:
            raise DapError(f"{path} is no autoencoder of latent diffusion's code: it has no {name} of four dimensions.")
        return found

    levels = 1 + max((int(m[1]) for name in shapes if (m := re.match(r"encoder\.down\.(\d{1,2})\.", name))), default=0)
    blocks = sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(100))
    attends = [f"encoder.down.{i}.attn.0.q.weight" in shapes for i in range(levels)]
    rises = [f"decoder.up.{i}.attn.0.q.weight" in shapes for i in range(levels)][::-1]
    return {
        "in_channels": shape("encoder.conv_in.weight")[1],
        "out_channels": shape("decoder.conv_out.weight")[0],
        "down_block_types": [f"{'Attn' * one}DownEncoderBlock2D" for one in attends],
        "up_block_types": [f"{'Attn' * one}UpDecoderBlock2D" for one in rises],
        "block_out_channels": [shape(f"encoder.down.{i}.block.0.conv2.weight")[0] for i in range(levels)],
        "layers_per_block": max(1, blocks),
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "scaling_factor": 1.0,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }
