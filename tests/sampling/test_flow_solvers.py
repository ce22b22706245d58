"""Heun's method and Euler–Maruyama against loops written from the papers of SiT, REPA and EDM, and a push under them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dap.backbones import ClassifierFree, Flow, Mixture
from dap.backbones.schedules import Interpolant
from dap.base.errors import DapError
from dap.base.seeding import generators, normal
from dap.guidance import Guidance
from dap.sampling import Batch, Start, latents, sample
from dap.solvers import make

MU = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 1, 1, 2, 2)
BATCH = Batch.of(("0",), [0, 0, 0], [0, 1, 2], 3)
PATHS = ("linear", "gvp", "vp")


def gaussian(schedule=None):
    return Mixture(MU, std=0.5, schedule=schedule)


def run(backbone, guidance=None, batch=BATCH, **options):
    return latents(ClassifierFree(backbone, 1.0), guidance, batch, **options)


def start():
    return normal((1, 2, 2), generators(BATCH.seeds), torch.empty(0)).double()


def velocity(x, tau, path="linear"):
    """dx/dτ of N(MU, 0.25) on a path: alpha' E[x_0 | x] + sigma' E[eps | x], with slopes by finite differences."""
    schedule = Interpolant(path=path)
    alpha, sigma = schedule.level(1000 * tau)
    h = 1e-6
    below, above = max(tau - h, 0.0), min(tau + h, 1.0)
    both = schedule.level(1000 * below), schedule.level(1000 * above)
    slopes = [(b - a) / (above - below) for a, b in zip(*both, strict=True)]
    x0 = MU[0] + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * MU[0])
    eps = sigma / (alpha**2 * 0.25 + sigma**2) * (x - alpha * MU[0])
    return slopes[0] * x0 + slopes[1] * eps


class Push(Guidance):
    """A constant push, which counts how often it is asked."""

    def __init__(self, size):
        self.size, self.asked = size, []

    def __call__(self, state):
        self.asked.append(state.index)
        return torch.full_like(state.proposal, self.size)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shift", [1.0, 10 / 3])
def test_heun_on_a_flow_is_the_loop_of_repa(path, shift):
    """Each interval averages the velocities at its two ends; the last takes one. Nine passes are five intervals."""
    x, n = start(), 5
    grid = [shift * (1 - i / n) / (1 + (shift - 1) * (1 - i / n)) for i in range(n + 1)]
    for i, (now, after) in enumerate(pairwise(grid)):
        first = velocity(x, now, path)
        there = x + (after - now) * first
        x = there if i == n - 1 else x + (after - now) * (first + velocity(there, after, path)) / 2
    made = run(gaussian(Interpolant(shift=shift, path=path)), steps=9, solver="heun")
    torch.testing.assert_close(made.double(), x, rtol=1e-3, atol=2e-3)


def test_heun_on_betas_is_the_loop_of_edm():
    """In x/alpha the ODE by sigma/alpha has the noise as its slope."""
    backbone, steps = gaussian(), 8
    times = [round(1000 - i * 1000 / 5) - 1 for i in range(5)]
    levels = [*map(backbone.schedule.level, times), (1.0, 0.0)]
    x, told = start(), torch.zeros(3, dtype=torch.long)

    def eps(x, i):
        return backbone.predict(x.float(), times[i], told).eps.double()

    for i, ((alpha, sigma), (after, left)) in enumerate(pairwise(levels)):
        length, slope = left / after - sigma / alpha, eps(x, i)
        there = after * (x / alpha + length * slope)
        # Eight passes: the first and the last interval take one.
        twice = 0 < i < 4
        x = after * (x / alpha + length * (slope + eps(there, i + 1)) / 2) if twice else there
    torch.testing.assert_close(run(backbone, steps=steps, solver="heun").double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "schedule", [Flow(), Flow(shift=3.0), *(Interpolant(path=path) for path in PATHS), None], ids=str
)
def test_heun_needs_fewer_passes_than_ddim(schedule):
    """Its error falls with the square of the number of intervals, so with as many passes it is smaller."""
    exact = run(gaussian(schedule), steps=401, solver="heun")
    errors = {
        (solver, steps): (run(gaussian(schedule), steps=steps, solver=solver) - exact).abs().max().item()
        for solver, steps in (("heun", 21), ("heun", 41), ("ddim", 41))
    }
    assert errors["heun", 41] < 0.5 * errors["heun", 21]
    assert errors["heun", 41] < errors["ddim", 41]


@pytest.mark.parametrize("path", PATHS)
def test_the_sde_is_the_loop_of_repa(path):
    """w(τ) = 2 sigma: the drift is v − w/2 · score with score = −eps / sigma; the last step, from 0.04, has no noise."""
    n, gens = 7, generators(BATCH.seeds)
    x = normal((1, 2, 2), gens, torch.empty(0)).double()
    grid = [*torch.linspace(1, 0.04, n, dtype=torch.float64).tolist(), 0.0]
    for i, (now, after) in enumerate(pairwise(grid)):
        alpha, sigma = Interpolant(path=path).level(1000 * now)
        score = -(x - alpha * MU[0]) / (alpha**2 * 0.25 + sigma**2)
        w = 2 * sigma
        mean = x + (after - now) * (velocity(x, now, path) - w / 2 * score)
        noise = 0 if i == n - 1 else normal((1, 2, 2), gens, torch.empty(0)).double()
        x = mean + math.sqrt(w * (now - after)) * noise
    made = run(gaussian(Interpolant(path=path)), steps=n, solver="sde")
    torch.testing.assert_close(made.double(), x, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("solver", ["heun", "sde", "ddim"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_the_data_distribution(solver, path):
    n = 600
    batch = Batch.of(("0",), [0] * n, range(n), 0)
    made = run(gaussian(Interpolant(path=path)), batch=batch, steps=100, solver=solver).flatten(1)
    assert (made.mean(0) - MU.flatten()).abs().max() < 0.1
    assert made.std(0).mean().item() == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("schedule", [Flow(), None], ids=["flow", "betas"])
@pytest.mark.parametrize(("steps", "asked"), [(7, [0, 2, 4, 6]), (6, [0, 1, 3, 5])])
def test_heun_asks_a_guidance_once_an_interval_and_keeps_its_push(schedule, steps, asked):
    push = Push(0.1)
    states = list(sample(ClassifierFree(gaussian(schedule), 1.0), push, BATCH, steps=steps, solver="heun"))
    assert push.asked == asked
    for state in states:
        moved = 0.1 if state.index in asked else 0.0
        torch.testing.assert_close(state.next - state.proposal, torch.full_like(state.x, moved))
    if schedule is not None:  # betas have so long intervals here that the slope answers a push with more than its size
        # The second pass of the last such interval only corrects the slope: what the push moved stays moved.
        calm = list(sample(ClassifierFree(gaussian(schedule), 1.0), None, BATCH, steps=steps, solver="heun"))
        assert (states[-2].next - calm[-2].next).min() > 0.05


def test_heun_begins_in_the_middle_of_an_interval():
    """A run that begins at a second pass has nothing to correct, so it leaves x where it is."""
    backbone, x = gaussian(Flow()), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    states = list(
        sample(ClassifierFree(backbone, 1.0), None, BATCH, steps=7, solver="heun", start=Start(x, 3, noised=True))
    )
    assert torch.equal(states[0].next, x) and len(states) == 4
    other = list(
        sample(ClassifierFree(backbone, 1.0), None, BATCH, steps=7, solver="heun", start=Start(x, 4, noised=True))
    )
    assert torch.equal(states[-1].next, other[-1].next)


def test_a_preview_leaves_the_history_alone():
    backbone, gens = gaussian(Flow()), generators([0, 1, 2])
    solver, x = make(backbone, "heun", 7), start().float()
    told = torch.zeros(3, dtype=torch.long)
    for index in range(4):
        said = backbone.predict(x, solver.timesteps[index], told)
        twice = [solver.preview(index, x, said.eps, said.x0, None, gens) for _ in range(2)]
        x = solver.step(index, x, said.eps, said.x0, None, gens)
        assert torch.equal(twice[0], twice[1]) and torch.equal(twice[0], x)


@pytest.mark.parametrize("solver", ["heun", "sde"])
def test_per_eps_is_the_derivative_of_a_step_on_a_flow(solver):
    backbone = gaussian(Interpolant(path="gvp"))
    x, made = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), []
    for more in (0.0, 1.0):
        solved = make(backbone, solver, 10)
        eps = torch.full_like(x, more)
        x0 = backbone.schedule.eps_to_x0(x, solved.timesteps[1], eps)
        made.append(solved.step(1, x, eps, x0, None, generators([0, 1, 2])))
    assert solved.per_eps(1) == pytest.approx((made[1] - made[0]).mean().item(), rel=1e-3)


def scheduler_of(shift):
    """diffusers' DPM-Solver++ for flows, as the folder of a Sana has it."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", final_sigmas_type="zero"
    )


