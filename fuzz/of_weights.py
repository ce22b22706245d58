"""Readers of what lies beside weights, and of classifiers."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dap.backbones.cards import read_card, read_names
from dap.backbones.converting.checkpoints import folded, opened, tensors_of
from dap.backbones.converting.convert import convert
from dap.backbones.converting.dit import config_of
from dap.backbones.hub import index_of, labels_of
from dap.backbones.opening import load
from dap.evaluation.training.loading import load_classifier
from fuzz import forms
from fuzz.target import Target

CARD = b"size: 8\nlicence: CC0-1.0\nlayer: 1\ncfg: 2.0\nscale: 0.1\nunit: step\ntemplate: a photo of {}\n"


LAYERS = 20.0
"""Seconds that a backbone may take: few bytes can stand for hundreds of layers."""


def _reconstruct_persistent_obj(meta: Any) -> None:
    """Stands for the function of the authors' code that a pickle of EDM names."""


class _Network:
    """Pickled as the authors' networks are."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.state = {"_parameters": dict(tensors), "_buffers": {}, "_modules": {"inner": tensors and _Network({})}}

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, ({"class_name": "EDMPrecond", "module_src": "1", "state": self.state},)


def persistent(tensors: dict[str, torch.Tensor]) -> bytes:
    """A pickle such as EDM's, of these tensors."""
    found = pickle.dumps({"ema": _Network(tensors)}, protocol=3)
    return found.replace(f"c{__name__}\n".encode(), b"ctorch_utils.persistence\n")


