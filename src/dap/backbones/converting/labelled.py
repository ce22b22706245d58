"""Checkpoints of U-ViT, MDTv2 and Latte as folders of their pipelines. The networks keep the names of the authors' tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.parts import filled, heads_of, ranked
from dap.backbones.schedules import BETAS
from dap.base.alone import alone
from dap.base.errors import DapError, first_line
from dap.networks import labelled_pipeline, latte, mdt, uvit

State = Mapping[str, Tensor]

HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16}
"""The number of heads by the width of a token in the three papers. A checkpoint lacks it."""

LEVELS = 1000
"""The noise levels of the three papers' networks."""

IMAGE_LATENTS = 4
"""The channels of the latents of U-ViT's and MDT's ImageNet models."""

LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""The noise levels of DiT, which MDT and Latte keep."""

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise levels of Stable Diffusion, which U-ViT keeps where it does not sample on an SDE."""


def family(state: State) -> str | None:
    """The code that these tensors come from, "U-ViT", "MDT" or "Latte", or None."""
    if {"patch_embed.proj.weight", "in_blocks.0.attn.qkv.weight", "mid_block.attn.qkv.weight"} <= state.keys():
        return "U-ViT"
    if any("rel_pos_bias.relative_position_bias_table" in name for name in state) and "decoder_pos_embed" in state:
        return "MDT"
    if {"temp_embed", "x_embedder.proj.weight"} <= state.keys():
        return "Latte"
    return None


def film_names(pipe: Any) -> list[str] | None:
    """The names of the classes of UCF-101 (Soomro et al. 2012) for a Latte of 101 labels, and None for all else.

    Latte's loader sorts the folders of UCF-101 by name, capitals before small letters.
    """
    if pipe.denoiser.config.num_classes == 101 and isinstance(pipe, labelled_pipeline.LabelledLattePipeline):
        return (files("dap") / "data" / "subsets" / "ucf101.txt").read_text(encoding="utf-8").split()
    return None


def pipeline(state: State, path: Path, vae: Any, dtype: torch.dtype, heads: int | None) -> Any:
    """The pipeline of a checkpoint of U-ViT, MDTv2 or Latte, with the noise levels of its authors' training.

    Args:
        state: the tensors, of which `family` knows the code.
        path: the file, for messages.
        vae: the autoencoder.
        dtype: the number format of the weights.
        heads: the number of attention heads. None: that of the papers' networks of this width.

    Raises:
        DapError: the tensors are those of another network of the same code, which is named, or one is missing, unknown or of a
            wrong shape; or the autoencoder has another number of channels.
    """
    from diffusers import DDIMScheduler

    kind: Any
    betas: Mapping[str, Any] = LINEAR
    if family(state) == "Latte":
        build, kind = latte.LabelledLatteTransformer3DModel, labelled_pipeline.LabelledLattePipeline
        config = latte_config(state, path, heads)
    elif family(state) == "U-ViT":
        config, build, kind = uvit_config(state, path, heads), uvit.UViT2DModel, labelled_pipeline.UViTPipeline
        betas = {"trained_betas": sde_betas(LEVELS)} if config["continuous"] else SCALED_LINEAR
    else:
        state = {name: value for name, value in state.items() if not _UNUSED.match(name)}
        config, build, kind = mdt_config(state, path, heads), mdt.MDTTransformer2DModel, labelled_pipeline.MDTPipeline
    if vae.config.latent_channels != config["in_channels"]:
        raise DapError(
            f"{path.name} works on {config['in_channels']} latent channels, the autoencoder has {vae.config.latent_channels}; "
            "give --vae the one it was trained with."
        )
    scheduler: Any = DDIMScheduler
    noise = scheduler(**betas, num_train_timesteps=LEVELS, clip_sample=False, set_alpha_to_one=False)
    return kind(_filled(build, config, state, path, dtype), vae, noise)


def sde_betas(levels: int) -> list[float]:
    """Betas whose noise levels are those of the variance-preserving SDE of Song et al. (2021) at the times 1/n, 2/n … 1.

    There ᾱ(t) = exp(−b₀ t − (b₁ − b₀) t²/2) with the rates b₀ = 0.1 and b₁ = 20.

    Args:
        levels: n.
    """
    first, last = BETAS
    falls = [-first * t - (last - first) * t**2 / 2 for t in (i / levels for i in range(levels + 1))]
    return [-math.expm1(now - before) for before, now in pairwise(falls)]


def published(path: Path, config: Mapping[str, Any]) -> str | None:
    """The key of the card of published weights in a file of this name, or None."""
    found = re.fullmatch(r"imagenet(256|512)_uvit_(large|huge)", path.stem)
    known = found is not None and (config["num_classes"], config["sample_size"] * 8) == (1000, int(found[1]))
    return f"baofff/imagenet{found[1]}_uvit" if found and known else None


_UNUSED = re.compile(r"mask_token$|sideblocks\.|.*\.rel_pos_bias\.relative_position_index$")
"""Tensors of MDT that only training with masks uses, and the table of places, which the network computes."""


