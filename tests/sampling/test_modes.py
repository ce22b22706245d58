"""The pushes of MGD3 and ManifoldGD: by hand, on the exact mixture, and against the whole chain written anew in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from chain import chain
from dap.backbones import ClassifierFree, Mixture
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.guidance import Descend, Deviation, Guidance, Manifold, Modes, State, Sum, Window
from dap.guidance.manifold import normal_to_plane
from dap.guidance.modes import Centres
from dap.sampling import Batch, latents, sample
from dap.solvers import SOLVERS as ALL
from dap.testing import check_guidance

SOLVERS = [solver for solver in ALL if solver != "sde"]
"""Those of schedules with betas."""

SHAPE = (3, 4, 4)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Given:
    """Modes that are given, (classes, slots, C, h, w)."""

    def __init__(self, modes):
        self.modes, self.begun = modes, []

    def begin(self, labels):
        self.begun.append(list(labels))

    def of(self, label):
        return self.modes[label]

    def seed(self, label, *purpose):
        return seed_of(0, "abc"[label], *purpose)


def state(**changed):
    x = draw(2, *SHAPE, seed=1)
    at = State(
        x=x, proposal=0.9 * x, x0_hat=draw(2, *SHAPE, seed=2), eps=x, features=None, t=500, index=2, steps=50,
        alpha=0.6, sigma=0.8, labels=torch.tensor([1, 0]), slots=torch.tensor([2, 0]), step_std=0.3,
    )  # fmt: skip
    return replace(at, **changed)


@pytest.fixture(scope="module")
def given():
    return Given(draw(2, 3, *SHAPE, seed=3))


@pytest.fixture(scope="module")
def mixture():
    """Two classes of two modes each, far apart beside their spread, and a slot for every mode."""
    return Mixture(4 * draw(2, 2, *SHAPE, seed=4), std=0.3)


# ---- MGD3


def test_the_push_is_towards_the_slot_s_mode_in_units_of_the_step_s_noise(given):
    assert isinstance(given, Centres)
    std = draw(2, *SHAPE, seed=5).abs()
    for step_std in (0.3, std):
        at = state(step_std=step_std)
        push = Modes(given, 0.1)(at)
        for row, (label, slot) in enumerate([(1, 2), (0, 0)]):
            sigma = step_std if isinstance(step_std, float) else step_std[row]
            torch.testing.assert_close(push[row], 0.1 * sigma * (given.modes[label, slot] - at.x0_hat[row]))


def test_the_chain_equals_mgd3_written_anew_in_float64(backbone):
    """50 respaced steps with a learned variance and guidance on 3 of 4 channels: while the respaced step is above 25 of
    49 … 0 the mean of the reverse step moves by lambda exp(log variance / 2) (mode − x0_hat)."""
    cfg, scale, stop_t = 3.0, 0.05, 25
    modes = draw(3, 2, *backbone.latent_shape, seed=6)
    batch = Batch.of(("red", "blue"), [0, 1], [1, 0], 7)
    guidance = Window(Modes(Given(modes), scale), stop=0.48)
    made = latents(ClassifierFree(backbone, cfg, 3), guidance, batch, steps=50)
    towards = torch.stack([modes[0, 1], modes[1, 0]]).double()

    def push(i, sigma, x0):
        return -scale * sigma * (x0 - towards) if i > stop_t else 0

    x = chain(backbone, batch, cfg, 50, push)
    plain = latents(ClassifierFree(backbone, cfg, 3), None, batch, steps=50)
    assert (made - plain).abs().amax() > 0.1
    torch.testing.assert_close(made.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", None), ("ddim", 0.0), ("ddim", 1.0)])
def test_on_the_mixture_each_state_moves_by_the_equation_and_then_no_more(mixture, solver, eta):
    """sigma_t is that of q(x_s | x_t, x_0) also where the solver draws no noise."""
    given = Given(mixture.means)
    batch = Batch.of(("0", "1"), [1, 0], [0, 1], 0)
    run = {"steps": 10, "solver": solver, "eta": eta}
    states = list(sample(ClassifierFree(mixture, 1.0), Window(Modes(given, 0.5), stop=0.5), batch, **run))
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    for now, after in pairwise(states[:6]):
        a, b = abar[now.t].item(), abar[after.t].item()
        sigma = math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        wanted = -0.5 * sigma * (now.x0_hat - torch.stack([mixture.means[1, 0], mixture.means[0, 1]]))
        torch.testing.assert_close(now.next - now.proposal, wanted, rtol=1e-3, atol=1e-4)
        assert torch.equal(after.x, now.next)
    assert all(torch.equal(at.next, at.proposal) for at in states[5:]), "it stops, and the rest is free"
    assert given.begun == [[0, 1]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_slot_ends_at_its_own_mode(mixture, solver):
    """Of unguided samples about half do; in every order and company of the batch the guided ones do."""
    where = [(label, slot) for label in (0, 1) for slot in (0, 1)] * 4
    batch = Batch(("0", "1"), *zip(*where, strict=True), tuple(range(len(where))))
    own = torch.stack([mixture.means[label, slot] for label, slot in where])
    other = torch.stack([mixture.means[label, 1 - slot] for label, slot in where])

    def at_home(guidance):
        made = latents(ClassifierFree(mixture, 1.0), guidance, batch, steps=15, solver=solver)
        return ((made - own).flatten(1).norm(dim=1) < (made - other).flatten(1).norm(dim=1)).float().mean().item()

    assert at_home(None) < 0.9
    assert at_home(Window(Modes(Given(mixture.means), 0.5), stop=0.48)) == 1


# ---- ManifoldGD


def test_the_way_to_the_plane_is_that_of_the_whole_covariance():
    """Against the eigenvectors of the D x D covariance with the released code's ridge; on the plane there is no way."""
    points, x = draw(12, 20, seed=8, dtype=torch.float64) * torch.linspace(3, 0.1, 20), draw(20, seed=9)
    mean = points.mean(0)
    covariance = (points - mean).T @ (points - mean) / 11 + 1e-5 * torch.eye(20)
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -3:]
    projector = torch.eye(20) - directions @ directions.T
    way = normal_to_plane(x.double(), points, 3)
    torch.testing.assert_close(way, -projector @ (x.double() - mean))
    assert normal_to_plane(x + way, points, 3).norm() < 1e-9 * way.norm()
    assert (directions.T @ way).norm() < 1e-9 * way.norm()


