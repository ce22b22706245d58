"""Readers of what lies beside weights, and of classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dap.backbones.cards import read_card, read_names
from dap.backbones.hub import index_of, labels_of
from dap.backbones.opening import load
from dap.evaluation.training.classifier import load_classifier
from fuzz.target import Target

CARD = b"size: 8\nlicence: CC0-1.0\nlayer: 1\ncfg: 2.0\nscale: 0.1\nunit: step\ntemplate: a photo of {}\n"


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


def targets(folder: Path) -> list[Target]:
    """The readers of weights."""
    found: list[Target] = []

    def add(name: str, kind: Any, place: Path, file: str, read: Callable[[Any], Any], *seeds: bytes) -> None:
        place.mkdir(parents=True, exist_ok=True)
        found.append(Target(name, kind, place, file, seeds or ((place / file).read_bytes(),), read))

    add("card.yaml", "yaml", folder / "card", "card.yaml", read_card, CARD)
    add("classes.json of weights", "json", folder / "names", "classes.json", read_names, b'["red", "green", "blue"]')
    index = {
        "_class_name": "DiTPipeline",
        "id2label": {"0": "red", "1": "green"},
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    add("model_index.json", "json", folder / "index", "model_index.json",
        lambda path: labels_of(path.parent, index_of(path.parent)), json.dumps(index).encode())  # fmt: skip
    for file in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/config.json",
        "card.yaml",
    ):
        place = folder / f"pipeline-{file.replace('/', '-')}"
        pipeline(place)
        kind = "yaml" if file.endswith("yaml") else "json"
        add(
            f"backbone: {file}",
            kind,
            place,
            file,
            lambda path, place=place: load(str(place), device="cpu", offline=True),
        )
    from dap.starter import CLASS_NAMES, REFERENCE

    add("classifier", "binary", folder / "classifier", "teacher.safetensors",
        lambda path: load_classifier(path, CLASS_NAMES), Path(str(REFERENCE)).read_bytes(),
        save({"w": torch.zeros(2)}, {"network": "convnet3", "classes": '["a"]', "protocol": "{}"}))  # fmt: skip
    return found
