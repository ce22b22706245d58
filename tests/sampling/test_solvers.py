"""Solvers against closed forms and diffusers' own loops, and the push through eps against the push on x."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dap.backbones import ClassifierFree, Flow, Mixture, VariancePreserving
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.guidance import Descend, Energy, Guidance
from dap.sampling import Batch, latents, sample
from dap.solvers import SOLVERS as ALL
from dap.solvers import make

SOLVERS = [solver for solver in ALL if solver != "sde"]
"""Those of schedules with betas."""

MU = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 1, 1, 2, 2)
BATCH = Batch.of(("0",), [0, 0, 0], [0, 1, 2], 3)


def gaussian(schedule=None):
    return Mixture(MU, std=0.5, schedule=schedule)


class ToTarget(Energy):
    """Half the squared distance of x_t to a point: its gradient is known."""

    def __call__(self, state):
        return (state.x - 2).flatten(1).square().sum(1) / 2


class Push(Guidance):
    """A constant push."""

    def __init__(self, size):
        self.size = size

    def __call__(self, state):
        return torch.full_like(state.proposal, self.size)


def run(backbone, guidance=None, batch=BATCH, **options):
    return latents(ClassifierFree(backbone, 1.0), guidance, batch, **options)


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "lcm"])
def test_all_solvers_reach_the_data_distribution(solver):
    """Mean and spread of 2,000 samples; ancestral steps need many, the others do with 50."""
    n, steps = 2000, 400 if solver in ("ddpm", "dpm++2m-sde") else 50
    made = run(gaussian(), batch=Batch.of(("0",), [0] * n, range(n), 0), steps=steps, solver=solver).flatten(1)
    assert (made.mean(0) - MU.flatten()).abs().max() < 0.06
    assert made.std(0).mean().item() == pytest.approx(0.5, rel=0.06)


class Consistent(Mixture):
    """Predicts the noise that leads to the end of the probability-flow path, as a consistency model does."""

    def predict(self, x, t, condition, **rest):
        alpha, sigma = self.schedule.level(t)
        end = MU[0] + 0.5 * (x - alpha * MU[0]) / math.sqrt((alpha * 0.5) ** 2 + sigma**2)
        return replace(super().predict(x, t, condition, **rest), eps=(x - alpha * end) / sigma, x0=end)


@pytest.mark.parametrize("steps", [2, 4, 50])
def test_lcm_reaches_the_data_distribution_of_a_consistency_model(steps):
    """With few steps as with many. Of a plain denoiser it loses spread, so it is no solver for one."""
    n = 2000
    backbone, batch = Consistent(MU, std=0.5), Batch.of(("0",), [0] * n, range(n), 0)
    made = run(backbone, batch=batch, steps=steps, solver="lcm").flatten(1)
    assert (made.mean(0) - MU.flatten()).abs().max() < 0.06
    assert made.std(0).mean().item() == pytest.approx(0.5, rel=0.06)
    plain = run(gaussian(), batch=batch, steps=steps, solver="lcm").flatten(1)
    assert plain.std(0).mean().item() < 0.4


@pytest.mark.parametrize("solver", SOLVERS)
def test_scale_zero_is_vanilla_bit_for_bit_and_a_scale_is_not(solver):
    backbone = gaussian()
    vanilla = run(backbone, steps=6, solver=solver)
    assert torch.equal(run(backbone, Descend(ToTarget(), 0.0), steps=6, solver=solver), vanilla)
    pulled = run(backbone, Descend(ToTarget(), 0.05), steps=6, solver=solver)
    assert (pulled - 2).norm() < (vanilla - 2).norm()


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", None), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)])
def test_pushing_eps_is_pushing_x_without_a_history(solver, eta):
    backbone, guidance = gaussian(), Descend(ToTarget(), 0.05)
    x, eps = (run(backbone, guidance, steps=12, solver=solver, eta=eta, push_into=form) for form in ("x", "eps"))
    torch.testing.assert_close(x, eps, rtol=2e-4, atol=2e-4)


def test_pushing_eps_is_pushing_x_under_a_learned_variance(backbone):
    batch, model = Batch.of(("red", "blue"), [0, 1], [0, 1], 0), ClassifierFree(backbone, 2.0, 3)
    made = [latents(model, Push(0.05), batch, steps=10, push_into=form) for form in ("x", "eps")]
    assert backbone.learned_variance
    torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_per_eps_is_the_derivative_of_the_first_step(solver):
    backbone = gaussian()
    x, eps = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 1, 2, 2)
    made = []
    for more in (0.0, 1.0):
        solved = make(backbone, solver, 10)
        t = solved.timesteps[0]
        x0 = backbone.schedule.eps_to_x0(x, t, eps + more)
        made.append(solved.step(0, x, eps + more, x0, None, generators([0, 1, 2])))
    slope = (made[1] - made[0]).mean().item()
    assert solved.per_eps(0) == pytest.approx(slope, rel=1e-3)
    assert all(solved.per_eps(i) < 0 for i in range(10)), "more noise predicted means less noise left"


@pytest.mark.parametrize("solver", ["dpm++2m", "dpm++2m-sde", "unipc"])
def test_a_multistep_history_sees_the_push(solver):
    """One push early on: with the push on x alone, the second-order step still extrapolates from the prediction before it."""

    class Once(Push):
        def active(self, index, steps):
            return index == 2

    backbone = gaussian()
    x, eps = (run(backbone, Once(0.3), steps=8, solver=solver, push_into=form) for form in ("x", "eps"))
    assert not torch.allclose(x, eps, atol=1e-4)
    states = list(sample(ClassifierFree(backbone, 1.0), Once(0.3), BATCH, steps=8, solver=solver))
    calm = list(sample(ClassifierFree(backbone, 1.0), None, BATCH, steps=8, solver=solver))
    torch.testing.assert_close(states[2].proposal, calm[2].next)
    moved = states[2].next - states[2].proposal
    # Second-order steps weigh the newest prediction by more than one, never by less.
    assert (moved > 0.29).all() and (moved < 1.0).all()


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_multistep_equals_the_plain_diffusers_loop(solver):
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    backbone = gaussian()
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    scheduler = kind(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="linspace")
    scheduler.set_timesteps(11)
    x = normal((1, 2, 2), generators(BATCH.seeds), torch.empty(0))
    for t in scheduler.timesteps:
        eps = backbone.predict(x, int(t), torch.zeros(3, dtype=torch.long)).eps
        x = scheduler.step(eps, t, x).prev_sample
    torch.testing.assert_close(run(backbone, steps=11, solver=solver), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_equals_diffusers_where_steps_divide_the_schedule(steps):
    from diffusers import DDIMScheduler

    backbone = gaussian()
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    gens = generators(BATCH.seeds)
    x = normal((1, 2, 2), gens, torch.empty(0))
    for t in scheduler.timesteps:
        eps = backbone.predict(x, int(t), torch.zeros(3, dtype=torch.long)).eps
        x = scheduler.step(eps, int(t), x, eta=0.7, generator=gens).prev_sample
    torch.testing.assert_close(run(backbone, steps=steps, solver="ddim", eta=0.7), x, rtol=1e-3, atol=1e-3)


def test_a_flow_without_noise_equals_diffusers_euler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    backbone = gaussian(Flow(shift=3.0))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(9)
    x = normal((1, 2, 2), generators(BATCH.seeds), torch.empty(0))
    for t in scheduler.timesteps:
        # The velocity eps − x_0 of a Gaussian N(mu, s²), from E[x_0 | x] alone.
        sigma = t.item() / 1000
        x0 = MU[0] + (1 - sigma) * 0.25 / ((1 - sigma) ** 2 * 0.25 + sigma**2) * (x - (1 - sigma) * MU[0])
        x = scheduler.step((x - x0) / sigma, t, x).prev_sample
    torch.testing.assert_close(run(backbone, steps=9), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_flow_reaches_the_data_distribution(eta):
    n = 2000
    batch = Batch.of(("0",), [0] * n, range(n), 0)
    made = run(gaussian(Flow(shift=3.0)), batch=batch, steps=400, eta=eta).flatten(1)
    assert (made.mean(0) - MU.flatten()).abs().max() < 0.06
    assert made.std(0).mean().item() == pytest.approx(0.5, rel=0.08)


def test_a_flow_starts_at_pure_noise_and_takes_a_push():
    backbone = gaussian(Flow(shift=3.0))
    states = list(sample(ClassifierFree(backbone, 1.0), Push(0.01), BATCH, steps=5))
    assert states[0].alpha == 0 and states[0].sigma == 1
    assert all(torch.isfinite(state.x0_hat).all() for state in states)
    for state in states:
        torch.testing.assert_close(state.next, state.proposal + 0.01)


def test_velocities_and_noise_are_two_words_for_one_prediction():
    x0, eps = torch.randn(2, 3), torch.randn(2, 3)
    for schedule, t in ((VariancePreserving.from_betas(1e-4, 0.02, 1000), 400), (Flow(), 400.0)):
        alpha, sigma = schedule.level(t)
        x = alpha * x0 + sigma * eps
        velocity = eps - x0 if isinstance(schedule, Flow) else alpha * eps - sigma * x0
        torch.testing.assert_close(schedule.velocity_to_eps(x, t, velocity), eps)
        torch.testing.assert_close(schedule.eps_to_x0(x, t, eps), x0, rtol=1e-4, atol=1e-4)
        if isinstance(schedule, Flow):
            torch.testing.assert_close(schedule.velocity_to_x0(x, t, velocity), x0)


def test_schedules_from_a_scheduler_s_config():
    from diffusers import DDPMScheduler, PNDMScheduler

    for scheduler in (
        DDPMScheduler(beta_start=1e-4, beta_end=0.02),
        PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        DDPMScheduler(trained_betas=[0.1, 0.2, 0.3]),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    ):
        mine = VariancePreserving.from_config(scheduler.config)
        torch.testing.assert_close(mine.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
        alpha, sigma = mine.level(2)
        assert alpha**2 + sigma**2 == pytest.approx(1) and alpha == pytest.approx(math.sqrt(mine.alphas_cumprod[2]))
    with pytest.raises(DapError, match="sigmoid"):
        VariancePreserving.from_config(DDPMScheduler(beta_schedule="sigmoid").config)
    with pytest.raises(DapError, match="zero terminal"):
        VariancePreserving.from_config(DDPMScheduler(rescale_betas_zero_snr=True).config)


@pytest.mark.parametrize(
    ("solver", "steps", "eta", "words"),
    [
        ("dmp++2m", 10, None, "Did you mean 'dpm\\+\\+2m'"),
        ("ddpm", 1, None, "between 2 and 1000"),
        ("ddpm", 1001, None, "between 2 and 1000"),
        ("ddpm", 10, 0.5, "eta belongs to the solver 'ddim'"),
        ("ddim", 10, 1.5, "between 0 and 1"),
    ],
)
def test_mistakes_are_told_before_the_first_step(solver, steps, eta, words):
    with pytest.raises(DapError, match=words):
        run(gaussian(), steps=steps, solver=solver, eta=eta)


def test_a_flow_has_its_own_solver():
    with pytest.raises(DapError, match="no meaning for .*: its first x_t is pure noise"):
        run(gaussian(Flow()), Push(0.1), steps=5, push_into="eps")
    with pytest.raises(DapError, match="is a flow; its solvers are 'ddim'"):
        run(gaussian(Flow()), steps=5, solver="unipc")
