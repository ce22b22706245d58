"""Energies of a set and the refinement: against sums written out, in chunks and whole, and what the prior leaves alone."""

from __future__ import annotations

import pytest
import torch

from dap.backbones import Mixture
from dap.base.errors import DapError
from dap.guidance import Descend, MeanMatching, Representative, SquaredMMD
from dap.kernels import Linear, parse
from dap.refining import Descent, denoising_error, refine, time_of
from dap.refining import seen as seeing
from dap.sampling import Batch
from energies import Reals, random, state

KERNELS = ["linear", "rbf(bandwidth=2)", "laplacian(bandwidth=2)", "cosine", "polynomial", "linear + rbf(bandwidth=1)"]


@pytest.mark.parametrize("expression", KERNELS)
def test_the_energy_of_a_class_is_its_squared_mmd_with_an_exact_gradient(expression):
    """Against the double sums written out, up to the term of the real images, for two classes in one batch."""
    kernel = parse(expression)
    reals = {0: random(6, 12, seed=1).double(), 3: 2 + random(5, 12, seed=2).double()}
    mine = random(7, 4, 3).double().requires_grad_(True)
    labels = [0, 3, 0, 0, 3, 3, 3]
    energy = SquaredMMD(Reals(reals), kernel)(state(mine, labels))

    def k(a, b):
        return kernel(a[None], b[None])[0, 0]

    for label, rows in ((0, [0, 2, 3]), (3, [1, 4, 5, 6])):
        flat, real = mine.flatten(1), reals[label]
        own = sum(k(flat[i], flat[j]) for i in rows for j in rows) / len(rows) ** 2
        cross = sum(k(flat[i], r) for i in rows for r in real) / (len(rows) * len(real))
        torch.testing.assert_close(energy[rows].sum(), own - 2 * cross, rtol=1e-5, atol=1e-6)
        (wanted,) = torch.autograd.grad(own - 2 * cross, mine, retain_graph=True)
        (found,) = torch.autograd.grad(energy[rows].sum(), mine, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_mean_matching_is_the_mmd_of_the_linear_kernel():
    """MeanMatching times the number of features = SquaredMMD + the term of the real images."""
    real, mine = random(9, 12, seed=1), random(4, 4, 3)
    reals = Reals({0: real})
    matched = MeanMatching(reals)(state(mine, [0] * 4)).sum() * 12
    mmd = SquaredMMD(reals, Linear())(state(mine, [0] * 4)).sum()
    torch.testing.assert_close(matched, mmd + (real @ real.T).mean(), rtol=1e-5, atol=1e-5)


def test_the_paper_s_distance_with_repulsion_one_is_the_energy_distance_of_the_set():
    """Its gradient is n/2 times that of 2 E||S − R|| − E||S − S'||, with pairs i != i', written out."""
    real, mine = random(9, 12, seed=1), random(4, 4, 3).requires_grad_(True)
    own = Representative(Reals({0: real}), Linear(), repulsion=1.0)(state(mine, [0] * 4)).sum()
    flat = mine.flatten(1)
    cross = torch.stack([(a - b).norm() for a in flat for b in real]).mean()
    within = torch.stack([(flat[i] - flat[j]).norm() for i in range(4) for j in range(4) if i != j]).mean()
    (found,), (wanted,) = (torch.autograd.grad(e, mine) for e in (own, 2 * cross - within))
    torch.testing.assert_close(found, 4 / 2 * wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def mixture():
    """Two classes of two modes each, in latents of two channels."""
    return Mixture(random(2, 2, 2, 2, 2, seed=5), std=0.3, class_names=("a", "b"))


def energies(mixture, shift=1.0):
    """The mean features of both classes are drawn to one number."""
    return [MeanMatching(Reals({label: torch.full((2, 8), shift) for label in (0, 1)}, "x0"))]


def batch(n, label=0):
    return Batch.of(("a", "b"), [label] * n, range(n), 0)


def test_chunks_give_the_gradient_of_the_whole(mixture, monkeypatch):
    """13 images in chunks of 4, with an energy that ties all of them."""
    z = random(13, 2, 2, 2)
    descent = Descent(4, 0.1, (0.05, 0.3), prior=0.0)
    monkeypatch.setattr(seeing, "CHUNK", 64)
    whole = refine(mixture, energies(mixture), batch(13), z, descent)
    monkeypatch.setattr(seeing, "CHUNK", 4)
    parts = refine(mixture, energies(mixture), batch(13), z, descent)
    assert (whole - z).abs().max() > 0.05
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_graphs_that_are_held_save_a_pass_and_change_no_bit(mixture, monkeypatch):
    """13 images in chunks of 4; with no room for graphs the three chunks after the first are passed twice in each step."""
    z, descent, passes = random(13, 2, 2, 2), Descent(3, 0.1, (0.05, 0.3)), list[int]()
    pass_on = mixture.features
    monkeypatch.setattr(mixture, "features", lambda x, *rest: (passes.append(len(x)), pass_on(x, *rest))[1])
    monkeypatch.setattr(seeing, "CHUNK", 4)
    found = []
    for room, of_a_step in ((2**30, 4), (0, 4 + 3)):
        monkeypatch.setattr(seeing, "GRAPH_BYTES", room)
        passes.clear()
        found.append(refine(mixture, energies(mixture), batch(13), z, descent))
        assert len(passes) == 3 * of_a_step
    assert torch.equal(*found)


def test_a_graph_is_measured_without_the_parameters():
    net, x = torch.nn.Linear(50, 7), torch.randn(3, 50, requires_grad=True)
    size, out = seeing.graph_bytes(lambda: net(x).exp(), net.parameters())
    assert size == 3 * 7 * 4 + 3 * 50 * 4 and out.requires_grad


def test_the_energy_of_the_set_falls(mixture):
    """Half of its square distance or more, at the noise levels of the refinement."""
    z, own = random(6, 2, 2, 2), energies(mixture, shift=0.0)

    def at(z):
        features = mixture.features(z, 20, mixture.condition(["a"] * 6), ["x0"])["x0"]
        return own[0](state(features, [0] * 6)).sum().item()

    after = refine(mixture, own, batch(6), z, Descent(60, 0.1, (0.02, 0.05), prior=0.0))
    assert at(after) < 0.5 * at(z)


def test_the_same_seeds_give_the_same_bytes(mixture):
    z, descent = random(3, 2, 2, 2), Descent(3, prior=1.0)
    first, second = (refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 0.1) for _ in "ab")
    assert torch.equal(first, second)


def test_the_prior_leaves_alone_what_the_backbone_finds_usual(mixture):
    z, descent = random(3, 2, 2, 2), Descent(5, 0.1, prior=1.0)
    without = refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 1e9)
    pulled = refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 0.0)
    weak = refine(mixture, energies(mixture), batch(3), z, Descent(5, 0.1, prior=1e-9), usual=lambda label, t: 0.0)
    torch.testing.assert_close(without, weak, rtol=1e-4, atol=1e-5)
    assert (without - pulled).abs().max() > 1e-3


