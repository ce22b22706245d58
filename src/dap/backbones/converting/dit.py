"""The transformer of the original DiT code (Peebles & Xie 2023), written as diffusers' own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.parts import heads_of
from dap.base.alone import alone
from dap.base.errors import DapError

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""The number of attention heads for the width of DiT-S, B, L and XL (Peebles & Xie 2023, table 1). A checkpoint lacks it."""


def _both(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_EMBEDDER = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
_REST = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_LABELS = "y_embedder.embedding_table.weight"


def config_of(state: Mapping[str, Tensor], path: Path, heads: int | None) -> dict[str, Any]:
    """The sizes of the transformer, read from the shapes of the tensors.

    Raises:
        DapError: a tensor is missing, unknown or of a wrong shape, or the number of heads is not known.
    """
    depth = 1 + max((int(found[1]) for name in state if (found := re.match(r"blocks\.(\d{1,18})\.", name))), default=0)
    depth = min(depth, len(state))  # a name that counts further lacks most of the names before it
    expected = [*_both(*_REST, *_EMBEDDER), _LABELS, "pos_embed"]
    expected += _both(*(f"blocks.{i}.{name}" for i in range(depth) for name in ("attn.qkv", *_BLOCK)))
    for problem, names in (
        ("lacks", [name for name in expected if name not in state]),
        ("also has", sorted(set(state) - set(expected))),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DapError(
                f"{path} is not a checkpoint of the original DiT code: it {problem} {', '.join(names[:3])}{more}."
            )
    patches, table, position = state["x_embedder.proj.weight"], state[_LABELS], state["pos_embed"]
    if patches.ndim != 4 or position.ndim != 3:
        raise DapError(f"{path} is not a checkpoint of the original DiT code: it is not on a grid of square patches.")
    for name in expected:
        rank = {"x_embedder.proj.weight": 4, "pos_embed": 3}.get(name, 1 if name.endswith(".bias") else 2)
        if state[name].ndim != rank or not state[name].numel():
            raise DapError(
                f"{path} is not a checkpoint of the original DiT code: {name} has the shape {tuple(state[name].shape)}."
            )
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[-1]
    grid = round(position.shape[-2] ** 0.5)
    outputs, rest = divmod(state["final_layer.linear.weight"].shape[0], patch**2)
    if rest or outputs not in (channels, 2 * channels):
        raise DapError(f"{path} does not predict noise, or noise and its variance, for its {channels} latent channels.")
    heads = heads_of(heads, HEADS, width, path)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": outputs,
        "num_layers": depth,
        "sample_size": grid * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(table) - 1,  # its last row is the null label
        "norm_eps": 1e-6,  # the original's; diffusers' default is 1e-5
    }


def transformer(state: Mapping[str, Tensor], config: Mapping[str, Any], path: Path, dtype: torch.dtype) -> Any:
    """diffusers' DiT with these weights. In diffusers every block owns a copy of the time and label embedders.

    Raises:
        DapError: a shape does not fit the others, or the positions are not the sinusoids that diffusers computes.
    """
    from accelerate import init_empty_weights
    from diffusers import DiTTransformer2DModel

    mine: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        mine |= {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in _REST.items()}
        for i in range(config["num_layers"]):
            block, new_block = f"blocks.{i}", f"transformer_blocks.{i}"
            mine |= {f"{new_block}.{new}.{kind}": state[f"{block}.{old}.{kind}"] for old, new in _BLOCK.items()}
            mine |= {f"{new_block}.{new}.{kind}": state[f"{old}.{kind}"] for old, new in _EMBEDDER.items()}
            mine[f"{new_block}.norm1.emb.class_embedder.embedding_table.weight"] = state[_LABELS]
            for part, value in zip("qkv", state[f"{block}.attn.qkv.{kind}"].tensor_split(3), strict=True):
                mine[f"{new_block}.attn1.to_{part}.{kind}"] = value
    try:
        with alone(), init_empty_weights(include_buffers=False):
            model = DiTTransformer2DModel(**config)
        model.load_state_dict({name: value.to(dtype, copy=True) for name, value in mine.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DapError(f"{path} is not a checkpoint of the original DiT code: {reason}") from error
    position: Any = model.pos_embed.pos_embed
    given = state["pos_embed"]
    precision = 1e-3 if given.dtype == torch.float32 else 1e-2
    if given.shape != position.shape or (given.float() - position).abs().max() > precision:
        raise DapError(
            f"The position table of {path} is not the sinusoids of the original code, which diffusers computes and cannot "
            "store; it cannot be converted."
        )
    return model
