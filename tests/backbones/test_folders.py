"""Folders and checkpoints as people have them: in parts, in half precision, damaged, or of another kind of model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from dap.backbones import from_pipeline, load
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.cli.main import main

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
PART = "40KB"  # the whole U-Net has six times as much

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers tells of old names of files


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """One Stable Diffusion: whole, in parts, in parts of pickles, and in half precision whole and in parts."""
    root = tmp_path_factory.mktemp("saved")
    pipe = tiny.stable_diffusion()
    kinds: dict[str, dict[str, Any]] = {"whole": {}, "parts": {"max_shard_size": PART}}
    kinds["pickles"] = {"max_shard_size": PART, "safe_serialization": False}
    for name, how in kinds.items():
        pipe.save_pretrained(root / name, **how)
    pipe = pipe.to(torch.float16)
    pipe.save_pretrained(root / "half", variant="fp16")
    pipe.save_pretrained(root / "half parts", variant="fp16", max_shard_size="20KB")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def copied(saved, tmp_path):
    return lambda name: Path(shutil.copytree(saved[name], tmp_path / "m"))


def refusal(folder: Path) -> str:
    with pytest.raises(DapError) as refused:
        load(str(folder))
    return str(refused.value)


def test_case_14_parts_of_safetensors_are_the_whole(saved):
    assert len(list((saved["parts"] / "unet").glob("*-of-*.safetensors"))) > 2
    assert load(str(saved["parts"])).weights_hash() == load(str(saved["whole"])).weights_hash()


@pytest.mark.parametrize("names", ["new", "old"])
def test_case_14_parts_in_half_precision_are_the_whole(names, saved, copied):
    folder = copied("half parts")
    if names == "old":  # model-00001-of-00002.fp16.safetensors, before model.fp16-00001-of-00002.safetensors
        index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
        said = json.loads(index.read_text())
        for new in set(said["weight_map"].values()):
            stem, _, rest = new.partition(".fp16")
            old = f"{stem}{rest.removesuffix('.safetensors')}.fp16.safetensors"
            (folder / "unet" / new).rename(folder / "unet" / old)
            said["weight_map"] = {k: old if file == new else file for k, file in said["weight_map"].items()}
        index.write_text(json.dumps(said))
    assert load(str(folder)).weights_hash() == load(str(saved["half"])).weights_hash()


def test_case_14_one_network_in_half_precision_and_weights_without_average(saved, copied):
    folder, half = copied("whole"), saved["half"] / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(half, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    whole = load(str(saved["whole"]))
    assert load(str(folder)).weights_hash() == whole.weights_hash(), "the plain file counts"
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    shutil.copy(half, folder / "unet")
    state, halved = load(str(folder)).state(), load(str(saved["half"])).state()
    for name, value in whole.state().items():
        assert torch.equal(state[name], halved[name] if name.startswith("denoiser") else value), name


def test_case_15_pickles_in_parts_say_why_and_what_to_do(saved, tmp_path, capsys):
    """What `save_pretrained(safe_serialization=False)` writes of a large network; diffusers itself fails on it."""
    folder = saved["pickles"]
    assert len(list((folder / "unet").glob("*-of-*.bin"))) > 2 and list((folder / "text_encoder").glob("*.safetensors"))
    said = refusal(folder)
    assert "weights of the unet in" in said and "pickles in several parts" in said and "hub id" not in said
    assert (
        main(["check", str(folder), "--device", "cpu"]) == 1 and "pickles in several parts" in capsys.readouterr().err
    )
    # The advice can be followed: the part alone, as safetensors.
    from diffusers import UNet2DConditionModel

    mended = Path(shutil.copytree(folder, tmp_path / "mended"))
    UNet2DConditionModel.from_pretrained(str(folder / "unet"), use_safetensors=False).save_pretrained(mended / "unet")
    for file in (mended / "unet").glob("*.bin*"):
        file.unlink()
    from diffusers import AutoencoderKL

    if list((mended / "vae").glob("*-of-*.bin")):
        AutoencoderKL.from_pretrained(str(folder / "vae"), use_safetensors=False).save_pretrained(mended / "vae")
        for file in (mended / "vae").glob("*.bin*"):
            file.unlink()
    assert load(str(mended)).weights_hash() == load(str(saved["whole"])).weights_hash()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("a part is missing", "has 6 of 7 parts of its weights, .*lacks part 1; fetch"),
        ("the index is missing", "unet"),
        ("a pointer of git-lfs", "is a Git LFS pointer and not the file itself"),
        ("a pointer of git-lfs as text encoder", "is a Git LFS pointer and not the file itself"),
        ("a pointer of git-lfs as configuration", "unet/config.json, line 1: this is not JSON"),
        ("cut", "unet/diffusion_pytorch_model.safetensors"),
        ("flax alone", "has no weights of its unet; unet/ should hold a .safetensors or .bin file"),
        ("no merges.txt", "tokenizer has no merges.txt, so its tokenizer cannot be read"),
    ],
)
def test_case_16_a_damaged_folder_is_a_sentence_that_fits_a_folder(damage, says, copied):
    import re

    folder = copied("parts" if damage in ("a part is missing", "the index is missing") else "whole")
    weights = sorted((folder / "unet").glob("*.safetensors"))[0]
    if damage == "a part is missing":
        weights.unlink()
    elif damage == "the index is missing":
        next((folder / "unet").glob("*.index.json")).unlink()
    elif damage.startswith("a pointer"):
        place = {
            "encoder": folder / "text_encoder" / "model.safetensors",
            "configuration": folder / "unet" / "config.json",
        }
        place.get(damage.rpartition(" ")[2], weights).write_text(POINTER)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "flax alone":
        weights.rename(weights.with_name("diffusion_flax_model.msgpack"))
    else:
        tokenizer = folder / "tokenizer"
        tiny.build_tokenizer(tiny.CLASS_NAMES, 32).backend_tokenizer.model.save(str(tokenizer))
        (tokenizer / "tokenizer.json").unlink()
        assert load(str(folder)).card.size == 8, "two files stand for the one"
        (tokenizer / "merges.txt").unlink()
    said = refusal(folder)
    assert re.search(says, said) and str(folder) in said, said
    assert "\n" not in said and "Give a local folder" not in said, said


OTHERS = [
    *("LDM", "ConsistencyModel", "SanaSprint", "FluxKontext", "StableDiffusionXLInpaint"),
    *("StableDiffusionInpaint", "StableDiffusionImg2Img"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_case_23_a_pipeline_without_a_backbone_is_said(name):
    import diffusers

    pipe = object.__new__(getattr(diffusers, f"{name}Pipeline"))  # nothing of it is looked at but its class
    plain = name.removesuffix("Inpaint").removesuffix("Img2Img")
    way = "Your own is a subclass" if plain == name else rf"{plain}Pipeline.from_pretrained\(FOLDER\).save_pretrained"
    with pytest.raises(DapError, match=f"A {name}Pipeline has no backbone yet; DDPMPipeline, .* have. .*{way}"):
        from_pipeline(pipe)


@pytest.mark.parametrize("name", ["StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"])
def test_case_23_by_every_verb_before_any_work(name, copied, tmp_path, capsys):
    folder = copied("whole")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    out = str(tmp_path / "out")
    distill = ["distill", "--method", "vanilla", "--classes", "Dress", "Bag", "--ipc", "1", "--backbone", str(folder)]
    for command in ([*distill, "--out", out], ["convert", str(folder), "--out", out], ["check", str(folder)]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert f"A {name} has no backbone yet" in said and "Traceback" not in said
        assert not Path(out).exists()


def state_of(kind: str) -> dict[str, torch.Tensor]:
    """Names and shapes of the first tensors of other people's checkpoints of label-conditioned diffusion models."""
    shapes = {
        "REPA": {
            "x_embedder.proj.weight": (16, 4, 2, 2),
            "projectors.0.0.weight": (8, 16),
            "blocks.0.attn.qkv.weight": (48, 16),
        },
        "LightningDiT": {"x_embedder.proj.weight": (16, 32, 1, 1), "blocks.0.mlp.w12.weight": (64, 16)},
        "MDT": {
            "en_inblocks.0.attn.qkv.weight": (48, 16),
            "sideblocks.0.attn.qkv.weight": (48, 16),
            "mask_token": (1, 1, 16),
        },
        "U-ViT": {"in_blocks.0.attn.qkv.weight": (48, 16), "pos_embed": (1, 5, 16), "label_emb.weight": (11, 16)},
        "ADM": {"time_embed.0.weight": (16, 8), "input_blocks.0.0.weight": (8, 3, 3, 3), "label_emb.weight": (10, 16)},
    }
    return {name: torch.zeros(shape) for name, shape in shapes[kind].items()}