def uvit_config(state: State, path: Path, heads: int | None) -> dict[str, Any]:
    """The settings of a U-ViT, read from the shapes.

    Raises:
        DapError: it is a U-ViT without labels or of pixels, or the number of its heads is not known.
    """
    code = "U-ViT"
    if "label_emb.weight" not in state:
        what = "reads a text" if any("context_embed" in name for name in state) else "knows no classes"
        raise DapError(
            f"{path} is a U-ViT that {what}. dap converts those with labels, such as imagenet256_uvit_huge.pth."
        )
    patches = ranked(state, "patch_embed.proj.weight", 4, path, code)
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[-1]
    if channels != IMAGE_LATENTS:
        raise DapError(
            f"{path} is a U-ViT of {channels} channels: one of pixels, which dap does not sample. dap converts the U-ViTs of "
            "latents, such as imagenet256_uvit_huge.pth."
        )
    tokens = ranked(state, "pos_embed", 3, path, code).shape[1] - uvit.TOLD
    return {
        "sample_size": _side(tokens, path, code) * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "num_layers": _count(state, "in_blocks") + _count(state, "out_blocks"),
        "num_attention_heads": heads_of(heads, HEADS, width, path),
        "intermediate_size": ranked(state, "mid_block.mlp.fc1.weight", 2, path, code).shape[0],
        "num_classes": ranked(state, "label_emb.weight", 2, path, code).shape[0] - 1,
        "qkv_bias": "mid_block.attn.qkv.bias" in state,
        "time_mlp": "time_embed.0.weight" in state,
        "conv": "final_layer.weight" in state,
        # No tensor shows the noise levels. The authors trained the networks that end with a convolution (L/2, L/4) on the SDE
        # (train_ldm.py), and the others (H/2, H/4) on Stable Diffusion's betas (train_ldm_discrete.py).
        "continuous": "final_layer.weight" in state,
    }


def mdt_config(state: State, path: Path, heads: int | None) -> dict[str, Any]:
    """The settings of an MDTv2, read from the shapes.

    Raises:
        DapError: it is an MDT of the first version, or the number of its heads is not known.
    """
    code = "MDTv2"
    if "en_inblocks.0.attn.qkv.weight" not in state:
        raise DapError(
            f"{path} is an MDT of the first version, whose network is another one. dap converts MDTv2, such as "
            "mdt_xl2_v2_ckpt.pt."
        )
    patches = ranked(state, "x_embedder.proj.weight", 4, path, code)
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[-1]
    decoder = _count(state, "de_blocks")
    return {
        "sample_size": _side(ranked(state, "pos_embed", 3, path, code).shape[1], path, code) * patch,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": ranked(state, "final_layer.linear.weight", 2, path, code).shape[0] // patch**2,
        "hidden_size": width,
        "num_layers": _count(state, "en_inblocks") + _count(state, "en_outblocks") + decoder,
        "decoder_layers": decoder,
        # Each head has a column of its own in the table of biases, so the file says how many there are.
        "num_attention_heads": heads
        or ranked(state, "en_inblocks.0.attn.rel_pos_bias.relative_position_bias_table", 2, path, code).shape[1],
        "intermediate_size": ranked(state, "en_inblocks.0.mlp.fc1.weight", 2, path, code).shape[0],
        "num_classes": ranked(state, "y_embedder.embedding_table.weight", 2, path, code).shape[0] - 1,
    }


def latte_config(state: State, path: Path, heads: int | None) -> dict[str, Any]:
    """The settings of a Latte with labels, read from the shapes.

    Raises:
        DapError: it is a Latte without labels, or the number of its heads is not known.
    """
    code, table = "Latte", "y_embedder.embedding_table.weight"
    if table not in state:
        what = "reads a text" if "text_embedding_projection.1.weight" in state else "knows no classes"
        raise DapError(f"{path} is a Latte that {what}. dap converts those with labels, such as ucf101.pt.")
    patches = ranked(state, "x_embedder.proj.weight", 4, path, code)
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[-1]
    depth = _count(state, "blocks")
    if depth % 2:
        raise DapError(f"{path} is not a checkpoint of {code}: its {depth} blocks are no pairs of space and time.")
    return {
        "sample_size": _side(ranked(state, "pos_embed", 3, path, code).shape[1], path, code) * patch,
        "num_frames": ranked(state, "temp_embed", 3, path, code).shape[1],
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": ranked(state, "final_layer.linear.weight", 2, path, code).shape[0] // patch**2,
        "hidden_size": width,
        "num_layers": depth,
        "num_attention_heads": heads_of(heads, HEADS, width, path),
        "intermediate_size": ranked(state, "blocks.0.mlp.fc1.weight", 2, path, code).shape[0],
        "num_classes": ranked(state, table, 2, path, code).shape[0] - 1,
    }


def _filled(build: Callable[..., Any], config: Mapping[str, Any], state: State, path: Path, dtype: torch.dtype) -> Any:
    """A network with the tensors of a file.

    Raises:
        DapError: a tensor is missing, unknown or of a wrong shape.
    """
    from accelerate import init_empty_weights

    try:
        with alone(), init_empty_weights(include_buffers=False):
            network = build(**config)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise DapError(f"{path} has tensors of sizes that fit no network: {first_line(error)}") from error
    filled(network, state, path, dtype, str(family(state)))
    return network.eval()


def _count(state: State, blocks: str) -> int:
    """How many blocks there are, and never more than there are tensors: a name may count far."""
    found = [int(match[1]) for name in state if (match := re.match(rf"{blocks}\.(\d{{1,6}})\.", name))]
    return min(1 + max(found, default=-1), len(state))


def _side(tokens: int, path: Path, code: str) -> int:
    side = round(max(tokens, 0) ** 0.5)
    if side**2 != tokens or not side:
        raise DapError(f"{path} is not a checkpoint of {code}: its {tokens} tokens are on no square grid.")
    return side
