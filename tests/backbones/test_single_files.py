"""Stable Diffusion 1 and 2 in one file: opened without the network, and equal to the folder of the same weights."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import originals
import tiny
from dap.backbones import load
from dap.backbones.converting import single
from dap.backbones.converting.convert import convert
from dap.backbones.converting.shapes import autoencoder_config, unet_config
from dap.backbones.converting.single import told
from dap.backbones.honoured import deciding
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.pretraining.words import build_tokenizer
from dap.starter import CLASS_NAMES

pytestmark = pytest.mark.usefixtures("no_network")


def pipeline(second: bool = False, prediction_type: str = "epsilon") -> Any:
    """A Stable Diffusion of 8 px images in the proportions of version 1, or of version 2 (`second`)."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = build_tokenizer(CLASS_NAMES, 32)
    if second:
        words.pad_token = "!"
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        projection_dim=32, max_position_embeddings=32, hidden_act="gelu" if second else "quick_gelu",
    )  # fmt: skip
    network = {"use_linear_projection": True, "attention_head_dim": [1, 1]} if second else {"attention_head_dim": 8}
    return StableDiffusionPipeline(
        vae=tiny.seeded(
            lambda: AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(32, 64), layers_per_block=1, sample_size=8,
            ), 0.1,
        ),
        unet=tiny.seeded(
            lambda: UNet2DConditionModel(
                sample_size=4, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **network,
            ), 0.1,
        ),
        text_encoder=tiny.seeded(lambda: CLIPTextModel(config)), tokenizer=words,
        scheduler=DDIMScheduler(**single.SCHEDULE, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["one", "two"])
def both(request, tmp_path_factory) -> tuple[Any, Path, bool]:
    """A pipeline, the one file with its weights and a tokenizer beside the file, and whether it is a version 2."""
    folder, pipe = tmp_path_factory.mktemp("single"), pipeline(request.param)
    save_file(originals.stable_diffusion(pipe, second=request.param), folder / "own.safetensors")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    return pipe, folder / "own.safetensors", request.param


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr(single, "SIDE", 8)
    monkeypatch.setattr(single, "LARGE", 16)


def test_a_file_predicts_what_its_folder_predicts(both, tmp_path):
    pipe, file, second = both
    made = load(str(convert(file, tmp_path / "out", prediction="epsilon")))
    pipe.save_pretrained(tmp_path / "folder")
    own = load(str(tmp_path / "folder"))
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        for layer in own.layers:
            mine, theirs = (
                b.predict(x, t, b.condition(["Bag", "Dress", "Ankle boot"]), layer=layer) for b in (made, own)
            )
            torch.testing.assert_close(mine.eps, theirs.eps, atol=1e-5, rtol=0)
            torch.testing.assert_close(mine.features, theirs.features, atol=1e-5, rtol=0)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.encode(pixels), own.encode(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.decode(x), own.decode(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.schedule.alphas_cumprod, own.schedule.alphas_cumprod, atol=0, rtol=0)
    written = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    for name, value in deciding(pipe.unet).items():
        assert written[name] == value or list(written[name]) == list(value), name
    assert load(str(file)).weights_hash() == made.weights_hash() if not second else True


def test_prompts_are_filled_up_as_the_text_encoder_was_trained(both, tmp_path):
    pipe, file, second = both
    written = convert(file, tmp_path / "out", prediction="epsilon")
    said = json.loads((written / "tokenizer" / "tokenizer_config.json").read_text())
    assert said["pad_token"] == pipe.tokenizer.pad_token == ("!" if second else "<|endoftext|>")


def test_a_trainer_s_file_gives_its_moving_averages_and_runs_nothing(both, tmp_path, monkeypatch):
    """As v1-5-pruned.ckpt: Lightning's notes are filed under a class of Lightning, and averages stand beside the weights."""
    pipe, file, second = both
    home = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    home.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": home.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", home.__name__):
        monkeypatch.setitem(sys.modules, name, home)
    state, unet = originals.stable_diffusion(pipe, second=second), single.UNET
    averages = {
        f"model_ema.{n.removeprefix('model.').replace('.', '')}": t for n, t in state.items() if n.startswith(unet)
    }
    others = {name: value + 1 if name.startswith(unet) else value for name, value in state.items()}
    notes = {"callbacks": {home.ModelCheckpoint: {"monitor": "val/loss"}}, "epoch": 3, "global_step": 840000}
    torch.save({"state_dict": {**others, **averages}, **notes}, tmp_path / "trainer.ckpt")
    monkeypatch.undo()
    monkeypatch.setattr(single, "SIDE", 8)
    (tmp_path / "tokenizer").symlink_to(file.parent / "tokenizer")
    made = convert(tmp_path / "trainer.ckpt", tmp_path / "a", prediction="epsilon")
    assert (
        load(str(made)).weights_hash() == load(str(convert(file, tmp_path / "b", prediction="epsilon"))).weights_hash()
    )