@pytest.mark.parametrize("kind", ["REPA", "LightningDiT", "MDT", "U-ViT", "ADM"])
def test_case_29_checkpoints_of_other_models_are_refused(kind, saved, tmp_path):
    for name in (f"{kind}.pt", "weights.pt"):  # by its name, or by what it holds
        torch.save(state_of(kind), tmp_path / name)
        with pytest.raises(DapError, match="not a checkpoint of (REPA|LightningDiT)|no model that dap knows") as error:
            convert(tmp_path / name, tmp_path / "out", vae=str(saved["whole"] / "vae"))
        assert name in str(error.value) and not (tmp_path / "out").exists()


def test_case_32_two_attentions_a_norm_of_queries_and_heun(tmp_path):
    """Stable Diffusion 3.5: what it predicts is what diffusers' own transformer does."""
    from diffusers import FlowMatchHeunDiscreteScheduler, SD3Transformer2DModel

    pipe = tiny.stable_diffusion_3()
    shape = {"sample_size": 4, "patch_size": 2, "in_channels": 16, "out_channels": 16, "pos_embed_max_size": 4}
    width = {"num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32}
    more = {
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    network = pipe.transformer = tiny.seeded(lambda: SD3Transformer2DModel(**shape, **width, **more))
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    pipe.save_pretrained(tmp_path / "m")
    made: Any = load(str(tmp_path / "m"))
    x, condition = (
        torch.randn(1, *made.latent_shape, generator=torch.Generator().manual_seed(0)),
        made.condition(["red"]),
    )
    states, pooled = made.encodings(condition)
    with torch.no_grad():
        theirs = network(x, states, pooled, torch.tensor([500.0])).sample
    torch.testing.assert_close(made.run(x, 500, condition), theirs)
    assert made.schedule.shift == 3.0


def test_case_8_a_stable_diffusion_3_without_t5_is_converted_and_checked(tmp_path, capsys):
    tiny.stable_diffusion_3().save_pretrained(tmp_path / "m")
    assert main(["convert", str(tmp_path / "m"), "--out", str(tmp_path / "out")]) == 0
    assert load(str(tmp_path / "out")).weights_hash() == load(str(tmp_path / "m")).weights_hash()
    assert main(["check", str(tmp_path / "out"), "--device", "cpu"]) == 0, capsys.readouterr()


def test_case_33_a_u_net_without_a_middle_says_which_layers_it_has(colours, tmp_path, capsys):
    tiny.stable_diffusion(mid_block_type=None).save_pretrained(tmp_path / "m")
    run = [
        "distill",
        "--method",
        "dap",
        "--data",
        str(colours),
        "--classes",
        "red",
        "blue",
        "--ipc",
        "1",
        "--steps",
        "2",
    ]
    run += ["--reals", "4", "--backbone", str(tmp_path / "m"), "--device", "cpu", "--out", str(tmp_path / "s")]
    assert main(run) == 1
    assert "no layer 'mid' to tap. Known: down.0, down.1, up.0, up.1." in capsys.readouterr().err
    assert main([*run, "--layer", "down.1"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("method", ["vanilla", "dap"])
def test_case_12_a_small_autoencoder_makes_sets(method, colours, saved, tmp_path, capsys):
    """--method dap ended in AttributeError 'latent_dist'."""
    from diffusers import AutoencoderTiny

    folder = Path(shutil.copytree(saved["whole"], tmp_path / "m", ignore=shutil.ignore_patterns("vae")))
    widths: dict[str, Any] = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    tiny.seeded(
        lambda: AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    ).save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderTiny"]}))
    run = [
        "distill",
        "--method",
        method,
        "--data",
        str(colours),
        "--ipc",
        "1",
        "--steps",
        "2",
        "--backbone",
        str(folder),
    ]
    run += ["--reals", "4"] if method == "dap" else []
    assert main([*run, "--device", "cpu", "--out", str(tmp_path / "s")]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "s" / "images").rglob("*.png"))) == 3


def test_a_revision_of_a_folder_is_refused_and_not_ignored(pipeline_folder, colours, tmp_path, capsys):
    words = ["--method", "vanilla", "--ipc", 1, "--backbone", pipeline_folder, "--revision", "main", "--data", colours]
    assert main([str(word) for word in ("distill", *words, "--out", tmp_path / "out")]) == 1
    assert f"A revision is of a hub id, and {pipeline_folder} is a folder on this machine" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_weights_that_the_network_has_no_place_for_are_refused(copied):
    """A configuration with fewer layers than were trained dropped them, and only diffusers warned."""
    folder = copied("whole")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "extra.weight": torch.zeros(3)}, weights)
    said = refusal(folder)
    assert "weights of the UNet2DConditionModel" in said and "hold 1 tensors" in said and "extra.weight" in said
    save_file(tensors, weights)
    text = folder / "text_encoder" / "model.safetensors"
    words = load_file(text)
    position = {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.ones(())}
    save_file({**words, **position}, text, metadata={"format": "pt"})
    assert load(str(folder)).card.size == 8, "older files hold positions, and other parts of CLIP"
    layer = next(name for name in words if ".layers.0." in name)
    for prefix in ("", "text_model."):  # the names of newer and of older files
        named = {prefix + name.removeprefix("text_model."): one for name, one in words.items()}
        more = prefix + layer.removeprefix("text_model.").replace(".0.", ".7.")
        save_file({**named, "vision_model." + layer: torch.zeros(1)}, text, metadata={"format": "pt"})
        load(str(folder))
        save_file({**named, more: words[layer].clone()}, text, metadata={"format": "pt"})
        assert ".layers.7." in refusal(folder), prefix


def test_fewer_layers_than_were_trained_are_refused(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "fewer")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": 2}))
    assert "leaves no place, such as transformer_blocks.2." in refusal(folder)


def test_leftovers_of_published_weights_that_decide_nothing_are_passed_over(pipeline_folder, tmp_path):
    """The weights of PixArt on the hub hold `caption_projection.y_embedding`, for which diffusers has no place."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "more")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(weights), "caption_projection.y_embedding": torch.zeros(2, 2)}, weights)
    assert load(str(folder)).weights_hash() == load(str(pipeline_folder)).weights_hash()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_denoiser_of_zeros_is_refused(pipeline_folder, tmp_path, kind):
    folder = shutil.copytree(pipeline_folder, tmp_path / "zeros")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": kind}))
    load(str(folder))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: torch.zeros_like(one) for name, one in load_file(weights).items()}, weights)
    assert "gives one number for every image" in refusal(folder)
