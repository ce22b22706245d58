"""Models of pixels by diffusers' `UNet2DModel`: against its own pipelines, with and without classes, and the whole path."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

import tiny
from conftest import NAMES
from dap import distill
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.converting.convert import convert
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.memory import MemorySource
from dap.guidance import MeanMatching
from dap.refining import Descent, refine
from dap.sampling import Batch, images, latents
from dap.testing import check_backbone
from pretended import used_on_gpu


def unet(**options):
    from diffusers import UNet2DModel

    usual = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return tiny.seeded(lambda: UNet2DModel(**usual | options))


def scheduler(**options):
    from diffusers import DDPMScheduler

    return DDPMScheduler(**{"num_train_timesteps": 20, "beta_end": 0.4, "variance_type": "fixed_small"} | options)


def pipeline(of="DDPMPipeline", noise=None, **options):
    import diffusers

    return getattr(diffusers, of)(unet(**options), noise or scheduler())


def saved(folder, pipe, **files):
    pipe.save_pretrained(folder)
    for name, text in {"card.yaml": "licence: CC0-1.0\nscale: 0.1\n", **files}.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A class-conditional one of three colours."""
    made = tmp_path_factory.mktemp("pixels")
    return saved(made, pipeline(num_class_embeds=3), classes_json=json.dumps(NAMES))


BATCH = Batch.of(("red", "blue"), [0, 1], [0, 0], 0)


