"""The configuration of the networks of a Stable Diffusion in one file, read from the names and shapes of its tensors.

Such a file has no configuration beside it. The names of its tensors say which blocks there are, and their shapes say how wide
the blocks are. What they do not say is the same in all published weights of the kind: 32 groups in each normalisation, and how
many heads an attention has. A Stable Diffusion 1 has 8 heads in each block (its projections are convolutions), a Stable
Diffusion 2 has heads of width 64 (its projections are linear). CLIP's text encoders have heads of width 64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""By the name of a tensor, without the prefix of its network, its shape."""

HEADS, HEAD_WIDTH = 8, 64
"""How many heads an attention with convolutions has, and how wide the heads of all others are."""

MOST_BLOCKS = 64
"""The published networks have at most 12 blocks on each way."""


class Unlike(Exception):
    """The tensors are not those of the network that they are read as. The words go after the name of the file and a colon."""


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def unet_config(shapes: Shapes, side: int, heads: int | None = None) -> dict[str, Any]:
    """The fields of a `UNet2DConditionModel` with these tensors.

    Args:
        shapes: the tensors of the U-Net, as Rombach et al. (2022) name them.
        side: the side of its latents.
        heads: how many heads each attention has. Default: as of a Stable Diffusion.

    Raises:
        Unlike: the tensors are not those of such a U-Net.
    """
    levels: list[list[tuple[int, int]]] = [[]]
    """By level the width of each residual block, and how many transformer layers follow it."""
    for block in range(1, MOST_BLOCKS):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        elif f"input_blocks.{block}.0.out_layers.3.weight" in shapes:
            width = _shape(shapes, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0]
            levels[-1].append((width, _depth(shapes, f"input_blocks.{block}.1")))
        else:
            break
    if any(not level or len(level) != len(levels[0]) or len(set(level)) > 1 for level in levels):
        raise Unlike("its U-Net has no levels of equal blocks")
    widths, depths = [level[0][0] for level in levels], [level[0][1] for level in levels]
    middle = _depth(shapes, "middle_block.1")
    if not middle or not any(depths):
        raise Unlike("its U-Net has no attention to a text")
    last = max(i for i, depth in enumerate(depths) if depth)
    first = f"input_blocks.{1 + last * (len(levels[0]) + 1)}.1"
    linear = len(_shape(shapes, f"{first}.proj_in.weight")) == 2
    config: dict[str, Any] = {
        "sample_size": side,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(shapes, "out.2.weight", 4)[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": _shape(shapes, f"{first}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "use_linear_projection": linear,
        # diffusers calls the number of heads `attention_head_dim` in this network.
        "attention_head_dim": heads or ([max(1, width // HEAD_WIDTH) for width in widths] if linear else HEADS),
    }
    if {middle, *filter(None, depths)} != {1}:
        # diffusers takes the last level's depth for the middle block too, which has attention where the level has none.
        config["transformer_layers_per_block"] = [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle]
    return config


def autoencoder_config(shapes: Shapes, scaling: float, side: int) -> dict[str, Any]:
    """The fields of an `AutoencoderKL` with these tensors.

    Args:
        shapes: the tensors of the autoencoder, as Rombach et al. (2022) name them.
        scaling: the factor that gives latents unit variance. The weights do not say it.
        side: the side of its images in px.

    Raises:
        Unlike: the tensors are not those of such an autoencoder.
    """
    widths, layers = list[int](), set[int]()
    for level in range(MOST_BLOCKS):
        names = [f"encoder.down.{level}.block.{i}.conv2.weight" for i in range(MOST_BLOCKS)]
        blocks = [name for name in names if name in shapes]
        if not blocks:
            break
        widths.append(_shape(shapes, blocks[0], 4)[0])
        layers.add(len(blocks))
    if len(layers) != 1 or any(re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", name) for name in shapes):
        raise Unlike("its autoencoder has no levels of equal blocks, or attention in a level")
    return {
        "sample_size": side,
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4)[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "latent_channels": _shape(shapes, "decoder.conv_in.weight", 4)[1],
        "scaling_factor": scaling,
    }


def clip_config(shapes: Shapes, act: str) -> dict[str, Any]:
    """The fields of a `CLIPTextModel` with these tensors, as transformers names them.

    Args:
        shapes: the tensors of the text encoder, without "text_model.".
        act: its activation. OpenAI's text encoders have "quick_gelu", OpenCLIP's have "gelu".

    Raises:
        Unlike: the tensors are not those of such a text encoder.
    """
    words, width = _shape(shapes, "embeddings.token_embedding.weight", 2)
    found = [re.match(r"encoder\.layers\.(\d{1,3})\.", name) for name in shapes]
    return {
        "vocab_size": words,
        "bos_token_id": words - 2,  # CLIP's vocabularies end with the two tokens that begin and end a text
        "eos_token_id": words - 1,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": 1 + max((int(match[1]) for match in found if match), default=0),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": _shape(shapes, "embeddings.position_embedding.weight", 2)[0],
        "hidden_act": act,
    }


def _depth(shapes: Shapes, name: str) -> int:
    """How many transformer layers the attention of this name has. 0 if there is none."""
    layers = [f"{name}.transformer_blocks.{i}.attn2.to_k.weight" for i in range(MOST_BLOCKS)]
    return sum(layer in shapes for layer in layers)


def _shape(shapes: Shapes, name: str, rank: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        Unlike: there is no such tensor, or it has another number of dimensions.
    """
    if name not in shapes:
        raise Unlike(f"it lacks {name}")
    if (rank is not None and len(shapes[name]) != rank) or not all(shapes[name]):
        raise Unlike(f"{name} has the shape {shapes[name]}")
    return shapes[name]
