"""LTX-Video and CogVideoX as backbones of clips: equal to diffusers' own pipelines, and through the whole path of a set."""

from __future__ import annotations

import re

import pytest
import torch

import clips
import tiny_clips
from dap.backbones import ClassifierFree, from_pipeline, load
from dap.backbones.schedules import Flow, VariancePreserving, ZeroTerminal
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.sampling import Batch, latents
from dap.testing import check_backbone
from dap.verbs.distill import distill
from pretended import used_on_gpu

BATCH = Batch(("Bag", "Dress"), (0, 1), (0, 0), (3, 4))
PROMPTS = ["a video of Bag", "a video of Dress"]
KINDS = {
    "ltx": (tiny_clips.ltx, 32, (6, 2, 4, 4), 32),
    "cogvideox": (tiny_clips.cogvideox, 16, (4, 3, 4, 4), 12),
    "cogvideox-rotary": (lambda: tiny_clips.cogvideox(rotary=True), 16, (4, 3, 4, 4), 12),
}
"""By name: the tiny pipeline, the side of its clips, the shape of its latents, and how many tokens a block gives."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    build, size, _, _ = KINDS[kind]
    build().save_pretrained(place)
    (place / "card.yaml").write_text(f"size: {size}\nframes: 9\nlicence: CC0-1.0\n")
    return place


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder))


def called(pipe, size, noise, steps, **how):
    """What diffusers' own pipeline makes: its latents as dap has them, and its frames."""
    pipe.set_progress_bar_config(disable=True)
    ltx = hasattr(pipe, "_pack_latents")
    pack = pipe._pack_latents if ltx else lambda x: x.transpose(1, 2)
    run = {"height": size, "width": size, "num_frames": 9, "num_inference_steps": steps, "guidance_scale": 3.0, **how}
    if not ltx:
        run["max_sequence_length"] = 24
    made, frames = (
        pipe(PROMPTS, negative_prompt="", latents=pack(noise), output_type=kind, **run).frames
        for kind in ("latent", "pt")
    )
    return pack, made, frames.transpose(1, 2)


def test_samples_equal_those_of_diffusers_own_pipeline(kind, backbone):
    build, size, shape, _ = KINDS[kind]
    assert backbone.latent_shape == shape and backbone.card.frames == 9
    mine = latents(ClassifierFree(backbone, 3.0), None, BATCH, steps=5)
    noise = normal(backbone.latent_shape, generators([3, 4]), torch.empty(0))
    pack, theirs, frames = called(build(), size, noise, 5)
    assert theirs.std() > 0.5 and frames.shape == (2, 3, 9, size, size)
    torch.testing.assert_close(pack(mine), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.decode(mine), frames, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{"shift": 3.0}, {"shift": 2.0, "shift_terminal": 0.2}])
def test_an_ltx_follows_the_grid_of_its_scheduler(fields):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = tiny_clips.ltx(FlowMatchEulerDiscreteScheduler(**fields))
    schedule = Flow.from_config(pipe.scheduler.config, 32, even=True)
    pipe.scheduler.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    torch.testing.assert_close(torch.tensor(schedule.times(7)), pipe.scheduler.timesteps, rtol=1e-6, atol=1e-3)
    pipe.scheduler.set_timesteps(7)
    uneven = Flow.from_config(pipe.scheduler.config, 32).times(7)
    torch.testing.assert_close(torch.tensor(uneven), pipe.scheduler.timesteps, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"snr_shift_scale": 1.0}, {"beta_schedule": "linear", "beta_end": 0.02}])
