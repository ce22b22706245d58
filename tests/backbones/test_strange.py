"""Files and folders that people give as a backbone and that are none: what they are, and what to give instead, in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import originals
import tiny
from conftest import tiny_transformer, tiny_vae
from dap.backbones import load
from dap.backbones.converting import single
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Stable Diffusion of 8 px."""
    made = tmp_path_factory.mktemp("strange") / "sd"
    tiny.stable_diffusion().save_pretrained(made)
    return made


def one(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


def parts() -> dict[str, dict[str, torch.Tensor]]:
    """Whole networks by the names of diffusers or of their authors."""
    pipe = tiny.stable_diffusion()
    return {
        "the U-Net of a diffusers pipeline alone": pipe.unet.state_dict(),
        "a text encoder alone": pipe.text_encoder.state_dict(),
        "an autoencoder alone": pipe.vae.state_dict(),
        "an autoencoder alone. ": originals.autoencoder(pipe.vae),
        "the transformer of a diffusers pipeline alone": tiny_transformer().state_dict(),
    }


TENSORS = {
    "a LoRA": one("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_unet_x.alpha"),
    "a LoRA: ": one("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"),
    "a LoRA: it": one("base_model.model.blocks.0.attn.qkv.lora_B.default.weight"),
    "a LoRA: it holds": one("unet.up_blocks.1.attentions.0.processor.to_q_lora.down.weight"),
    "a ControlNet": one("control_model.input_blocks.0.0.weight"),
    "a ControlNet.": one("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "an IP-Adapter": one("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "a motion module": one("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    "an embedding of a word": one("emb_params"),
    "a Flux in one file": one("double_blocks.0.img_attn.qkv.weight", "img_in.weight"),
    "a Flux in one": one("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"),
    "a Stable Diffusion 3 in one file": one("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"),
    "a Wan by the names": one("patch_embedding.weight", "blocks.0.self_attn.q.weight"),
    "a Sana by the names": one("x_embedder.proj.weight", "attention_y_norm.weight"),
    **parts(),
}


@pytest.mark.parametrize("what", TENSORS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_tensors_says_what_it_is(what, suffix, tmp_path):
    """To whoever loads it as a backbone and to whoever converts it; no autoencoder is asked for that would not help."""
    file = tmp_path / f"x.{suffix}"
    state = {name: value.contiguous().clone() for name, value in TENSORS[what].items()}
    save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state}, file)
    for use in (lambda: load(str(file)), lambda: convert(file, tmp_path / "out")):
        with pytest.raises(DapError) as refused:
            use()
        said = str(refused.value)
        assert (
            said.startswith(f"{file} is {what}") and "\n" not in said and said.count("Give ") + said.count("give ") == 1
        ), said


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("flux1-dev-Q4_0.gguf", b"GGUF\x03", "is a GGUF file"),
        ("model.onnx", b"\x08\x07", "is an ONNX model"),
        ("model.safetensors.incomplete", b"x", "is a download that has not ended"),
        ("flax_model.msgpack", b"x", "holds weights for Flax"),
        ("x.pt", b"", "is empty"),
        ("x.safetensors", b"", "is empty"),
        ("x.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a page of the web"),
        ("x.ckpt", b"<html>", "is a page of the web"),
    ],
)
def test_a_file_of_another_format_says_what_it_is(name, data, says, tmp_path, capsys):
    (tmp_path / name).write_bytes(data)
    for use in (["check", str(tmp_path / name)], ["convert", str(tmp_path / name), "--out", str(tmp_path / "out")]):
        assert main(use) == 1
        said = capsys.readouterr().err
        assert f"{tmp_path / name} {says}" in said and ("anew" in said or "Give" in said), said


def test_half_a_file_and_none(tmp_path):
    save_file(one("a", "b"), tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[:-4])
    with pytest.raises(DapError, match="half.safetensors is no whole .safetensors file: .* Fetch it anew"):
        load(str(tmp_path / "half.safetensors"))
    for wrong in ("weights/typo.safetensors", str(tmp_path / "typo.ckpt")):  # and no hub id
        with pytest.raises(DapError, match="There is no file .*typo"):
            load(wrong)


@pytest.mark.parametrize("name", ["vae.safetensors", "vaes/none.ckpt"])
def test_an_autoencoder_s_file_is_none_that_a_dit_takes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(tiny_vae().state_dict(), "vae.safetensors")
    torch.save(one("final_layer.linear.weight"), "dit.pt")
    with pytest.raises(DapError, match=f"autoencoder {name} is a file; give the folder or hub id"):
        from dap.backbones.hub import open_autoencoder

        open_autoencoder(name, dtype="float32", offline=True)