@pytest.mark.parametrize(("schedule", "shift"), [(Flow(), 1.0), (Flow(1000, 3.0), 3.0), (Interpolant(1000, 2.0), 2.0)])
@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_solver_on_a_flow_is_diffusers_loop(schedule, shift, steps):
    backbone, scheduler, x = gaussian(schedule), scheduler_of(shift), start().float()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        said = backbone.predict(x, int(t), torch.zeros(3, dtype=torch.long))
        x = scheduler.step(said.eps - said.x0, t, x).prev_sample
    torch.testing.assert_close(run(backbone, steps=steps, solver="dpm++2m"), x, rtol=1e-5, atol=1e-5)


def test_dpm_solver_begins_at_its_step_where_two_steps_have_one_whole_time():
    """diffusers finds the first step by its time, and takes the second of two that are the same."""
    backbone = gaussian(Flow(1000, 10.0))
    solver = make(backbone, "dpm++2m", 200)
    assert solver.timesteps[0] == solver.timesteps[1], "two steps of this run have the same time"
    x0, eps, (alpha, sigma), (after, left) = torch.ones(3, 1, 2, 2), start().float(), *solver.levels[:2]
    made = solver.step(0, alpha * x0 + sigma * eps, eps, x0, None, generators([0, 1, 2]))
    torch.testing.assert_close(made, after * x0 + left * eps, rtol=1e-5, atol=1e-6)
    assert sigma - left > 1e-4, "the step between would be seen"


