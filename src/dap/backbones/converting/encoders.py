"""The text encoder of a Stable Diffusion in one file: OpenAI's CLIP or OpenCLIP's, by the names of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.shapes import Unlike, clip_config, shapes_of
from dap.base.alone import alone

_OPEN = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Names in a layer of OpenCLIP's text encoder, and of transformers'."""


def text_encoder(state: Mapping[str, Tensor], dtype: torch.dtype, *, open_clip: bool, projected: bool = False) -> Any:
    """The `CLIPTextModel` of a Stable Diffusion in one file, or SDXL's second text encoder, a `CLIPTextModelWithProjection`.

    Args:
        state: its tensors without what stands before all of their names.
        dtype: the number format of the weights.
        open_clip: whether it is OpenCLIP's, as in a Stable Diffusion 2, and not OpenAI's, as in a Stable Diffusion 1.
        projected: whether it is OpenCLIP's as a whole, with its last layer and the projection of its pooled state.

    Raises:
        Unlike: a tensor is missing, or one is there that the network does not have.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    mine = _renamed(state, last=projected) if open_clip else dict(state)
    mine.pop("embeddings.position_ids", None)
    config = clip_config(shapes_of(mine), "gelu" if open_clip else "quick_gelu")
    if projected:
        config["projection_dim"] = state["text_projection"].shape[1]
    build: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    with alone(), init_empty_weights(include_buffers=False):
        model = build(CLIPTextConfig(**config))
    if projected:
        projection = state["text_projection"].T.to(dtype, copy=True).contiguous()
        model.text_projection.weight = torch.nn.Parameter(projection)
    inner: Any = getattr(model, "text_model", model)  # later versions of transformers have no module inside the module
    for problem, names in (("lacks", inner.state_dict().keys() - mine), ("also has", mine.keys() - inner.state_dict())):
        if names:
            raise Unlike(f"its text encoder {problem} {min(names)}")
    inner.load_state_dict({name: tensor.to(dtype, copy=True) for name, tensor in mine.items()}, assign=True)
    return model.eval()


def _renamed(state: Mapping[str, Tensor], *, last: bool) -> dict[str, Tensor]:
    """OpenCLIP's text encoder by transformers' names, with its last layer or without it. Stable Diffusion 2 does not use that."""
    found = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        **{f"final_layer_norm.{kind}": state[f"ln_final.{kind}"] for kind in ("weight", "bias")},
    }
    layers = {int(match[1]) for match in (re.match(r"transformer\.resblocks\.(\d{1,3})\.", n) for n in state) if match}
    for layer in sorted(layers)[: None if last else -1]:
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            found |= {f"{new}.{there}.{kind}": state[f"{old}.{here}.{kind}"] for here, there in _OPEN.items()}
            parts = state[f"{old}.attn.in_proj_{kind}"].tensor_split(3)
            found |= {f"{new}.self_attn.{one}_proj.{kind}": part for one, part in zip("qkv", parts, strict=True)}
    return found
