"""Each pipeline that is told text through the whole product: folder, hub id, one pass, check, distilled sets."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import tiny_text
from dap.backbones import from_pipeline, load
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.recipe import Recipe
from pretended import used_on_gpu

KINDS = {
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", tiny_text.sdxl, "CreativeML Open RAIL++-M"),
    "lcm": ("SimianLuo/LCM_Dreamshaper_v7", tiny_text.lcm, "MIT"),
    "pixart": ("PixArt-alpha/PixArt-XL-2-512x512", tiny_text.pixart, "CreativeML Open RAIL++-M"),
    "flux": ("black-forest-labs/FLUX.1-dev", tiny_text.flux, "FLUX.1 [dev] Non-Commercial License"),
    "sana": (
        "Efficient-Large-Model/Sana_600M_512px_diffusers",
        tiny_text.sana,
        "NSCL v2-custom (NVIDIA), Gemma Terms of Use",
    ),
}
COMMIT = "a" * 40


@dataclass
class Made:
    """A tiny pipeline of a kind, in memory and in a folder."""

    name: str
    licence: str
    pipe: object
    folder: Path


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> Made:
    name, build, licence = KINDS[request.param]
    folder, pipe = tmp_path_factory.mktemp(request.param) / "m", build()
    pipe.save_pretrained(folder)
    (folder / "card.yaml").write_text("size: 8\n")
    return Made(name, licence, pipe, folder)


def test_a_folder_and_a_hub_id_in_the_cache_are_opened(made, tmp_path, monkeypatch):
    """Both hold the weights of the pipeline in memory; the hub id brings its card."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / f"models--{made.name.replace('/', '--')}"
    shutil.copytree(made.folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    local, hub = load(str(made.folder)), load(made.name, offline=True)
    memory = from_pipeline(made.pipe, path=str(made.folder))
    assert local.weights_hash() == hub.weights_hash() == memory.weights_hash()
    assert hub.card.name == made.name and hub.card.licence == made.licence and local.card.size == hub.card.size == 8


def test_one_pass_gives_the_prediction_and_the_gradient_of_every_layer(made):
    backbone = load(str(made.folder))
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))
    condition, t = backbone.condition(("red", "green")), 600
    plain = backbone.predict(x, t, condition)
    for layer in backbone.layers:
        leaf = x.clone().requires_grad_()
        cut = backbone.predict(leaf, t, condition, layer=layer, grad_through="features")
        full = backbone.predict(leaf, t, condition, layer=layer, grad_through="denoiser")
        assert not cut.eps.requires_grad and full.eps.requires_grad and cut.features.ndim == 3
        torch.testing.assert_close(cut.eps, plain.eps)
        torch.testing.assert_close(cut.features.detach(), backbone.tap(x, t, condition, layer))
        gradients = [torch.autograd.grad(p.features.square().sum(), leaf, retain_graph=True)[0] for p in (cut, full)]
        assert gradients[0].abs().sum() > 0
        torch.testing.assert_close(*gradients)


def test_dap_check_passes(made, capsys):
    assert main(["check", str(made.folder), "--device", "cpu"]) == 0, capsys.readouterr()


@pytest.mark.parametrize("method", ["dap", "auto"])
def test_a_set_is_distilled(made, method, colours, tmp_path, capsys):
    """With features of the tapped layer, real images encoded, and latents decoded; weights of few steps take their own."""
    run = ["distill", "--method", method, "--data", str(colours), "--classes", "red", "blue", "--ipc", "1"]
    run += ["--reals", "4"] if method == "dap" else ["--refine-steps", "2", "--refine-reals", "4"]
    few = made.name.startswith("SimianLuo")
    run += [] if few else ["--steps", "2"]
    assert main([*run, "--backbone", str(made.folder), "--device", "cpu", "--out", str(tmp_path / "s")]) == 0, (
        capsys.readouterr().err
    )
    images = DistilledSet.open(tmp_path / "s").tensors()[0]
    assert images.shape == (2, 3, 8, 8) and images.std() > 0


def test_weights_of_few_steps_are_sampled_as_their_card_says():
    """The user's own choice wins, and a solver of the user's does not get the card's eta."""
    from dap.methods import find

    card = tiny_text.sdxl()
    backbone = from_pipeline(card, name="stabilityai/sdxl-turbo")

    def sampled(**sampling):
        recipe = Recipe.parse({"method": "vanilla", "sampling": sampling} if sampling else {"method": "vanilla"})
        return recipe.resolved(backbone, None, 8, sampling=find("vanilla").sampling).sampling

    plain, mine = sampled(), sampled(solver="dpm++2m", steps=20, cfg=2.0)
    assert (plain.steps, plain.solver, plain.eta, plain.cfg) == (4, "ddim", 1.0, 1.0)
    assert (mine.steps, mine.solver, mine.eta, mine.cfg) == (20, "dpm++2m", None, 2.0)
    assert sampled(eta=0.5).eta == 0.5


@pytest.mark.parametrize(
    "offload", ["none", *(pytest.param(how, marks=pytest.mark.slow) for how in ("model", "sequential"))]
)
def test_it_works_on_a_gpu(made, offload):
    used_on_gpu(made.folder, offload=offload)