def test_the_cloud_lies_around_the_mode_at_the_level_of_x(given):
    manifold, mode = Manifold(given, radius=0.4, points=301), given.modes[0, 0].flatten()

    def cloud(**level):
        return manifold.cloud(mode, state(index=25, **level), torch.Generator().manual_seed(0))

    clean, noised = cloud(alpha=1.0, sigma=0.0), cloud(alpha=0.6, sigma=0.8)
    radii = (clean - mode).norm(dim=1)
    torch.testing.assert_close(radii[:150], torch.linspace(0.1, 0.4, 150), rtol=1e-3, atol=1e-5)
    assert radii[150:].max() <= 0.4 + 1e-5 and radii[150:].min() < 0.05
    noise = (noised - 0.6 * clean) / 0.8
    assert noise.mean().abs() < 0.05 and noise.std().item() == pytest.approx(1, abs=0.03)
    assert (clean - mode).mean(0).norm() < 0.05, "in all directions"


def test_the_radius_shrinks_over_five_of_fifty_steps(given):
    manifold = Manifold(given, radius=0.05)
    found = [manifold.radius_at(index / 50) for index in range(50)]
    wanted = [0.05 * (1 + (math.exp(1 - i / 5) - 1) / (math.e - 1)) for i in range(5)] + [0.05] * 45
    assert found == pytest.approx(wanted)
    assert Manifold(given, warm=0).radius_at(0.0) == pytest.approx(0.1)


@pytest.mark.parametrize("far", [0.0, 3.0])
def test_the_push_is_a_step_of_the_asked_length_straight_to_the_plane(given, far):
    """Of an x_t near a point of its cloud a part of the length, of one far away the whole."""
    manifold = Manifold(given, 0.1, bandwidth=1.5, tangent=2, neighbours=5, points=40)
    at = state()
    clouds = [
        manifold.cloud(given.modes[label, slot].flatten(), at, torch.Generator().manual_seed(seed))
        for label, slot, seed in ((1, 2, seed_of(0, "b", 2, "cloud", 2)), (0, 0, seed_of(0, "a", 0, "cloud", 2)))
    ]
    x = torch.stack([(cloud[7] + 0.1).view(SHAPE) for cloud in clouds]) + far
    push = manifold(replace(at, x=x))
    for row, cloud in enumerate(clouds):
        flat = x[row].flatten()
        distance = (cloud - flat).square().sum(1).sqrt()
        near = cloud[distance.argsort()[:5]]
        mean = near.mean(0)
        vectors = torch.linalg.eigh((near - mean).T.double() @ (near - mean).double()).eigenvectors[:, -2:].float()
        away = flat - mean
        normal = away - vectors @ (vectors.T @ away)
        wanted = -0.1 * math.tanh(distance.min().item() / 1.5) * normal / normal.norm()
        torch.testing.assert_close(push[row].flatten(), wanted, rtol=1e-3, atol=1e-5)
    lengths = push.flatten(1).norm(dim=1)
    assert (lengths > 0.0999).all() if far else (lengths < 0.06).all()


