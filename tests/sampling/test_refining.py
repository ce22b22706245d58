"""Energies of a set and the refinement: against sums written out, in chunks and whole, and what the prior leaves alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dap import refining
from dap.backbones import Mixture
from dap.base.errors import DapError
from dap.data.moments import Moment, Moments
from dap.guidance import Descend, MeanMatching, SquaredMMD, State
from dap.kernels import Linear, parse
from dap.refining import Descent, denoising_error, refine, time_of
from dap.sampling import Batch

KERNELS = ["linear", "rbf(bandwidth=2)", "laplacian(bandwidth=2)", "cosine", "polynomial", "linear + rbf(bandwidth=1)"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(features, labels):
    n = len(features)
    x = torch.zeros(n, 1, 2, 2)
    return State(x, x, x, x, features, 10, 0, 1, 1.0, 0.1, torch.tensor(labels), torch.arange(n))


@dataclass(frozen=True)
class Reals:
    """Real features that are simply there."""

    features: dict[int, torch.Tensor]
    layer: str = "x"
    branch: str = "cond"

    def begin(self, labels): ...

    def at(self, label, t):
        return self.features[label]

    def shares(self, label):
        return None

    def transform(self, features):
        return features.flatten(1)


@dataclass(frozen=True)
class Known:
    """Moments that are simply there."""

    moments: dict[int, Moment]

    def begin(self, labels): ...

    def at(self, label, t, layer):
        return self.moments[label]


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


def test_mean_matching_is_the_mmd_of_the_linear_kernel_where_every_spread_is_one():
    """MeanMatching times the number of features = SquaredMMD + the term of the real images."""
    real, mine = random(9, 12, seed=1), random(4, 4, 3)
    known = Known({0: Moment(real.mean(0).view(4, 3), torch.ones(3))})
    matched = MeanMatching(known, "x")(state(mine, [0] * 4)).sum() * 12
    mmd = SquaredMMD(Reals({0: real}), Linear())(state(mine, [0] * 4)).sum()
    torch.testing.assert_close(matched, mmd + (real @ real.T).mean(), rtol=1e-5, atol=1e-5)


def test_a_channel_counts_by_its_spread():
    """A channel a thousand times as large as the others, as in large transformers, weighs no more than they do."""
    mine, scale = random(5, 4, 3), torch.tensor([1.0, 1000.0, 1.0])
    plain = MeanMatching(Known({0: Moment(torch.zeros(4, 3), torch.ones(3))}), "x")(state(mine, [0] * 5))
    scaled = MeanMatching(Known({0: Moment(torch.zeros(4, 3), scale)}), "x")(state(mine * scale, [0] * 5))
    torch.testing.assert_close(plain, scaled)


def test_moments_are_those_of_the_noised_real_images(source, backbone, tmp_path):
    moments = Moments(source, backbone, ["0", "1"], reals=5, seed=3, cache=tmp_path)
    latents = moments.latents(1)
    assert len(latents) == 5
    found = moments.at(1, 40, "1")
    again = Moments(source, backbone, ["0", "1"], reals=5, seed=3, cache=tmp_path)
    again.latents = None  # what is in the cache is not computed again
    assert torch.equal(again.at(1, 40, "1").mean, found.mean) and torch.equal(again.at(1, 40, "1").std, found.std)
    seeds = [moments._seed_of(1, "noise", 40, i) for i in range(5)]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
    alpha, sigma = backbone.schedule.level(40)
    features = backbone.tap(alpha * latents + sigma * noise, 40, backbone.condition([source.class_names[1]] * 5), "1")
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.std, features.flatten(0, 1).std(0, correction=0), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def mixture():
    """Two classes of two modes each, in latents of two channels."""
    return Mixture(random(2, 2, 2, 2, 2, seed=5), std=0.3, class_names=("a", "b"))


def energies(mixture, shift=1.0):
    known = {label: Moment(torch.full((1, 8), shift), torch.ones(8)) for label in (0, 1)}
    return [MeanMatching(Known(known), "x0")]


def batch(n, label=0):
    return Batch.of(("a", "b"), [label] * n, range(n), 0)


def test_chunks_give_the_gradient_of_the_whole(mixture, monkeypatch):
    """13 images in chunks of 4, with an energy that ties all of them."""
    z = random(13, 2, 2, 2)
    descent = Descent(4, 0.1, (0.05, 0.3), prior=0.0)
    monkeypatch.setattr(refining, "CHUNK", 64)
    whole = refine(mixture, energies(mixture), batch(13), z, descent)
    monkeypatch.setattr(refining, "CHUNK", 4)
    parts = refine(mixture, energies(mixture), batch(13), z, descent)
    assert (whole - z).abs().max() > 0.05
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_the_energy_of_the_set_falls(mixture):
    """Half of its square distance or more, at the noise levels of the refinement."""
    z, own = random(6, 2, 2, 2), energies(mixture, shift=0.0)

    def at(z):
        features = mixture.features(z, 20, mixture.condition(["a"] * 6), ["x0"])["x0"]
        return own[0](state(features, [0] * 6)).sum().item()

    after = refine(mixture, own, batch(6), z, Descent(60, 0.1, (0.02, 0.05), prior=0.0))
    assert at(after) < 0.5 * at(z)


def test_the_same_seeds_give_the_same_bytes(mixture):
    z, descent = random(3, 2, 2, 2), Descent(3)
    first, second = (refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 0.1) for _ in "ab")
    assert torch.equal(first, second)


def test_the_prior_leaves_alone_what_the_backbone_finds_usual(mixture):
    z, descent = random(3, 2, 2, 2), Descent(5, 0.1)
    without = refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 1e9)
    pulled = refine(mixture, energies(mixture), batch(3), z, descent, usual=lambda label, t: 0.0)
    weak = refine(mixture, energies(mixture), batch(3), z, Descent(5, 0.1, prior=1e-9), usual=lambda label, t: 0.0)
    torch.testing.assert_close(without, weak, rtol=1e-4, atol=1e-5)
    assert (without - pulled).abs().max() > 1e-3


def test_the_prior_lowers_the_error_of_denoising(mixture):
    """From latents far from the modes, with an energy that is flat, so that the prior acts alone."""
    z = 3 * random(4, 2, 2, 2)

    @dataclass(frozen=True)
    class Tiny(MeanMatching):
        """A thousandth of the energy: the prior is as long as its gradient, and Adam does not see the size."""

    own = [Tiny(energies(mixture)[0].moments, "x0")]
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
        refine(mixture, [Deep(energies(mixture)[0].moments, "x0")], batch(2), z, Descent(1))
    with pytest.raises(DapError, match="no layer 'y' to tap"):
        refine(mixture, [MeanMatching(energies(mixture)[0].moments, "y")], batch(2), z, Descent(1))
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