def pipeline(folder: Path) -> None:
    """A DiT pipeline of three classes and 8 px images with random weights, as diffusers saves it."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1}
    network = DiTTransformer2DModel(**shape, sample_size=4, patch_size=2, num_embeds_ada_norm=3, norm_num_groups=4)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    coder = AutoencoderKL(**blocks, block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=8)
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    names = {0: "red", 1: "green", 2: "blue"}
    DiTPipeline(network.eval(), coder.eval(), scheduler, id2label=names).save_pretrained(folder)
    (folder / "card.yaml").write_bytes(CARD)


def stable_diffusion(folder: Path) -> None:
    """A Stable Diffusion of 8 px images with random weights and a tokenizer of letters, as diffusers saves it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from dap.pretraining.words import SCHEDULE, build_text_encoder, build_tokenizer
    from dap.starter import CLASS_NAMES

    torch.manual_seed(0)
    tokenizer = build_tokenizer(CLASS_NAMES, 32)
    shape = {"in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1}
    network = UNet2DConditionModel(
        **shape, sample_size=4, cross_attention_dim=64, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    coder = AutoencoderKL(**blocks, block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=8)
    StableDiffusionPipeline(
        vae=coder, unet=network, text_encoder=build_text_encoder(tokenizer), tokenizer=tokenizer,
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def original() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the original DiT code: one block of width 8, and 3 labels."""
    width, grid = 8, 2
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = torch.arange(grid, dtype=torch.float64)[:, None] * rates
    one = torch.cat([place.sin(), place.cos()], dim=1)
    position = torch.cat([one[None].expand(grid, -1, -1), one[:, None].expand(-1, grid, -1)], dim=2)
    shapes = {
        "x_embedder.proj": (width, 4, 2, 2), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
        "blocks.0.attn.qkv": (3 * width, width), "blocks.0.attn.proj": (width, width), "blocks.0.mlp.fc1": (4 * width, width),
        "blocks.0.mlp.fc2": (width, 4 * width), "blocks.0.adaLN_modulation.1": (6 * width, width),
        "final_layer.linear": (32, width), "final_layer.adaLN_modulation.1": (2 * width, width),
    }  # fmt: skip
    torch.manual_seed(0)
    state = {f"{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    table = {"y_embedder.embedding_table.weight": torch.randn(4, width)}
    return {**state, **table, "pos_embed": position.reshape(1, grid**2, width).float()}


def _saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def targets(folder: Path) -> list[Target]:
    """The readers of weights."""
    found: list[Target] = []

    def add(
        name: str, kind: Any, place: Path, file: str, read: Callable[[Any], Any], *seeds: bytes, **more: Any
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        found.append(Target(name, kind, place, file, seeds or ((place / file).read_bytes(),), read, **more))

    add("card.yaml", "yaml", folder / "card", "card.yaml", read_card, CARD)
    add("classes.json of weights", "json", folder / "names", "classes.json", read_names, b'["red", "green", "blue"]')
    index = {
        "_class_name": "DiTPipeline",
        "id2label": {"0": "red", "1": "green"},
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    add("model_index.json", "json", folder / "index", "model_index.json",
        lambda path: labels_of(path.parent, index_of(path.parent)), json.dumps(index).encode())  # fmt: skip
    _add_pipelines(found, folder)
    _add_checkpoints(add, folder)
    from dap.starter import CLASS_NAMES, REFERENCE

    seeds = (Path(str(REFERENCE)).read_bytes(),
             save({"w": torch.zeros(2)}, {"network": "convnet3", "classes": '["a"]', "protocol": "{}"}))  # fmt: skip
    add("classifier", "binary", folder / "classifier", "teacher.safetensors",
        lambda path: load_classifier(path, CLASS_NAMES), *seeds, forms=forms.safetensors(seeds))  # fmt: skip
    return found


def _add_pipelines(found: list[Target], folder: Path) -> None:
    """Each file of a DiT pipeline and of a Stable Diffusion that decides what is read."""
    dit, text = folder / "dit", folder / "text"
    pipeline(dit)
    stable_diffusion(text)
    files = {
        dit: ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json", "card.yaml",
              "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        text: ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "text_encoder/config.json",
               "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"),
    }  # fmt: skip
    for source, names in files.items():
        for file in names:
            name = f"backbone: {file}" if source == dit else f"text backbone: {file}"
            place = folder / name.replace("/", "-").replace(" ", "-").replace(":", "")
            shutil.copytree(source, place)
            kind = {"yaml": "yaml", "json": "json"}.get(file.rpartition(".")[2], "binary")
            seeds = ((place / file).read_bytes(),)
            built = forms.safetensors(seeds) if kind == "binary" else None

            def read(path: Path, place: Path = place) -> Any:
                return load(str(place), device="cpu", offline=True)

            found.append(Target(name, kind, place, file, seeds, read, seconds=LAYERS, forms=built))


def _add_checkpoints(add: Callable[..., None], folder: Path) -> None:
    """Checkpoints of the original DiT code, and what else `dap convert` reads."""
    state = original()
    wrapped = [
        state,
        {"ema": state, "args": Namespace(model="DiT-S/2")},
        {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ]
    vae = folder / "dit" / "vae"

    def read(path: Path) -> Any:
        return config_of(folded(tensors_of(path, opened(path)), path), path, 2)

    def converted(path: Path) -> Any:
        return convert(path, path.parent / "out", vae=str(vae), heads=2, offline=True)

    pickles, whole = [_saved(value) for value in wrapped], save(state)
    add(
        "checkpoint .pt",
        "binary",
        folder / "checkpoint",
        "x.pt",
        read,
        *pickles,
        forms=forms.torch_files(wrapped[:1] + wrapped[2:]),
    )
    add(
        "checkpoint .safetensors",
        "binary",
        folder / "checkpoint-safe",
        "x.safetensors",
        read,
        whole,
        forms=forms.safetensors((whole,)),
    )
    add("convert: .pt", "binary", folder / "convert", "x.pt", converted, *pickles, forms=forms.torch_files(wrapped[:1]))
    add(
        "convert: .safetensors",
        "binary",
        folder / "convert-safe",
        "x.safetensors",
        converted,
        whole,
        forms=forms.safetensors((whole,)),
    )
    add("checkpoint .pkl", "binary", folder / "checkpoint-pickle", "x.pkl", opened, *map(persistent, (state, {})))
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        place = folder / f"autoencoder-{file.partition('.')[0]}"
        shutil.copytree(vae, place)
        (place / "x.pt").write_bytes(pickles[0])
        seed = (place / file).read_bytes()
        add(f"convert: --vae, {file}", "json" if file.endswith("json") else "binary", place, file,
            lambda path: convert(path.parent / "x.pt", path.parent / "out", vae=str(path.parent), heads=2, offline=True),
            seed, seconds=LAYERS, **({} if file.endswith("json") else {"forms": forms.safetensors((seed,))}))  # fmt: skip