def test_manifolds_depend_on_the_class_s_name_and_the_slot_alone(given):
    """Not on what shares the batch: the same row in another batch is pushed by the same bits."""
    manifold, at = Manifold(given), state()
    push = manifold(at)
    rows = {name: getattr(at, name)[1:] for name in ("x", "proposal", "x0_hat", "eps", "labels", "slots")}
    one = replace(at, **rows)
    assert torch.equal(manifold(one), push[1:])
    assert not torch.equal(manifold(replace(one, index=3)), push[1:]), "every step has a cloud of its own"


# ---- both


@pytest.mark.parametrize("guidance", [Modes, Manifold])
def test_neutral_settings_are_the_vanilla_sample_bit_for_bit(mixture, guidance):
    model, batch = ClassifierFree(mixture, 1.0), Batch.of(("0", "1"), [0, 1], [0, 1], 0)
    for solver in SOLVERS:
        run = {"steps": 4, "solver": solver}
        plain, given = latents(model, None, batch, **run), Given(mixture.means)
        off = guidance(given, 0.0)
        for neutral in (off, 0.0 * guidance(given), Window(guidance(given), 0.5, 0.5), Window(off, 0, 0.5)):
            assert torch.equal(latents(model, neutral, batch, **run), plain)
        begun = len(given.begun)
        latents(model, off, batch, **run)
        assert len(given.begun) == begun, "at scale 0 nobody looks for modes"
        assert not torch.equal(latents(model, guidance(given), batch, **run), plain)


def test_pushes_of_papers_add_up_each_in_its_window(mixture):
    """MGD3 and a plane in the first half, IGD's deviation later: at every state the sum of those that are at work."""
    given, apart = Given(mixture.means), Deviation(of="denoiser")
    parts = (Window(Modes(given, 0.3), stop=0.5), Window(Manifold(given), stop=0.25))
    both = parts[0] + parts[1] + Window(Descend(apart, 5.0), start=0.25)
    assert both.sequential and both.grad_through == "denoiser"
    model = ClassifierFree(mixture, 1.0)
    for slot in (0, 1):
        batch = Batch.of(("0", "1"), [1], [slot], 0)
        for at in sample(model, both, batch, steps=8):
            wanted = sum((part(at) for part in parts if part.active(at.index, 8)), torch.zeros_like(at.x))
            if at.index >= 2 and slot == 1:
                (late,) = sample_again(model, apart, at, batch)
                wanted = wanted + late
            torch.testing.assert_close(at.next - at.proposal, wanted, rtol=1e-3, atol=1e-5)


def sample_again(model, energy, at, batch):
    """The push of a descent at a state whose graph is gone."""
    x = at.x.clone().requires_grad_()
    condition = model.backbone.condition([batch.class_names[label] for label in batch.labels])
    with torch.enable_grad():
        prediction = model.predict(x, at.t, condition, grad_through="denoiser")
        return [Descend(energy, 5.0)(replace(at, x=x, x0_hat=prediction.x0, eps=prediction.eps))]


@pytest.mark.parametrize("build", [Modes, Manifold, lambda centres: Sum((Modes(centres), Manifold(centres)))])
def test_they_keep_the_contract(given, build):
    guidance: Guidance = build(given)
    findings = check_guidance(guidance)
    assert [f.level for f in findings] == ["ok"] * len(findings), "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda g: Modes(g, -0.1), "scale"),
        (lambda g: Modes(g, math.nan), "scale"),
        (lambda g: Manifold(g, math.inf), "scale"),
        (lambda g: Manifold(g, radius=0), "radius > 0"),
        (lambda g: Manifold(g, bandwidth=0), "bandwidth > 0"),
        (lambda g: Manifold(g, widening=0.5), "widening >= 1"),
        (lambda g: Manifold(g, tangent=12), "cannot be fitted"),
        (lambda g: Manifold(g, points=11), "cannot be fitted"),
    ],
)
def test_mistakes_are_told(given, build, words):
    with pytest.raises(DapError, match=words):
        build(given)