def test_the_prior_lowers_the_error_of_denoising(mixture):
    """From latents far from the modes, with a prior that is ten times as strong as the energy."""
    z = 3 * random(4, 2, 2, 2)

    own = energies(mixture)  # a tenth of the push
    descent = Descent(80, 0.1, prior=10.0, prior_times=(0.2,))
    after = refine(mixture, own, batch(4), z, descent, usual=lambda label, t: 0.0)
    condition, noise = mixture.condition(["a"] * 4), random(4, 2, 2, 2, seed=9)
    t = time_of(mixture.schedule, 0.2)
    before, then = (denoising_error(mixture, part, condition, t, noise).square().mean() for part in (z, after))
    assert then < 0.5 * before


def test_what_cannot_lead_a_refinement_is_said(mixture):
    class Deep(MeanMatching):
        grad_through = "denoiser"

    z = random(2, 2, 2, 2)
    with pytest.raises(DapError, match="the energy Deep cannot lead it"):
        refine(mixture, [Deep(energies(mixture)[0].reals)], batch(2), z, Descent(1))
    with pytest.raises(DapError, match="no layer 'y' to tap"):
        refine(mixture, [MeanMatching(Reals({0: torch.zeros(2, 8)}, "y"))], batch(2), z, Descent(1))
    with pytest.raises(DapError, match="gradient is not finite at step 1 of 2"):
        refine(mixture, energies(mixture), batch(2), z * torch.nan, Descent(2))


def test_an_energy_of_the_set_guides_sampling_too(mixture):
    """It is an `Energy` like any other: its slots are sampled together, and scale 0 is the unguided sample."""
    from dap.backbones import ClassifierFree
    from dap.sampling import latents

    model, own = ClassifierFree(mixture, 1.0), energies(mixture, shift=0.5)[0]
    assert Descend(own, 1.0).joint
    plain = latents(model, None, batch(4), steps=10)
    assert torch.equal(latents(model, Descend(own, 0.0), batch(4), steps=10), plain)
    guided = latents(model, Descend(own, 2.0), batch(4), steps=10)
    assert (guided.mean(0) - 0.5).square().mean() < (plain.mean(0) - 0.5).square().mean()