@pytest.mark.parametrize("of", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_the_schedule_of_a_cogvideox_is_that_of_its_schedulers(of, fields):
    import diffusers

    theirs = getattr(diffusers, of)(rescale_betas_zero_snr=True, **fields)
    plain = VariancePreserving.from_config({**theirs.config, "rescale_betas_zero_snr": False})
    mine = ZeroTerminal.shifted(plain, theirs.config.snr_shift_scale)
    torch.testing.assert_close(mine.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=1e-4, atol=1e-6)
    assert mine.level(999) == (0.0, 1.0)
    x, v = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        alpha, sigma = mine.level(t)
        eps, x0 = mine.velocity(x, t, v)
        torch.testing.assert_close(alpha * x0 + sigma * eps, x)
        torch.testing.assert_close(alpha * eps - sigma * x0, v)


def test_latents_are_those_of_the_autoencoder(kind, backbone):
    _, size, shape, _ = KINDS[kind]
    clip = torch.rand(2, 3, 9, size, size, generator=torch.Generator().manual_seed(0))
    vae = backbone.vae
    found = vae.encode(clip * 2 - 1).latent_dist.mode()
    if kind == "ltx":
        mean, std = torch.linspace(-0.3, 0.4, 6).view(1, -1, 1, 1, 1), torch.linspace(0.6, 1.7, 6).view(1, -1, 1, 1, 1)
        wanted = (found - mean) / std
    else:
        wanted = 0.7 * found
    assert wanted.shape == (2, *shape)
    torch.testing.assert_close(backbone.encode(clip), wanted)


def test_prediction_and_features_come_from_one_pass(kind, backbone):
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    condition, calls = backbone.condition(["Bag", "Dress"]), []
    handle = backbone.denoiser.register_forward_hook(lambda *_: calls.append(1))
    found = backbone.predict(x, 500, condition, layer="1", grad_through="features")
    handle.remove()
    assert len(calls) == 1 and found.features.shape[:2] == (2, KINDS[kind][3])
    assert not found.eps.requires_grad
    (gradient,) = torch.autograd.grad(found.features.sum(), x)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(found.features, backbone.tap(x.detach(), 500, condition, "1"))
    torch.testing.assert_close(found.eps, backbone.predict(x.detach(), 500, condition).eps)


def test_check_passes(backbone):
    assert [str(one) for one in check_backbone(backbone) if one.level == "wrong"] == []


def test_a_guided_set_is_made(kind, folder, tmp_path_factory, tmp_path):
    data = clips.folder(tmp_path_factory.mktemp("clips"), train=4, test=2)
    how = {"steps": 2, "ipc": 1, "frames": 9, "classes": ["Bag"], "backbone": str(folder), "source": str(data)}
    plain = distill(out=tmp_path / "vanilla", method="vanilla", **how)
    zero = distill(out=tmp_path / "zero", method="dap", scale=0, **how)
    moved = distill(out=tmp_path / "dap", method="dap", scale=1.0, layer="1", **how)
    assert moved.frames == 9 and not moved.verify()
    first, same, other = (made.tensors()[0] for made in (plain, zero, moved))
    assert first.shape[1:] == (3, 9, KINDS[kind][1], KINDS[kind][1])
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("build", "card", "said"),
    [
        (tiny_clips.ltx, "size: 32\nframes: 10\n", "1 [+] 8k frames, not 10; write frames: 9"),
        (tiny_clips.ltx, "size: 36\nframes: 9\n", "multiple of 8 px, not 36"),
        (tiny_clips.cogvideox, "size: 16\nframes: 13\n", "1 [+] 8k frames, not 13; write frames: 9"),
    ],
)
def test_a_card_that_does_not_fit_the_network(build, card, said, tmp_path):
    build().save_pretrained(tmp_path)
    (tmp_path / "card.yaml").write_text(card)
    with pytest.raises(DapError, match=said):
        load(str(tmp_path))


def test_weights_that_dap_would_read_wrongly_are_refused():
    from diffusers import DDIMScheduler

    with pytest.raises(DapError, match="decoder_inject_noise is .*adds random noise of its own.*take LTX-Video 0.9.0"):
        from_pipeline(tiny_clips.ltx(decoder_inject_noise=(True, False, False, False)), name="ltx")
    with pytest.raises(DapError, match="timestep_conditioning is True.*take LTX-Video 0.9.0"):
        from_pipeline(tiny_clips.ltx(timestep_conditioning=True), name="ltx")
    pipe = tiny_clips.cogvideox(prediction_type="epsilon")
    with pytest.raises(DapError, match="predicts velocities, so set it to v_prediction"):
        from_pipeline(pipe, name="cogvideox")
    with pytest.raises(DapError, match="rescale_betas_zero_snr is False; it should be True"):
        from_pipeline(tiny_clips.cogvideox(rescale_betas_zero_snr=False), name="cogvideox")
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(DapError, match="the scheduler is DDIMScheduler.*CogVideoXDDIMScheduler"):
        from_pipeline(pipe, name="cogvideox")
    pipe.transformer.register_to_config(patch_size_t=2)
    pipe.scheduler = tiny_clips.cogvideox().scheduler
    with pytest.raises(DapError, match="patch_size_t is 2.*CogVideoX 1.0"):
        from_pipeline(pipe, name="cogvideox")


def test_a_cogvideox_is_sampled_by_ddim_alone(tmp_path):
    tiny_clips.cogvideox().save_pretrained(tmp_path)
    (tmp_path / "card.yaml").write_text("size: 16\nframes: 9\n")
    model = ClassifierFree(load(str(tmp_path)), 1.0)
    for solver in ("ddpm", "heun", "unipc", "dpm++2m-sde", "lcm"):
        with pytest.raises(DapError, match=f"begin, not '{re.escape(solver)}'"):
            latents(model, None, BATCH, steps=3, solver=solver)
    with pytest.raises(DapError, match="its first x_t is pure noise"):
        latents(model, None, BATCH, steps=3, push_into="eps")
    noisy = latents(model, None, BATCH, steps=3, eta=1.0, solver="ddim")
    assert torch.isfinite(noisy).all()


@pytest.mark.parametrize(
    "offload", ["none", *(pytest.param(how, marks=pytest.mark.slow) for how in ("model", "sequential"))]
)
def test_it_works_on_a_gpu(folder, offload):
    used_on_gpu(folder, offload=offload)
