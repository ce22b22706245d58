"""SDXL, its distilled variants and latent consistency models, beside diffusers' own pipelines on the same noise."""

from __future__ import annotations

import pytest
import torch

import tiny
import tiny_text
from dap.backbones import ClassifierFree, from_pipeline
from dap.pretraining.words import SCHEDULE
from dap.sampling import Batch, latents

ONE = Batch.of(("dress",), [0], [0], 0)


def noise(shape, batch=ONE):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(batch.seeds[0]))


def after_noise(shape, batch=ONE):
    """The generator of an image after its first noise was drawn, for pipelines that are given this noise."""
    generator = torch.Generator().manual_seed(batch.seeds[0])
    torch.randn(1, *shape, generator=generator)
    return generator


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("negative", [None, "blurry"])
def test_sdxl_equals_its_own_pipeline(zeros, negative):
    """Two text encoders, three sizes, and the unconditional half: zeros, or the encoded negative prompt."""
    from diffusers import DDIMScheduler

    pipe = tiny_text.sdxl(zeros=zeros)
    given = {} if negative is None else {"negative_prompt": negative}
    mine = latents(ClassifierFree(from_pipeline(pipe, name="xl", **given), 3.0), None, ONE, steps=10, solver="ddim")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    theirs = pipe(
        "a photo of a dress", latents=noise((4, 4, 4)), num_inference_steps=10, guidance_scale=3.0, output_type="latent",
        **given,
    ).images  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_sdxl_turbo_equals_its_own_pipeline():
    """Ancestral steps on the trailing grid, without classifier-free guidance, are "ddim" with eta 1."""
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = tiny_text.sdxl(EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"))
    backbone = from_pipeline(pipe, name="stabilityai/sdxl-turbo")
    card = backbone.card
    assert (card.cfg, card.steps, card.solver, card.eta, card.size) == (1.0, 4, "ddim", 1.0, 8)
    mine = latents(ClassifierFree(backbone, card.cfg), None, ONE, steps=card.steps, solver=card.solver, eta=card.eta)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(4)
    sigma = pipe.scheduler.sigmas[0]  # diffusers begins at sigma · noise, and divides by the root of sigma² + 1
    theirs = pipe(
        "a photo of a dress", latents=noise((4, 4, 4)) * (sigma**2 + 1).sqrt() / sigma, num_inference_steps=4,
        guidance_scale=0.0, generator=[after_noise((4, 4, 4))], output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lcm", "sdxl", "sd"])
def test_consistency_models_equal_their_own_pipelines(kind):
    """With the scale of the guidance as an input, or, for weights with an LCM-LoRA fused in, without."""
    from diffusers import LCMScheduler

    if kind == "lcm":
        pipe, guidance = tiny_text.lcm(), 8.5
    elif kind == "sdxl":
        pipe, guidance = tiny_text.sdxl(LCMScheduler(**SCHEDULE), time_cond_proj_dim=16), 8.5
    else:
        pipe, guidance = tiny.stable_diffusion(), 1.0
        pipe.scheduler = LCMScheduler(**SCHEDULE)
    backbone = from_pipeline(pipe, name="few")
    card = backbone.card
    assert (card.cfg, card.steps, card.solver) == (1.0, 4, "lcm")
    assert card.guidance == (None if kind == "sd" else 8.5)
    mine = latents(ClassifierFree(backbone, card.cfg), None, ONE, steps=card.steps, solver=card.solver)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a photo of a dress", latents=noise((4, 4, 4)), num_inference_steps=4, guidance_scale=guidance,
        generator=[after_noise((4, 4, 4))], output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
