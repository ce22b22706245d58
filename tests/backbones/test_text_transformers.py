"""PixArt, Flux and Sana beside diffusers' own pipelines on the same noise."""

from __future__ import annotations

import json

import pytest
import torch

import tiny_text
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.base.errors import DapError
from dap.pretraining.words import SCHEDULE
from dap.sampling import Batch, latents

ONE = Batch.of(("dress",), [0], [0], 0)
PROMPT = "a photo of a dress"


def noise(shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(ONE.seeds[0]))


def after_noise(shape):
    generator = torch.Generator().manual_seed(ONE.seeds[0])
    torch.randn(1, *shape, generator=generator)
    return generator


def called(pipe, **call):
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, height=8, width=8, output_type="latent", **call).images


def close(mine, theirs):
    """To 1e-5 of the largest value; random weights under classifier-free guidance make large ones."""
    scale = theirs.abs().max()
    mine, theirs = mine / scale, theirs / scale
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Alpha", {}),
        ("Sigma", {}),
        ("Alpha", {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24}),
        ("Sigma", {"out_channels": 4}),
    ],
)
def test_pixart_equals_its_own_pipeline(kind, fields):
    """The text and its mask; sizes, where the weights are told them; the variance, which diffusers leaves out."""
    from diffusers import DDIMScheduler

    pipe = tiny_text.pixart(kind, **fields)
    backbone = from_pipeline(pipe, name="pixart", negative_prompt="blurry")
    assert backbone.learned_variance == ("out_channels" not in fields)
    mine = latents(ClassifierFree(backbone, 4.5), None, ONE, steps=10, solver="ddim")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    if fields.get("use_additional_conditions"):
        pipe.transformer.register_to_config(sample_size=128)  # diffusers tells sizes to networks of this side alone
    run = {"num_inference_steps": 10, "guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False}
    close(mine, called(pipe, latents=noise((4, 4, 4)), negative_prompt="blurry", **run))


def test_pixart_as_a_consistency_model_equals_its_own_pipeline():
    from diffusers import LCMScheduler

    pipe = tiny_text.pixart(scheduler=LCMScheduler(**SCHEDULE))
    backbone = from_pipeline(pipe, name="pixart-lcm")
    card = backbone.card
    assert (card.cfg, card.steps, card.solver, card.guidance) == (1.0, 4, "lcm", None)
    mine = latents(ClassifierFree(backbone, card.cfg), None, ONE, steps=4, solver="lcm")
    run = {"num_inference_steps": 4, "guidance_scale": 1.0, "use_resolution_binning": False, "clean_caption": False}
    close(mine, called(pipe, latents=noise((4, 4, 4)), generator=[after_noise((4, 4, 4))], **run))


def test_a_pixart_of_older_files_is_the_same(tmp_path):
    """The hub's PixArt-α names its transformer by the class that diffusers had for all of them."""
    tiny_text.pixart().save_pretrained(tmp_path)
    new = load(str(tmp_path)).weights_hash()
    for file, values in (
        ("model_index.json", {"transformer": ["diffusers", "Transformer2DModel"]}),
        ("transformer/config.json", {"_class_name": "Transformer2DModel", "num_vector_embeds": None}),
    ):
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | values))
    assert load(str(tmp_path)).weights_hash() == new


def test_a_tokenizer_that_needs_another_package_says_so(tmp_path, monkeypatch):
    tiny_text.pixart().save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"pieces")
    monkeypatch.setattr("dap.backbones.honoured.find_spec", lambda name: None)
    with pytest.raises(DapError, match="vocabulary in spiece.model.*pip install sentencepiece protobuf"):
        load(str(tmp_path))


def test_letters_that_pixart_reads_as_small_are_the_same_class():
    backbone = from_pipeline(tiny_text.pixart(), name="pixart")
    with pytest.raises(DapError, match="reads the classes 'Dress' and 'dress' as the same tokens"):
        backbone.condition(["Dress", "dress"])


def small(pipe, tmp_path):
    """A Flux of 8 px: its size is free, and diffusers' usual one is 1024 px."""
    (tmp_path / "card.yaml").write_text("size: 8\n")
    return from_pipeline(pipe, path=str(tmp_path), name="flux")


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_flux_equals_its_own_pipeline(told, cfg, tmp_path):
    """With a guidance that is told (dev) and without (schnell), on diffusers' grid of times; `cfg` is its true_cfg_scale."""
    pipe = tiny_text.flux(told)
    backbone = small(pipe, tmp_path)
    assert backbone.card.guidance == (3.5 if told else None) and backbone.latent_shape == (4, 4, 4)
    mine = latents(ClassifierFree(backbone, cfg), None, ONE, steps=6)
    packed = pipe._pack_latents(noise((4, 4, 4)), 1, 4, 4, 4)
    run = {"num_inference_steps": 6, "guidance_scale": 3.5, "max_sequence_length": 512 if told else 256}
    theirs = called(pipe, latents=packed, negative_prompt="", true_cfg_scale=cfg, **run)
    close(mine, pipe._unpack_latents(theirs, 8, 8, pipe.vae_scale_factor))


def test_a_flux_has_any_size_that_its_patches_divide(tmp_path):
    pipe = tiny_text.flux()
    assert from_pipeline(pipe, name="flux").card.size == 256, "128 latents a side, as in diffusers' pipeline"
    (tmp_path / "card.yaml").write_text("size: 12\n")
    backbone = from_pipeline(pipe, path=str(tmp_path), name="flux")
    assert backbone.latent_shape == (4, 6, 6) and backbone.decode(torch.randn(1, 4, 6, 6)).shape == (1, 3, 12, 12)
    hashes = {backbone.weights_hash(), small(pipe, tmp_path).weights_hash()}
    (tmp_path / "card.yaml").write_text("size: 8\nguidance: 2.0\n")
    assert len(hashes | {from_pipeline(pipe, path=str(tmp_path), name="flux").weights_hash()}) == 3
    (tmp_path / "card.yaml").write_text("size: 10\n")
    with pytest.raises(DapError, match="size: 10, but a Flux makes sides that 4 divides"):
        from_pipeline(pipe, path=str(tmp_path), name="flux")


def test_sana_equals_its_own_pipeline():
    """The instruction comes before the prompt and not before the negative prompt."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = tiny_text.sana()
    backbone = from_pipeline(pipe, name="sana", negative_prompt="blurry")
    mine = latents(ClassifierFree(backbone, 4.5), None, ONE, steps=6)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.check_inputs = lambda *given: None  # it wants sides that 32 divides, as the published autoencoder does
    run = {"num_inference_steps": 6, "guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False}
    close(mine, called(pipe, latents=noise((4, 4, 4)), negative_prompt="blurry", **run))


def test_sana_under_its_own_sampler_equals_its_own_pipeline():
    """The scheduler of the published folders: DPM-Solver++ on the flow, which asks the network at whole times."""
    pipe = tiny_text.sana()
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    backbone = from_pipeline(pipe, name="sana", negative_prompt="blurry")
    mine = latents(ClassifierFree(backbone, 4.5), None, ONE, steps=6, solver="dpm++2m")
    pipe.check_inputs = lambda *given: None
    run = {"num_inference_steps": 6, "guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False}
    close(mine, called(pipe, latents=noise((4, 4, 4)), negative_prompt="blurry", **run))