def test_a_pickle_that_needs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"state_dict": {"model.diffusion_model.out.2.weight": Evil()}}))
    with pytest.raises(DapError, match="without running code"):
        load(str(tmp_path / "x.ckpt"))
    assert not (tmp_path / "ran").exists()


def published(second: bool) -> Any:
    """The U-Net of Stable Diffusion 1.5, or of 2.1 (`second`), without numbers, from the hub's configurations."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    of = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
    with init_empty_weights():
        return UNet2DConditionModel(
            sample_size=64, **(of if second else {"cross_attention_dim": 768, "attention_head_dim": 8})
        )


@pytest.mark.parametrize("second", [False, True])
def test_the_published_networks_are_read_from_their_shapes(second):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    network = published(second)
    shapes = {name: tuple(value.shape) for name, value in originals.unet(network).items()}
    for name, value in unet_config(shapes, 64).items():
        own = network.config[name]
        assert own == value or list(own) == value, name
    with init_empty_weights():
        four = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = AutoencoderKL(
            down_block_types=four[0],
            up_block_types=four[1],
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    shapes = {name: tuple(value.shape) for name, value in originals.autoencoder(vae).items()}
    said = autoencoder_config(shapes, 0.18215, 512)
    assert said.pop("sample_size") == 512
    for name, value in said.items():
        assert vae.config[name] == value or list(vae.config[name]) == value, name


def test_what_is_predicted_is_told_by_noise(caplog):
    file = Path("v2.safetensors")
    assert told(0.99, file, certain=False) == "epsilon"
    assert told(0.05, file, certain=False) == told(-0.4, file, certain=False) == "v_prediction"
    for unsure in (0.6, float("nan")):
        with pytest.raises(DapError, match="give dap convert --prediction epsilon or v_prediction"):
            told(unsure, file, certain=False)
    assert told(0.99, file, certain=True) == "epsilon" and not caplog.text
    assert told(0.1, file, certain=True) == "epsilon" and "--prediction v_prediction" in caplog.text


def test_a_second_version_that_predicts_velocity_is_found_out_and_is_larger(tmp_path):
    """The random U-Net of this file does not repeat noise, so it is read as one of velocity, at 768 px in the real size."""
    pipe = pipeline(second=True)
    save_file(originals.stable_diffusion(pipe, second=True), tmp_path / "v2.safetensors")
    pipe.tokenizer.save_pretrained(tmp_path / "words")
    made = convert(tmp_path / "v2.safetensors", tmp_path / "out", tokenizer=str(tmp_path / "words"))
    scheduler = json.loads((made / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert load(str(made)).card.size == single.LARGE
    small = convert(
        tmp_path / "v2.safetensors", tmp_path / "eps", tokenizer=str(tmp_path / "words"), prediction="epsilon"
    )
    assert load(str(small)).card.size == single.SIDE
    sized = convert(tmp_path / "v2.safetensors", tmp_path / "sized", tokenizer=str(tmp_path / "words"), size=12)
    assert load(str(sized)).card.size == 12


def test_another_autoencoder_takes_the_place_of_the_file_s(both, tmp_path):
    pipe, file, second = both
    pipe.vae.save_pretrained(tmp_path / "vae")
    state = originals.stable_diffusion(pipe, second=second)
    without = {name: value for name, value in state.items() if not name.startswith(single.VAE)}
    save_file(without, tmp_path / "x.safetensors")
    (tmp_path / "tokenizer").symlink_to(file.parent / "tokenizer")
    with pytest.raises(DapError, match="holds no autoencoder; give dap convert --vae"):
        load(str(tmp_path / "x.safetensors"))
    made = convert(tmp_path / "x.safetensors", tmp_path / "a", vae=str(tmp_path / "vae"), prediction="epsilon")
    assert (
        load(str(made)).weights_hash() == load(str(convert(file, tmp_path / "b", prediction="epsilon"))).weights_hash()
    )


def test_published_files_have_the_card_of_the_hub(both, tmp_path):
    _, file, second = both
    name = "v2-1_512-ema-pruned.safetensors" if second else "v1-5-pruned-emaonly.safetensors"
    (tmp_path / name).symlink_to(file)
    (tmp_path / "tokenizer").symlink_to(file.parent / "tokenizer")
    made = load(str(convert(tmp_path / name, tmp_path / "out", prediction="epsilon")))
    assert made.card.licence.startswith("CreativeML Open") and made.card.layer == "mid"


def changed(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """A file's tensors with a mistake in them."""
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    ones = torch.ones(2, 2)
    return {
        "sdxl": state | {"conditioner.embedders.0.model.x": ones},
        "flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ones},
        "control": state | {"control_model.time_embed.0.weight": ones},
        "no text": {n: t for n, t in state.items() if not n.startswith(single.TEXT)},
        "lacks": {n: t for n, t in state.items() if n != name},
        "more": state | {"model.diffusion_model.more.weight": ones},
        "shape": state | {name: ones},
        "empty": {"model.diffusion_model.conv.weight": ones, "cond_stage_model.transformer.x": ones, "first_stage_model.x": ones},
        "text": {n: t for n, t in state.items() if "encoder.layers.0.mlp.fc1.bias" not in n},
    }[how]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("sdxl", "is the refiner of SDXL"),
        ("flux", "is a Flux in one file"),
        ("control", "is a ControlNet"),
        ("no text", "is a U-Net without the CLIP text encoder"),
        ("lacks", "lack mid_block.resnets.0.conv1.weight|not a Stable Diffusion 1 or 2 in one file"),
        ("more", "UNet2DConditionModel has [0-9,]+ numbers, and diffusers' network of these blocks has"),
        ("shape", "not a Stable Diffusion 1 or 2 in one file"),
        ("empty", "not a Stable Diffusion 1 or 2 in one file: its autoencoder has no levels"),
        ("text", "not a Stable Diffusion 1 or 2 in one file: .*fc1.bias"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(how, says, tmp_path):
    save_file(
        {n: t.clone() for n, t in changed(originals.stable_diffusion(pipeline()), how).items()},
        tmp_path / "x.safetensors",
    )
    build_tokenizer(CLASS_NAMES, 32).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(DapError, match=says) as refused:
        load(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_without_a_tokenizer_the_way_to_one_is_said(both, tmp_path, monkeypatch):
    _, file, _ = both
    (tmp_path / "own.safetensors").symlink_to(file)
    alone = tmp_path / "own.safetensors"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DapError, match="holds no tokenizer.* put the folder tokenizer/ of any Stable Diffusion beside"):
        load(str(alone), offline=True)
    build_tokenizer(["another"], 32).save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for given, says in (
        (tmp_path / "other", "has [0-9]+ tokens and the text encoder .* reads"),
        (tmp_path / "empty", "holds no tokenizer"),
        (tmp_path / "none", "There is no tokenizer at"),
        ("owner/none", "hf download owner/none"),
    ):
        with pytest.raises(DapError, match=says):
            convert(alone, tmp_path / "out", tokenizer=str(given), offline=True)
    (tmp_path / "tokenizer").symlink_to(file.parent / "tokenizer")  # the advice of the first message
    assert convert(alone, tmp_path / "out", prediction="epsilon", offline=True).is_dir()


def test_a_tokenizer_in_the_cache_is_found_offline(both, tmp_path, monkeypatch):
    pipe, file, _ = both
    (tmp_path / "own.safetensors").symlink_to(file)
    snapshot = tmp_path / "hub" / "models--CompVis--stable-diffusion-v1-4" / "snapshots" / ("a" * 40)
    pipe.tokenizer.save_pretrained(snapshot / "tokenizer")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert convert(tmp_path / "own.safetensors", tmp_path / "out", prediction="epsilon", offline=True).is_dir()


def test_flags_of_one_kind_are_refused_for_another(both, sd_folder, tmp_path):
    _, file, _ = both
    for source, options, says in (
        (sd_folder, {"tokenizer": "x"}, "--tokenizer, --prediction and --size are for a Stable Diffusion in one file"),
        (file, {"heads": 4}, "--heads is not for a Stable Diffusion"),
        (file, {"prediction": "sample"}, "There is no prediction 'sample'"),
        (file, {"size": 9, "prediction": "epsilon"}, "give a --size that 2 divides"),
    ):
        with pytest.raises(DapError, match=says):
            convert(source, tmp_path / "out", **options)
    with pytest.raises(DapError, match="A revision is of a hub id"):
        load(str(file), revision="main")


def test_the_command_goes_the_whole_way_from_a_file(both, colours, tmp_path, capsys):
    _, file, second = both
    said = ["--prediction", "epsilon", "--size", "8"]
    assert main(["convert", str(file), "--out", str(tmp_path / "sd"), *said]) == 0
    assert main(["check", str(tmp_path / "sd")]) == 0
    chosen = ["--method", "dap", "--ipc", "2", "--steps", "3", "--data", str(colours), "--layer", "auto"]
    assert main(["distill", "--backbone", str(tmp_path / "sd"), *chosen, "--out", str(tmp_path / "set")]) == 0
    made = DistilledSet.open(tmp_path / "set")
    assert len(made) == 6
    if not second:  # its kind of prediction is not in doubt, so the file is opened as it is
        assert main(["distill", "--backbone", str(file), *chosen, "--out", str(tmp_path / "direct")]) == 0
        direct = DistilledSet.open(tmp_path / "direct")
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(made, direct, strict=True))
