"""Wan as a backbone of clips: equal to diffusers' own pipeline, and through the whole path of a set."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

import clips
import tiny
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.cards import shape_of
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.sampling import Batch, latents
from dap.testing import check_backbone
from dap.verbs.distill import distill
from pretended import used_on_gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("wan")
    tiny.wan().save_pretrained(place)
    (place / "card.yaml").write_text("size: 16\nframes: 5\nlicence: CC0-1.0\n")
    return place


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return clips.folder(tmp_path_factory.mktemp("clips"), train=4, test=2)


def test_samples_equal_those_of_diffusers_own_pipeline(backbone):
    batch = Batch(("Bag", "Dress"), (0, 1), (0, 0), (3, 4))
    mine = latents(ClassifierFree(backbone, 5.0), None, batch, steps=6)
    noise = normal(backbone.latent_shape, generators([3, 4]), torch.empty(0))
    pipe = tiny.wan()
    pipe.set_progress_bar_config(disable=True)
    run = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 6, "guidance_scale": 5.0}
    prompts = ["a video of Bag", "a video of Dress"]
    theirs = pipe(prompts, negative_prompt="", latents=noise.clone(), output_type="latent", **run).frames
    assert theirs.std() > 0.5
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    decoded = pipe(prompts, negative_prompt="", latents=noise, output_type="pt", **run).frames.transpose(1, 2)
    torch.testing.assert_close(backbone.decode(mine), decoded, rtol=1e-5, atol=1e-5)


def test_latents_are_normalised_channel_by_channel(backbone):
    clip = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = backbone.vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    wanted = (vae.encode(clip * 2 - 1).latent_dist.mode() - mean) / std
    torch.testing.assert_close(backbone.encode(clip), wanted)
    assert backbone.latent_shape == (4, 2, 4, 4) and shape_of(backbone.card) == (3, 5, 16, 16)
    drawn = backbone.drawn(clip, torch.Generator().manual_seed(1))
    assert drawn.shape == wanted.shape and not torch.equal(drawn, wanted)


def test_prediction_and_features_come_from_one_pass(backbone):
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    condition, calls = backbone.condition(["Bag", "Dress"]), []
    handle = backbone.denoiser.register_forward_hook(lambda *_: calls.append(1))
    found = backbone.predict(x, 500.0, condition, layer="1", grad_through="features")
    handle.remove()
    assert len(calls) == 1 and found.features.shape == (2, 8, 24)
    assert not found.eps.requires_grad
    (gradient,) = torch.autograd.grad(found.features.sum(), x)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(found.features, backbone.tap(x.detach(), 500.0, condition, "1"))
    torch.testing.assert_close(found.eps, backbone.predict(x.detach(), 500.0, condition).eps)


def test_check_passes(backbone):
    assert [str(one) for one in check_backbone(backbone) if one.level == "wrong"] == []


def test_a_hub_id_in_the_cache_loads_offline(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    place = tmp_path / "models--someone--wan"
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = load("someone/wan", offline=True)
    assert found.card.name == "someone/wan" and found.card.frames == 5


@pytest.mark.parametrize("method", ["vanilla", "dap", "dap-slots", "mgd3", "manifold-gd"])
def test_every_method_of_clips_makes_a_set(method, folder, data, tmp_path):
    how = {"steps": 3, "ipc": 2, "frames": 5, "classes": ["Bag", "Shirt"]}
    made = distill(out=tmp_path / "set", method=method, backbone=str(folder), source=str(data), **how)
    assert made.frames == 5 and not made.verify()
    images, labels = made.tensors()
    assert images.shape == (4, 3, 5, 16, 16) and labels.tolist() == [0, 0, 1, 1]
    assert (images[:, :, 0] != images[:, :, 4]).any()


def test_guidance_moves_clips_and_scale_zero_is_vanilla(folder, data, tmp_path):
    how = {"steps": 3, "ipc": 1, "frames": 5, "classes": ["Bag"], "backbone": str(folder), "source": str(data)}
    plain = distill(out=tmp_path / "vanilla", method="vanilla", **how).tensors()[0]
    zero = distill(out=tmp_path / "zero", method="dap", scale=0, **how).tensors()[0]
    moved = distill(out=tmp_path / "dap", method="dap", scale=1.0, layer="1", **how).tensors()[0]
    assert torch.equal(plain, zero) and not torch.equal(plain, moved)


def test_what_does_not_fit_is_said_before_any_work(folder, data, tmp_path):
    how = {"ipc": 1, "source": str(data), "out": tmp_path / "set", "backbone": str(folder), "steps": 2}
    with pytest.raises(DapError, match="makes clips of 5 frames; read the data as such with --frames 5"):
        distill(method="vanilla", size=16, **{**how, "source": "fashion-mnist"})
    with pytest.raises(DapError, match="makes clips of 5 frames.*not 4, or write frames: 4"):
        distill(method="vanilla", frames=4, **how)
    with pytest.raises(DapError, match="makes images and no clips.*take random"):
        distill(method="minimax", frames=5, **how)
    with pytest.raises(
        DapError, match="makes images and the data are clips; leave out --frames, or take a video backbone"
    ):
        distill(method="vanilla", frames=5, **{**how, "backbone": "starter-unet"})
    with pytest.raises(DapError, match="'auto' makes images and no clips"):
        distill(frames=5, out=tmp_path / "set", source=str(data))
    with pytest.raises(DapError, match="Neither a method nor a budget is chosen for clips"):
        distill(method="random", frames=5, out=tmp_path / "set", source=str(data), budget="1m")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("size: 16\nframes: 6\n", "1 [+] 4k frames, not 6; write frames: 5"),
        ("size: 20\nframes: 5\n", "multiple of 8 px, not 20"),
    ],
)
def test_a_card_that_does_not_fit_the_network(card, said, folder, tmp_path):
    for part in folder.iterdir():
        if part.name != "card.yaml":
            (tmp_path / part.name).symlink_to(part)
    (tmp_path / "card.yaml").write_text(card)
    with pytest.raises(DapError, match=said):
        load(str(tmp_path))


def test_two_transformers_are_refused():
    pipe = tiny.wan()
    pipe.register_modules(transformer_2=pipe.transformer)
    with pytest.raises(DapError, match="two transformers"):
        from_pipeline(pipe, name="wan")


def test_the_command_makes_a_set_and_judges_it(folder, data, tmp_path, capsys):
    dap = [sys.executable, "-P", "-m", "dap"]
    made, report = tmp_path / "set", tmp_path / "report"
    how = [
        "--data",
        data,
        "--frames",
        "5",
        "--backbone",
        folder,
        "--method",
        "dap",
        "--steps",
        "2",
        "--ipc",
        "1",
        "--reals",
        "3",
    ]
    subprocess.run([*dap, "distill", *map(str, how), "--out", str(made), "--quiet"], check=True, capture_output=True)
    judging = ["--protocol", "clips-quick", "--set", "epochs=2", "--set", "width=8", "--trials", "1"]
    assert main(["evaluate", str(made), *judging, "--out", str(report), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert DistilledSet.open(made).recipe["data"]["frames"] == 5
    page = (report / "report.html").read_text()
    assert "acTL" in _embedded(page)  # the page plays the clips


def _embedded(page: str) -> str:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return "".join(base64.b64decode(one).decode("latin-1") for one in found)


@pytest.mark.parametrize(
    "offload", ["none", *(pytest.param(how, marks=pytest.mark.slow) for how in ("model", "sequential"))]
)
def test_it_works_on_a_gpu(folder, offload):
    used_on_gpu(folder, offload=offload)
