"""SDXL in one file: opened without the network, and equal to the folder of the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import originals
import tiny
from dap.backbones import load
from dap.backbones.converting.convert import convert
from dap.backbones.converting.xl import xl_config
from dap.backbones.honoured import deciding
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.pretraining.words import build_tokenizer
from dap.starter import CLASS_NAMES

pytestmark = pytest.mark.usefixtures("no_network")


def pipeline() -> Any:
    """An SDXL of 8 px images in the proportions of the published one."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words, second = build_tokenizer(CLASS_NAMES, 32), build_tokenizer(CLASS_NAMES, 32)
    second.pad_token = "!"
    shape = {"vocab_size": len(words), "num_hidden_layers": 2, "num_attention_heads": 1, "max_position_embeddings": 32}
    shape |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "intermediate_size": 64}
    one = CLIPTextConfig(**shape, hidden_size=16, projection_dim=16, hidden_act="quick_gelu")
    two = CLIPTextConfig(**shape, hidden_size=24, projection_dim=20, hidden_act="gelu")
    return StableDiffusionXLPipeline(
        vae=tiny.seeded(
            lambda: AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(32, 64), layers_per_block=1, sample_size=8, scaling_factor=0.13025,
            ), 0.1,
        ),
        unet=tiny.seeded(
            lambda: UNet2DConditionModel(
                sample_size=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=40,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=[1, 1], use_linear_projection=True, transformer_layers_per_block=[1, 2],
                addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 48,
            ), 0.1,
        ),
        text_encoder=tiny.seeded(lambda: CLIPTextModel(one)), tokenizer=words,
        text_encoder_2=tiny.seeded(lambda: CLIPTextModelWithProjection(two), 0.2), tokenizer_2=second,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Any, Path]:
    """A pipeline, and the one file with its weights and a tokenizer beside the file."""
    folder, pipe = tmp_path_factory.mktemp("single-xl"), pipeline()
    save_file(originals.stable_diffusion_xl(pipe), folder / "own.safetensors")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    return pipe, folder / "own.safetensors"


def test_a_file_predicts_what_its_folder_predicts(made, tmp_path):
    pipe, file = made
    mine = load(str(convert(file, tmp_path / "out", size=8)))
    pipe.save_pretrained(tmp_path / "folder")
    own = load(str(tmp_path / "folder"))
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        for condition in (["Bag", "Dress", "Ankle boot"], None):
            found, theirs = (
                b.predict(x, t, b.null(3) if condition is None else b.condition(condition), layer="mid")
                for b in (mine, own)
            )
            torch.testing.assert_close(found.eps, theirs.eps, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.features, theirs.features, atol=1e-5, rtol=0)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mine.encode(pixels), own.encode(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.decode(x), own.decode(x), atol=1e-5, rtol=0)
    written = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    for name, value in deciding(pipe.unet).items():
        assert written[name] == value or list(written[name]) == list(value), name
    pads = [
        json.loads((tmp_path / "out" / t / "tokenizer_config.json").read_text())["pad_token"]
        for t in ("tokenizer", "tokenizer_2")
    ]
    assert pads == ["<|endoftext|>", "!"]


def test_the_published_network_is_read_from_its_shapes():
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        network = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=[5, 10, 20],
            use_linear_projection=True, transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in originals.unet(network).items()}
    for name, value in xl_config(shapes, 128, 1280).items():
        own = network.config[name]
        assert own == value or list(own) == value, name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ztsnr": torch.ones(1)}, "trained on other noise levels"),
        ({"edm_mean": torch.ones(4)}, "trained on other noise levels"),
        (
            {"model.diffusion_model.label_emb.0.0.weight": torch.ones(3, 7)},
            "is not an SDXL in one file: its U-Net is not told",
        ),
        ({"conditioner.embedders.1.model.more": None}, None),
    ],
)
def test_others_are_refused_in_a_sentence(change, says, made, tmp_path):
    pipe, file = made
    state = originals.stable_diffusion_xl(pipe)
    if says is None:  # the refiner has OpenCLIP's text encoder alone, in the first place
        state = {n.replace("embedders.1", "embedders.0"): t for n, t in state.items() if "embedders.0" not in n}
        change, says = {}, "is the refiner of SDXL"
    save_file(state | change, tmp_path / "x.safetensors")
    (tmp_path / "tokenizer").symlink_to(file.parent / "tokenizer")
    with pytest.raises(DapError, match=says):
        convert(tmp_path / "x.safetensors", tmp_path / "out", size=8)


def test_the_command_goes_the_whole_way_from_a_file(made, colours, tmp_path):
    _, file = made
    assert main(["convert", str(file), "--out", str(tmp_path / "xl"), "--size", "8"]) == 0
    assert main(["check", str(tmp_path / "xl")]) == 0
    chosen = ["--method", "dap", "--ipc", "1", "--steps", "2", "--data", str(colours), "--layer", "mid"]
    assert main(["distill", "--backbone", str(tmp_path / "xl"), *chosen, "--out", str(tmp_path / "set")]) == 0
    assert len(DistilledSet.open(tmp_path / "set")) == 3