def test_dpm_solver_reaches_the_data_distribution_of_a_flow():
    n = 600
    made = run(gaussian(Flow()), batch=Batch.of(("0",), [0] * n, range(n), 0), steps=50, solver="dpm++2m").flatten(1)
    assert (made.mean(0) - MU.flatten()).abs().max() < 0.1
    assert made.std(0).mean().item() == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_push_under_dpm_solver_on_a_flow_moves_a_first_order_step_by_its_size(at):
    """The step is x_s = A x + c x_0 with the weight of x_0 that DPM-Solver++ has, also where nearly all is noise."""
    backbone = gaussian(Flow(1000, 3.0))
    x, solver = start().float(), make(backbone, "dpm++2m", 10)
    (alpha, sigma), (after, left) = solver.levels[at], solver.levels[at + 1]
    eps, x0 = torch.zeros_like(x), x / alpha
    more = 0.1 / solver.per_eps(at)
    gens = generators([0, 1, 2])
    calm = make(backbone, "dpm++2m", 10).step(at, x, eps, x0, None, gens)
    moved = make(backbone, "dpm++2m", 10).step(at, x, eps + more, x0 - sigma / alpha * more, None, gens)
    torch.testing.assert_close(moved - calm, torch.full_like(x, 0.1), rtol=1e-3, atol=1e-3)
    assert solver.per_eps(at) == pytest.approx(left - after * sigma / alpha)
    # In a whole run the push is among the earlier predictions that a second-order step looks at.
    states = list(sample(ClassifierFree(backbone, 1.0), Push(0.1), BATCH, steps=10, solver="dpm++2m"))
    assert ((states[at].next - states[at].proposal) > 0.09).all()


def test_what_does_not_go_together_is_said():
    with pytest.raises(DapError, match="'sde' is for flows"):
        make(gaussian(), "sde", 10)
    with pytest.raises(
        DapError, match="its solvers are 'ddim' \\(with eta\\), 'heun', 'sde' and 'dpm\\+\\+2m', not 'ddpm'"
    ):
        make(gaussian(Flow()), "ddpm", 10)
    with pytest.raises(DapError, match="'dpm\\+\\+2m' takes straight paths"):
        make(gaussian(Interpolant(path="vp")), "dpm++2m", 10)
    with pytest.raises(DapError, match="not for the solver 'heun', which takes each step twice"):
        run(gaussian(), Push(0.1), steps=5, solver="heun", push_into="eps")