def changed(folder: Path, made: Path, **fields: object) -> Path:
    """A copy of a pipeline's folder whose model_index.json says something else."""
    shutil.copytree(folder, made)
    index = json.loads((made / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps(index | fields))
    return made


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StableDiffusionImg2ImgPipeline", r"in diffusers: StableDiffusionPipeline.from_pretrained\(FOLDER\)"),
        ("StableDiffusionXLControlNetInpaintPipeline", r"in diffusers: StableDiffusionXLPipeline.from_pretrained"),
        ("OnnxStableDiffusionPipeline", "No gradient can go through an ONNX model"),
        ("StableVideoDiffusionPipeline", "Your own is a subclass of dap.Backbone"),
        ("MyPipeline", "Your own is a subclass of dap.Backbone"),
    ],
)
def test_a_pipeline_without_a_backbone_is_said_before_its_weights_are_read(name, says, folder, tmp_path):
    made = changed(folder, tmp_path / "m", _class_name=name)
    for file in made.glob("*/*.safetensors"):
        file.write_bytes(b"not read")
    with pytest.raises(DapError, match=f"A {name} has no backbone yet; .*{says}"):
        load(str(made))


def test_the_advice_for_a_pipeline_that_takes_an_image_works(folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    made = changed(folder, tmp_path / "m", _class_name="StableDiffusionImg2ImgPipeline")
    StableDiffusionPipeline.from_pretrained(made).save_pretrained(tmp_path / "new")
    assert load(str(tmp_path / "new")).weights_hash() == load(str(folder)).weights_hash()


def test_a_pipeline_without_a_backbone_is_not_fetched(folder, tmp_path, monkeypatch):
    """Only its model_index.json is."""
    import diffusers
    import huggingface_hub

    made = changed(folder, tmp_path / "m", _class_name="StableDiffusionImg2ImgPipeline")
    asked = []

    def download(source, name, **options):
        asked.append(name)
        return str(made / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *args, **options: pytest.fail("it was fetched"))
    with pytest.raises(DapError, match="has no backbone yet"):
        load("owner/img2img")
    assert asked == ["model_index.json"]


def test_a_folder_that_dap_s_own_pipelines_save_is_a_backbone(folder, pipeline_folder, tmp_path):
    """`dap.DAPDiTPipeline(...).save_pretrained` writes the name of its own class."""
    for source, name in ((folder, "DAPStableDiffusionPipeline"), (pipeline_folder, "DAPDiTPipeline")):
        made = changed(source, tmp_path / name, _class_name=name)
        assert load(str(made)).weights_hash() == load(str(source)).weights_hash()


def test_a_folder_without_an_index_says_what_is_in_it(folder, tmp_path):
    def said(place: Path) -> str:
        with pytest.raises(
            DapError, match="has no model_index.json, so it is not a diffusers pipeline folder"
        ) as refused:
            load(str(place))
        return str(refused.value)

    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty").endswith("It is empty.")
    assert "It holds one network alone (config.json). Give the folder of the whole pipeline" in said(folder / "unet")
    assert f"The folder {folder} in it is one; give that" in said(folder.parent)
    cache = tmp_path / "models--owner--name"
    shutil.copytree(folder, cache / "snapshots" / ("a" * 40))
    assert "It is the cache of a hub id: give owner/name, or the folder" in said(cache)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    assert "It holds an ONNX model" in said(tmp_path / "onnx")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "v1-5.safetensors").write_bytes(b"x")
    assert f"Give its file {tmp_path / 'one' / 'v1-5.safetensors'}" in said(tmp_path / "one")


def test_an_inpainting_model_in_one_file_is_named(tmp_path, monkeypatch):
    """Its U-Net takes nine channels: the latents, those of a masked image, and the mask."""
    monkeypatch.setattr(single, "SIDE", 8)
    pipe = tiny.stable_diffusion(in_channels=9, block_out_channels=(32, 64), norm_num_groups=32)
    pipe.vae = tiny_vae_of_32()
    save_file({n: t.contiguous() for n, t in originals.stable_diffusion(pipe).items()}, tmp_path / "x.safetensors")
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(
        DapError, match="takes 9 channels, .* an inpainting or editing model cannot sample a class alone"
    ):
        load(str(tmp_path / "x.safetensors"))


def tiny_vae_of_32():
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 4, "sample_size": 8}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=32,
        **sizes,
    )
