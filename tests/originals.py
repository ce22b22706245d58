"""Networks of diffusers written with the names that their authors' own code gives to the tensors."""

from __future__ import annotations

import re
from typing import Any

import torch

State = dict[str, torch.Tensor]

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
ENDS |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
ENDS |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


def unet(network: Any) -> State:
    """Latent diffusion's names of a `UNet2DConditionModel` (Rombach et al. 2022; openaimodel.py)."""
    per = network.config.layers_per_block + 1

    def named(name: str) -> str:
        for new, old in ENDS.items():
            if name.startswith(f"{new}."):
                return name.replace(new, old, 1)
        where, _, rest = re.sub(r"^mid_block\.", "mid_block.0.", name).partition(".")
        block, _, rest = rest.partition(".")
        part, _, rest = rest.partition(".")
        at, _, rest = rest.partition(".")
        i, j = int(block), int(at)
        if part == "downsamplers":
            return f"input_blocks.{(i + 1) * per}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            attends = "CrossAttn" in network.config.up_block_types[i]
            return f"output_blocks.{i * per + per - 1}.{2 if attends else 1}.{rest}"
        if where == "mid_block":
            place = f"middle_block.{1 if part == 'attentions' else 2 * j}"
        elif where == "down_blocks":
            place = f"input_blocks.{1 + i * per + j}.{int(part == 'attentions')}"
        else:
            place = f"output_blocks.{i * per + j}.{int(part == 'attentions')}"
        if part == "resnets":
            layer, _, kind = rest.partition(".")
            rest = f"{RESNET[layer]}.{kind}"
        return f"{place}.{rest}"

    return {named(name): value for name, value in network.state_dict().items()}


def autoencoder(network: Any) -> State:
    """Latent diffusion's names of an `AutoencoderKL` or a `VQModel` (Rombach et al. 2022; model.py)."""
    levels = len(network.config.block_out_channels)
    found: State = {}
    for name, value in network.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        name = name.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample")
        name = re.sub(r"mid_block\.block\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def open_clip(encoder: Any) -> State:
    """OpenCLIP's names of a text encoder.

    A `CLIPTextModel` gets one more layer at the end, which Stable Diffusion 2 does not use. A `CLIPTextModelWithProjection` is
    whole.
    """
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    state.pop("embeddings.position_ids", None)
    found: State = {
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "text_projection": torch.ones(2, 2),
        "logit_scale": torch.ones(()),
    }
    whole = state.pop("text_projection.weight", None)
    if whole is not None:
        found["text_projection"] = whole.T
    depth = encoder.config.num_hidden_layers
    for name, value in state.items():
        old = name.replace("final_layer_norm", "ln_final").replace("encoder.layers", "transformer.resblocks")
        old = old.replace("layer_norm", "ln_").replace("self_attn.out_proj", "attn.out_proj")
        old = old.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        if match := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", old):
            parts = [state[name.replace(f".{match[2]}_proj", f".{one}_proj")] for one in "qkv"]
            old, value = f"{match[1]}.attn.in_proj_{match[3]}", torch.cat(parts)
        found[old] = value
        if whole is None and f"resblocks.{depth - 1}." in old:
            found[old.replace(f"resblocks.{depth - 1}.", f"resblocks.{depth}.")] = value + 1
    return found


def stable_diffusion(pipe: Any, *, second: bool = False) -> State:
    """The tensors of a `StableDiffusionPipeline` as they stand in one file: of version 1, or of version 2 (`second`)."""
    found = {f"model.diffusion_model.{name}": value for name, value in unet(pipe.unet).items()}
    found |= {f"first_stage_model.{name}": value for name, value in autoencoder(pipe.vae).items()}
    if second:
        found |= {f"cond_stage_model.model.{name}": value for name, value in open_clip(pipe.text_encoder).items()}
    else:
        state = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in pipe.text_encoder.state_dict().items()}
        found |= {f"cond_stage_model.transformer.{name}": value for name, value in state.items()}
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {name: value.clone() for name, value in found.items()} | {"betas": betas()}


def stable_diffusion_xl(pipe: Any) -> State:
    """The tensors of a `StableDiffusionXLPipeline` as they stand in one file."""
    found = {f"model.diffusion_model.{name}": value for name, value in unet(pipe.unet).items()}
    found |= {f"first_stage_model.{name}": value for name, value in autoencoder(pipe.vae).items()}
    first = {n.removeprefix("text_model."): value for n, value in pipe.text_encoder.state_dict().items()}
    found |= {f"conditioner.embedders.0.transformer.text_model.{name}": value for name, value in first.items()}
    found |= {f"conditioner.embedders.1.model.{name}": value for name, value in open_clip(pipe.text_encoder_2).items()}
    return {name: value.contiguous().clone() for name, value in found.items()}


def betas() -> torch.Tensor:
    """The noise levels that Stable Diffusion's files keep."""
    steps = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return steps.float()
