"""Readers of weights as their authors publish them, besides DiT's: Stable Diffusion in one file, U-ViT, MDT, latent diffusion."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save

from dap.backbones.converting import flows, labelled
from dap.backbones.converting.checkpoints import opened, tensors_of, told
from dap.backbones.converting.single import Said, open_single
from dap.backbones.converting.tokenizers import tokenizer_for
from dap.backbones.converting.with_encoder.pixart import config_of, is_pixart, kind_of, network
from dap.pretraining.words import build_tokenizer
from fuzz import forms
from fuzz.target import Target

WIDTH, TEXT = 32, 16

LAYERS = 20.0
"""Seconds that a file may take: few bytes can stand for hundreds of layers."""


def _layers(shapes: dict[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Layers of these names: a weight of the shape, and a bias unless the name ends with a star."""
    found: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        plain = name.removesuffix("*")
        found[f"{plain}.weight"] = torch.randn(*shape) * 0.1
        if plain == name:
            found[f"{plain}.bias"] = torch.zeros(shape[0])
    return found


def _resnet(name: str, taken: int, time: int | None) -> dict[str, Sequence[int]]:
    if time is None:  # of an autoencoder
        return {f"{name}.norm1": (WIDTH,), f"{name}.conv1": (WIDTH, WIDTH, 3, 3), f"{name}.norm2": (WIDTH,),
                f"{name}.conv2": (WIDTH, WIDTH, 3, 3)}  # fmt: skip
    found: dict[str, Sequence[int]] = {
        f"{name}.in_layers.0": (taken,), f"{name}.in_layers.2": (WIDTH, taken, 3, 3), f"{name}.emb_layers.1": (WIDTH, time),
        f"{name}.out_layers.0": (WIDTH,), f"{name}.out_layers.3": (WIDTH, WIDTH, 3, 3),
    }  # fmt: skip
    return found if taken == WIDTH else {**found, f"{name}.skip_connection": (WIDTH, taken, 1, 1)}


def _attention(name: str) -> dict[str, Sequence[int]]:
    inner = f"{name}.transformer_blocks.0"
    found: dict[str, Sequence[int]] = {f"{name}.norm": (WIDTH,), f"{name}.proj_in": (WIDTH, WIDTH, 1, 1)}
    found |= {f"{inner}.norm{i}": (WIDTH,) for i in (1, 2, 3)} | {f"{name}.proj_out": (WIDTH, WIDTH, 1, 1)}
    for attention, width in (("attn1", WIDTH), ("attn2", TEXT)):
        found |= {f"{inner}.{attention}.to_q*": (WIDTH, WIDTH), f"{inner}.{attention}.to_out.0": (WIDTH, WIDTH)}
        found |= {f"{inner}.{attention}.to_{part}*": (WIDTH, width) for part in "kv"}
    return found | {f"{inner}.ff.net.0.proj": (8 * WIDTH, WIDTH), f"{inner}.ff.net.2": (WIDTH, 4 * WIDTH)}