def noise(batch=BATCH):
    return [torch.Generator().manual_seed(seed) for seed in batch.seeds]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 0.4},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"variance_type": "learned_range"},
    ],
    ids=lambda said: " ".join(f"{name}={value}" for name, value in said.items()) or "plain",
)
def test_samples_equal_diffusers_ddpm_pipeline(said):
    """All steps of the training schedule from the same noise, image by image, whatever the scheduler says."""
    learned = {"out_channels": 6} if said.get("variance_type") == "learned_range" else {}
    pipe = pipeline(noise=scheduler(**said), **learned)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(batch_size=2, generator=noise(), num_inference_steps=20, output_type="pt").images
    mine = images(ClassifierFree(from_pipeline(pipe, name="p"), 1.0), None, BATCH, steps=20, solver="ddpm")
    torch.testing.assert_close(mine, torch.as_tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_equal_diffusers_ddim_pipeline(eta):
    from diffusers import DDIMScheduler

    pipe = pipeline("DDIMPipeline", DDIMScheduler(num_train_timesteps=20, timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)
    numpy = pipe(batch_size=2, generator=noise(), eta=eta, num_inference_steps=5, output_type="np").images
    theirs = torch.as_tensor(numpy).permute(0, 3, 1, 2)
    mine = images(ClassifierFree(from_pipeline(pipe, name="p"), 1.0), None, BATCH, steps=5, solver="ddim", eta=eta)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm++2m", "unipc"])
def test_every_solver_clips_the_x0_of_pixels(solver):
    """With a schedule whose first x_t is noise alone, an x_0 that is not clipped is far outside of the pixels."""
    made = {
        clip: from_pipeline(pipeline(noise=scheduler(beta_schedule="squaredcos_cap_v2", clip_sample=clip)), name="p")
        for clip in (True, False)
    }
    assert made[True].clip == 1 and made[False].clip is None
    assert made[True].weights_hash() != made[False].weights_hash()
    ends = {
        clip: latents(ClassifierFree(of, 1.0), None, BATCH, steps=4, solver=solver).abs().max()
        for clip, of in made.items()
    }
    assert ends[True] < 2 < 100 < ends[False]


def test_the_first_layout_of_the_hub_has_all_files_in_one_folder(tmp_path, monkeypatch):
    """google/ddpm-cifar10-32 has no folders; from a folder, and offline by its id from the cache of the hub."""
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "p", safe_serialization=False)
    flat = tmp_path / "hub" / "models--google--ddpm-cifar10-32" / "snapshots" / "0123"
    flat.mkdir(parents=True)
    for part in (tmp_path / "p").rglob("*.*"):
        shutil.copy(part, flat / part.name)
    assert not [path for path in flat.iterdir() if path.is_dir()]
    (flat.parents[1] / "refs").mkdir()
    (flat.parents[1] / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.DIFFUSERS_CACHE", str(tmp_path / "hub"), raising=False)
    mine = from_pipeline(pipe, name="p")
    x = torch.randn(2, 3, 8, 8)
    for found in (load(str(flat)), load("google/ddpm-cifar10-32", offline=True)):
        assert torch.equal(found.predict(x, 7, found.null(2)).eps, mine.predict(x, 7, mine.null(2)).eps)
        assert found.card.licence == "Apache-2.0" and found.weights_hash() == mine.weights_hash()
    (flat / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(DapError, match="no weights of its unet"):
        load(str(flat))


def test_a_model_without_classes_says_so_and_takes_any(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        found = from_pipeline(pipeline(), name="cats")
    assert "cats knows no classes" in caplog.text and "random" in caplog.text
    assert found.unconditional and found.class_names == ()
    assert found.condition(["dress", "bag", "dress"]).tolist() == found.null(3).tolist() == [0, 0, 0]
    with pytest.raises(DapError, match=r"cats knows no classes.*--cfg 1 instead of 3"):
        ClassifierFree(found, 3.0)
    with pytest.raises(DapError, match="trained without classes"):
        from_pipeline(pipeline(), name="cats", class_names=["cat"])
    with pytest.raises(DapError, match="leave out template"):
        from_pipeline(pipeline(), name="cats", template="a {}")


def test_labels_with_and_without_one_for_no_class(folder):
    """Three rows are three classes, and the mean row stands in for no class; with two names the last row is no class."""
    three = load(str(folder))
    assert three.class_names == tuple(NAMES) and not three.classifier_free
    network, x = three.denoiser, torch.randn(2, 3, 8, 8)
    rows = network.class_embedding.weight
    for label, name in enumerate(NAMES):
        told = network(x, torch.tensor([7, 7]), torch.full((2,), label)).sample
        assert torch.equal(three.predict(x, 7, three.condition([name] * 2)).eps, told)
    mean = pipeline(num_class_embeds=4).unet
    mean.load_state_dict(
        network.state_dict() | {"class_embedding.weight": torch.cat([rows, rows.mean(0, keepdim=True)])}
    )
    blind = mean(x, torch.tensor([7, 7]), torch.tensor([3, 3])).sample
    torch.testing.assert_close(three.predict(x, 7, three.null(2)).eps, blind)
    assert not network.class_embedding._forward_hooks
    with pytest.raises(DapError, match="without a label that stands for no class"):
        ClassifierFree(three, 2.0)
    two = from_pipeline(pipeline(num_class_embeds=3), name="two", class_names=["red", "blue"])
    assert two.classifier_free and two.null(1).tolist() == [2]
    assert latents(ClassifierFree(two, 2.0), None, BATCH, steps=3).shape == (2, 3, 8, 8)
    with pytest.raises(DapError, match=r"3 labels but 5 class names.*classes.json.*3 names, or 2"):
        from_pipeline(pipeline(num_class_embeds=3), name="five", class_names=list("abcde"))


@pytest.mark.parametrize("classes", [None, 3])
def test_it_keeps_the_contract_of_a_backbone(folder, classes):
    found = load(str(folder)) if classes else from_pipeline(pipeline(), name="none")
    assert not [f for f in check_backbone(found) if f.level == "wrong"]
    assert found.layers == ("down.0", "down.1", "mid", "up.0", "up.1")
    x, condition = torch.randn(2, 3, 8, 8), found.condition(NAMES[:2])
    plain = found.predict(x, 7, condition)
    for layer in found.layers:
        leaf = x.clone().requires_grad_()
        cut = found.predict(leaf, 7, condition, layer=layer, grad_through="features")
        assert not cut.eps.requires_grad and torch.equal(cut.eps, plain.eps)
        full = found.predict(leaf, 7, condition, layer=layer, grad_through="denoiser")
        both = [torch.autograd.grad(p.features.square().sum(), leaf, retain_graph=True)[0] for p in (cut, full)]
        assert both[0].abs().sum() > 0
        torch.testing.assert_close(*both)
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(found.decode(found.encode(pixels)), pixels)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_set_is_refined_as_a_whole(folder, conditional):
    """As `auto` does: encoded reals, an energy in pooled features at several noise levels, its gradient, and the prior."""
    found = load(str(folder)) if conditional else from_pipeline(pipeline(), name="none")
    reals = {name: torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(NAMES)}
    options = BankOptions(reals=4, pool="2x2", normalise="channel", layer="up.0")
    bank = FeatureBank(MemorySource(reals, size=8), found, options, ipc=2)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    batch = Batch.of(NAMES, [0, 0], [0, 1], 0)
    after = refine(found, [MeanMatching(bank)], batch, z, Descent(2, 0.1, prior=1.0), usual=lambda label, t: 0.0)
    assert after.shape == z.shape and torch.isfinite(after).all() and not torch.allclose(after, z)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_set_is_distilled_from_start_to_end(folder, colours, tmp_path, conditional):
    """With dap's guidance and with an energy of the set, and again from what `dap convert` writes: the same bytes."""
    backbone = folder if conditional else saved(tmp_path / "none", pipeline())
    run = {"data": str(colours), "ipc": 2, "steps": 4, "classes": ["red", "blue"]}
    sets = {}
    for name, source in (("plain", backbone), ("converted", convert(backbone, tmp_path / "converted"))):
        made = distill(out=tmp_path / "sets" / name, backbone=str(source), method="dap", reals=4, **run)
        sets[name] = [made.tensors()[0], made]
        assert made.tensors()[0].shape == (4, 3, 8, 8)
    assert torch.equal(sets["plain"][0], sets["converted"][0])
    vanilla = distill(out=tmp_path / "sets" / "vanilla", backbone=str(backbone), method="vanilla", **run)
    assert not torch.equal(vanilla.tensors()[0], sets["plain"][0])
    with pytest.raises(DapError, match="--cfg 1"):
        distill(out=tmp_path / "cfg", backbone=str(backbone), method="vanilla", cfg=4.0, **run)
    assert not list((tmp_path / "cfg").rglob("*.png"))


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("unet", {"in_channels": 1, "out_channels": 1}, "in_channels is 1"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("unet", {"sample_size": None}, "sample_size is None"),
        ("unet", {"sample_size": [8, 16]}, "square"),
        ("scheduler", {"thresholding": True}, "thresholding is True"),
        ("scheduler", {"clip_sample_range": -1}, "clip_sample_range is -1"),
        ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
    ],
)
def test_a_field_that_is_not_followed_is_refused(folder, tmp_path, part, values, says):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / part / ("config.json" if part == "unet" else "scheduler_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(DapError, match=says):
        load(str(copy))


def test_it_works_on_a_gpu(folder):
    used_on_gpu(folder)
