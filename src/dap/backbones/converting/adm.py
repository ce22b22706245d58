"""Checkpoints of ADM (openai/guided-diffusion) as folders of a `DDPMPipeline`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.parts import filled
from dap.base.alone import alone
from dap.base.errors import DapError
from dap.networks import adm

KNOWN: dict[tuple[int, tuple[float, ...], int], dict[str, Any]] = {
    (192, (1, 2, 3, 4), 3): {"sample_size": 64, "heads_together": False, "beta_schedule": "squaredcos_cap_v2"},
    (256, (1, 1, 2, 3, 4), 2): {"sample_size": 128, "num_heads": 4, "num_head_channels": None},
    (256, (1, 1, 2, 2, 4, 4), 2): {"sample_size": 256},
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2): {"sample_size": 512},
}
"""What a file does not say, by what it says: width, factors of the levels, blocks of a level. These are the settings with which
the authors sample their published weights; the heads are 64 channels wide and the betas linear unless it says other."""

PUBLISHED = re.compile(
    r"(64x64|128x128|256x256|512x512)_diffusion(_uncond)?\.pt|lsun_(bedroom|cat|horse|horse_nodropout)\.pt"
)
"""The names of the authors' files."""

NAME = "openai/guided-diffusion"
"""The key into cards.yaml of the authors' weights."""


def fits(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of ADM's U-Net, and not those of a U-Net that reads a text, which has the same names."""
    own = {"time_embed.0.weight", "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight", "out.2.weight"}
    return own <= state.keys() and not any("transformer_blocks" in name for name in state)


def config_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The settings of the network, read from names and shapes, and for what they do not show from `KNOWN`; and the betas.

    Raises:
        DapError: the weights are of another network of the same code, or none that the authors published.
    """
    numbers = [int(found[1]) for name in state if (found := re.match(r"input_blocks\.(\d{1,4})\.", name))]
    downs = 1 + max(numbers, default=0)
    ups = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight", name)) for name in state)
    levels, width = ups + 1, state["time_embed.0.weight"].shape[-1]
    blocks, odd = divmod(downs, levels)
    blocks -= 1
    first = [state.get(f"input_blocks.{1 + level * (blocks + 1)}.0.in_layers.2.weight") for level in range(levels)]
    if odd or blocks < 1 or any(part is None or part.ndim != 4 for part in first):
        raise DapError(
            f"{path} has the tensors of another U-Net than ADM's: its levels are resampled without residual blocks, as those of "
            "improved-diffusion are. dap converts the models of guided-diffusion."
        )
    factors = tuple(len(part) / width for part in first if part is not None)
    taken, given = state["input_blocks.0.0.weight"].shape[1], len(state["out.2.weight"])
    if taken != 3 or given not in (3, 6):
        raise DapError(
            f"{path} takes {taken} channels and gives {given}: an upsampler or another network beside the models of images. Give "
            "the file of a model of images, such as 256x256_diffusion.pt."
        )
    rest = KNOWN.get((width, factors, blocks))
    if rest is None:
        said = f"width {width}, factors {', '.join(f'{factor:g}' for factor in factors)}, {blocks} blocks a level"
        raise DapError(
            f"{path} is a U-Net of guided-diffusion that its authors did not publish ({said}), and the file does not say its "
            "heads and betas. Make dap.networks.adm.ADMUNet2DModel with its settings in Python, load the file into it, and save "
            "both as a DDPMPipeline; docs/backbones.md has the lines."
        )
    attended = [level for level in range(levels) if f"input_blocks.{1 + level * (blocks + 1)}.1.qkv.weight" in state]
    labels = state.get("label_emb.weight")
    return {
        "model_channels": width,
        "channel_mult": [int(factor) if factor == int(factor) else factor for factor in factors],
        "num_res_blocks": blocks,
        "attention_levels": attended,
        "out_channels": given,
        "num_class_embeds": None if labels is None else len(labels),
        **rest,
    }


def pipeline(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> Any:
    """The `DDPMPipeline` of a checkpoint, which samples as the authors do: x_0 clipped to [−1, 1], the learned variance.

    Raises:
        DapError: `config_of` raises, or a tensor is missing, unknown or of a wrong shape.
    """
    from accelerate import init_empty_weights
    from diffusers import DDPMPipeline, DDPMScheduler

    config = config_of(state, path)
    betas = config.pop("beta_schedule", "linear")
    with alone(), init_empty_weights(include_buffers=False):
        network: Any = adm.ADMUNet2DModel(**config)
    filled(network, state, path, dtype, "guided-diffusion")
    variance = "learned_range" if config["out_channels"] == 6 else "fixed_large"
    noise: Any = DDPMScheduler
    return DDPMPipeline(network, noise(beta_schedule=betas, variance_type=variance, clip_sample=True))