def single(words: int) -> dict[str, torch.Tensor]:
    """A Stable Diffusion 1 in one file: a U-Net and an autoencoder of one level, a text encoder of one layer."""
    torch.manual_seed(0)
    unet: dict[str, Sequence[int]] = {"time_embed.0": (4 * WIDTH, WIDTH), "time_embed.2": (4 * WIDTH, 4 * WIDTH)}
    unet |= {"input_blocks.0.0": (WIDTH, 4, 3, 3), "out.0": (WIDTH,), "out.2": (4, WIDTH, 3, 3)}
    for block, taken in (("input_blocks.1", WIDTH), ("output_blocks.0", 2 * WIDTH), ("output_blocks.1", 2 * WIDTH)):
        unet |= {**_resnet(f"{block}.0", taken, 4 * WIDTH), **_attention(f"{block}.1")}
    unet |= {**_resnet("middle_block.0", WIDTH, 4 * WIDTH), **_attention("middle_block.1")}
    unet |= _resnet("middle_block.2", WIDTH, 4 * WIDTH)
    coder: dict[str, Sequence[int]] = {"quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}
    for way, first, last in (
        ("encoder", (WIDTH, 3, 3, 3), (8, WIDTH, 3, 3)),
        ("decoder", (WIDTH, 4, 3, 3), (3, WIDTH, 3, 3)),
    ):
        coder |= {f"{way}.conv_in": first, f"{way}.conv_out": last, f"{way}.norm_out": (WIDTH,)}
        blocks = ("down.0.block.0",) if way == "encoder" else ("up.0.block.0", "up.0.block.1")
        for block in (*blocks, "mid.block_1", "mid.block_2"):
            coder |= _resnet(f"{way}.{block}", WIDTH, None)
        coder |= {f"{way}.mid.attn_1.norm": (WIDTH,)}
        coder |= {f"{way}.mid.attn_1.{part}": (WIDTH, WIDTH, 1, 1) for part in ("q", "k", "v", "proj_out")}
    layer = "encoder.layers.0"
    text: dict[str, Sequence[int]] = {
        "embeddings.token_embedding*": (words, TEXT),
        "embeddings.position_embedding*": (16, TEXT),
    }
    text |= {"final_layer_norm": (TEXT,), f"{layer}.layer_norm1": (TEXT,), f"{layer}.layer_norm2": (TEXT,)}
    text |= {f"{layer}.self_attn.{part}_proj": (TEXT, TEXT) for part in ("q", "k", "v", "out")}
    text |= {f"{layer}.mlp.fc1": (2 * TEXT, TEXT), f"{layer}.mlp.fc2": (TEXT, 2 * TEXT)}
    prefixes = {
        "model.diffusion_model.": unet,
        "first_stage_model.": coder,
        "cond_stage_model.transformer.text_model.": text,
    }
    return {prefix + name: value for prefix, own in prefixes.items() for name, value in _layers(own).items()}


def patches() -> list[dict[str, torch.Tensor]]:
    """A U-ViT, an MDTv2 and a Latte of width 8, and the wholes that their files are."""
    from dap.networks.latte import LabelledLatteTransformer3DModel
    from dap.networks.mdt import MDTTransformer2DModel
    from dap.networks.uvit import UViT2DModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {"sample_size": 4, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    shape["num_classes"] = 3
    networks = (
        UViT2DModel(**shape, num_layers=2),
        MDTTransformer2DModel(**shape, num_layers=3, decoder_layers=1),
        LabelledLatteTransformer3DModel(**shape, num_layers=2, num_frames=3),
    )
    return [dict(network.state_dict()) for network in networks]


def pixart() -> dict[str, torch.Tensor]:
    """A PixArt-α of width 8 and one block."""
    torch.manual_seed(0)
    block, width = "blocks.0", 8
    layers: dict[str, Sequence[int]] = {
        "x_embedder.proj": (width, 4, 2, 2), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
        "t_block.1": (6 * width, width), "y_embedder.y_proj.fc1": (width, TEXT), "y_embedder.y_proj.fc2": (width, width),
        f"{block}.attn.qkv": (3 * width, width), f"{block}.attn.proj": (width, width),
        f"{block}.cross_attn.q_linear": (width, width), f"{block}.cross_attn.kv_linear": (2 * width, width),
        f"{block}.cross_attn.proj": (width, width), f"{block}.mlp.fc1": (4 * width, width),
        f"{block}.mlp.fc2": (width, 4 * width), "final_layer.linear": (32, width),
    }  # fmt: skip
    tables = {
        "y_embedder.y_embedding": (120, TEXT),
        "pos_embed": (1, 4, width),
        f"{block}.scale_shift_table": (6, width),
    }
    tables["final_layer.scale_shift_table"] = (2, width)
    return _layers(layers) | {name: torch.zeros(*shape) for name, shape in tables.items()}


def _saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def targets(folder: Path) -> list[Target]:
    """The readers of such files."""
    found: list[Target] = []

    def add(name: str, place: str, file: str, read: Callable[[Path], Any], *seeds: bytes, **more: Any) -> None:
        (folder / place).mkdir(parents=True, exist_ok=True)
        kind: Any = "json" if file.endswith("json") else "binary"
        found.append(Target(name, kind, folder / place, file, seeds, read, seconds=LAYERS, **more))

    def alone(path: Path) -> Any:
        return open_single(path, opened(path), Said(prediction="epsilon", size=4), dtype="float32", offline=True)

    words = build_tokenizer(["red", "green"], 16)
    state = single(len(words))
    for place in ("single", "single-pickle", "words"):
        words.save_pretrained(folder / place / "tokenizer")
    whole, pickled = save(state), {"state_dict": state, "global_step": 3}
    add("one file .safetensors", "single", "x.safetensors", alone, whole, forms=forms.safetensors((whole,)))
    add("one file .ckpt", "single-pickle", "x.ckpt", alone, _saved(pickled), forms=forms.torch_files([pickled]))
    config = SimpleNamespace(vocab_size=len(words), max_position_embeddings=16)
    add("one file: tokenizer.json", "words/tokenizer", "tokenizer.json",
        lambda path: tokenizer_for(path.parents[1] / "x.ckpt", None, True, config, open_clip=False),
        (folder / "words" / "tokenizer" / "tokenizer.json").read_bytes())  # fmt: skip
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8)

    def patched(path: Path) -> Any:
        own = tensors_of(path, opened(path))
        return None if labelled.family(own) is None else labelled.pipeline(own, path, vae, torch.float32, 2)

    def prompted(path: Path) -> Any:
        given = opened(path)
        if not is_pixart(given):
            return None
        own = tensors_of(path, given)
        return network(path, config_of(path, own, kind_of(path, own), Said(heads=2)), own, torch.float32)

    def flow(path: Path) -> Any:
        given = opened(path)
        own = tensors_of(path, given)
        family = flows.family_of(path, own, told(path, given), None)
        return None if family == "dit" else flows.config_of(path, family, own, 2)

    token = _layers({flows.TOKEN.removesuffix(".weight"): (8, 6)}) | {"pos_embed": torch.zeros(1, 5, 8)}
    token |= _layers({"x_embedder.proj": (8, 4, 2, 2), "final_layer.linear": (16, 8), "blocks.0.mlp.fc1": (16, 8)})
    token["y_embedder.embedding_table.weight"] = torch.zeros(4, 8)
    add("REG .pt", "reg", "x.pt", flow, _saved({"ema": token}), forms=forms.torch_files([token]))
    state = pixart()
    add("PixArt .pth", "pixart", "x.pth", prompted, _saved({"state_dict": state}), forms=forms.torch_files([state]))
    states = patches()
    add("U-ViT, MDT and Latte .pt", "patches", "x.pt", patched, *map(_saved, states), forms=forms.torch_files(states))
    return found
