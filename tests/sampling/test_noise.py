"""`noise: own` and `noise: common`: against plain loops, on exact features, on flows, and through the methods."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from dap import choices
from dap.backbones import ClassifierFree, Flow, Mixture, from_pipeline
from dap.base.seeding import generators, normal, seed_of
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.memory import MemorySource
from dap.guidance import Descend, MeanMatching, Representative, SquaredMMD, State, reals
from dap.kernels import parse
from dap.recipe import Recipe
from dap.sampling import Batch, latents, sample
from dap.verbs.distill import distill

T, LABELS, SLOTS = 400, [0, 1, 0, 0], [0, 1, 1, 3]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank_of(backbone, source, noise, **options):
    values = {"reals": 8, "clustered": 8, "noise": noise, **options}
    made = FeatureBank(source, backbone, BankOptions(**values), ipc=4, run_seed=1)
    made.begin([0, 1])
    return made


def state_of(backbone, source, bank):
    """A state of four images of two classes, whose prediction is that of the model under classifier-free guidance."""
    x = random(len(LABELS), *backbone.latent_shape, seed=3).requires_grad_()
    condition = backbone.condition([source.class_names[label] for label in LABELS])
    through = {"layer": bank.layer, "grad_through": "features"}
    found = ClassifierFree(backbone, 2.0).predict(x, T, condition, **through)
    alpha, sigma = backbone.schedule.level(T)
    x0 = backbone.schedule.eps_to_x0(x.detach(), T, found.eps)
    labels, slots = torch.tensor(LABELS), torch.tensor(SLOTS)
    return State(x, x.detach(), x0, found.eps, found.features, T, 5, 10, alpha, sigma, labels, slots)


def treated(raw, options, spreads):
    """Pooling and normalisation, written again: raw (tokens, width) to a vector."""
    x = raw.mean(0, keepdim=True) if options.get("pool") == "mean" else raw
    if options.get("normalise") == "channel":
        x = (x - spreads[0]) / spreads[1]
    x = x.flatten()
    return x / x.norm() if options.get("normalise") == "l2" else x


def plain(state, backbone, source, bank, options, repulsion, squared):
    """The energies by one pass for each pair, from the formulas of docs/method.md."""
    energies = []
    for i, (label, slot) in enumerate(zip(LABELS, SLOTS, strict=True)):
        name = source.class_names[label]
        condition = backbone.condition([name])

        def phi(x, condition=condition):
            return backbone.features(x[None], T, condition, [bank.layer])[bank.layer][0]

        z, shares = bank.latents(label), bank.shares(label)
        eta = normal(backbone.latent_shape, generators([seed_of(1, name, "noise", T, 0)]), z)[0]
        everyone = torch.stack([phi(state.alpha * one + state.sigma * eta) for one in z])
        cells = everyone.mean(1, keepdim=True) if options.get("pool") == "mean" else everyone
        spreads = cells.mean(0), cells.flatten(0, 1).std(0, correction=0)
        noise = state.eps[i] if bank.matched == "own" else eta
        # d x0_hat / d x_t = 1 / alpha: eps counts as a constant
        content = (state.x[i] - state.sigma * state.eps[i]) / state.alpha
        mine = treated(phi(state.alpha * content + state.sigma * noise), options, spreads)

        def distance(content, mine=mine, noise=noise, phi=phi, spreads=spreads):
            other = treated(phi(state.alpha * content + state.sigma * noise).detach(), options, spreads)
            return (mine - other).square().sum() if squared else (mine - other).norm()

        weights = torch.full((len(z),), 1 / len(z)) if shares is None else shares[slot]
        energy = sum(w * distance(one) for w, one in zip(weights, z, strict=True) if w > 0)
        mates = [k for k, other in enumerate(LABELS) if other == label and k != i]
        if repulsion and mates:
            energy = energy - repulsion * sum(distance(state.x0_hat[k]) for k in mates) / len(mates)
        energies.append(energy)
    return torch.stack(energies)


CASES = [
    ({}, 0.0, False),
    ({"pool": "mean", "normalise": "l2"}, 0.0, True),
    ({"normalise": "channel"}, 0.5, False),
    ({"targets": "slot"}, 0.5, False),
    ({"targets": "slot", "normalise": "channel", "pool": "mean", "branch": "cond"}, 1.0, False),
]


@pytest.mark.parametrize("noise", ["own", "common"])
@pytest.mark.parametrize(("options", "repulsion", "squared"), CASES)
def test_energies_and_gradients_are_those_of_a_plain_loop(backbone, source, noise, options, repulsion, squared):
    bank = bank_of(backbone, source, noise, **options)
    state = state_of(backbone, source, bank)
    energy = Representative(bank, squared=squared, repulsion=repulsion)
    found = energy(state)
    expected = plain(state, backbone, source, bank, options, repulsion, squared)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    pushes = [torch.autograd.grad(of.sum(), state.x, retain_graph=True)[0] for of in (found, expected)]
    gap, size = ((pushes[0] - pushes[1]).flatten(1).norm(dim=1), pushes[1].flatten(1).norm(dim=1))
    assert (gap < 1e-3 * size).all() and size.min() > 0


@pytest.mark.parametrize("noise", ["own", "common"])
@pytest.mark.parametrize("expression", ["linear", "rbf(bandwidth=4)"])
@pytest.mark.parametrize("kind", [SquaredMMD, MeanMatching])
def test_a_set_energy_has_the_gradient_of_the_class_in_each_image_s_noise(backbone, source, noise, kind, expression):
    """The whole class is noised as image i is, its energy is written out, and differentiated in image i."""
    bank, kernel = bank_of(backbone, source, noise), parse(expression)
    state = state_of(backbone, source, bank)
    energy = kind(bank, kernel) if kind is SquaredMMD else kind(bank)
    (push,) = torch.autograd.grad(energy(state).sum(), state.x, retain_graph=True)
    for i, label in enumerate(LABELS):
        members = [k for k, other in enumerate(LABELS) if other == label]
        condition = backbone.condition([source.class_names[label]])
        noise_of = state.eps[i] if noise == "own" else bank.noise(label, T)
        x = state.x.detach().clone().requires_grad_()

        def phi(y, condition=condition):
            return backbone.features(y, T, condition.expand(len(y)), [bank.layer])[bank.layer].flatten(1)

        mine = phi(torch.stack([x[k] + state.sigma * (noise_of - state.eps[k]) for k in members]))
        real = phi(state.alpha * bank.latents(label) + state.sigma * noise_of)
        if kind is MeanMatching:
            whole = (mine.mean(0) - real.mean(0)).square().mean()
        else:
            whole = kernel(mine, mine).mean() - 2 * kernel(mine, real).mean()
        (expected,) = torch.autograd.grad(whole, x)
        torch.testing.assert_close(push[i], expected[i], rtol=1e-3, atol=1e-5)


def images_of(n=6):
    return MemorySource(
        {name: torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(9)) for name in "01"}, size=4
    )


@pytest.mark.parametrize("noise", ["fixed", "own", "common"])
@pytest.mark.parametrize("schedule", [None, Flow()])
def test_under_identity_features_only_content_is_compared(schedule, noise):
    """phi(x_t) = x_t: the noise cancels, the energy is alpha times the mean ||x0_hat - z_j||, and the push points at the z_j."""
    backbone = Mixture(random(2, 2, 3, 4, 4), std=0.4, schedule=schedule)
    bank = bank_of(backbone, images_of(), noise, layer="x")
    state = state_of(backbone, bank.source, bank)
    energies = Representative(bank)(state)
    expected, pushes = [], []
    for i, label in enumerate(LABELS):
        gaps = (bank.latents(label) - state.x0_hat[i]).flatten(1)
        expected.append(state.alpha * gaps.norm(dim=1).mean())
        pushes.append((gaps / gaps.norm(dim=1, keepdim=True)).mean(0))
    (gradient,) = torch.autograd.grad(energies.sum(), state.x)
    same = torch.allclose(energies, torch.stack(expected), rtol=1e-4)
    along = torch.nn.functional.cosine_similarity(-gradient.flatten(1), torch.stack(pushes))
    assert same == (noise != "fixed")
    assert (along.min() > 0.999) == (noise != "fixed")


@pytest.mark.parametrize("noise", ["own", "common"])
@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.stable_diffusion_3])
def test_text_backbones_and_flows_are_guided_from_the_second_step_on(build, noise):
    """A flow begins at alpha = 0, where there is no content. An image alone is the image in its batch."""
    backbone = from_pipeline(build(), name="tiny")
    source = MemorySource({name: torch.rand(5, 3, 8, 8) for name in ("red", "green")}, size=8)
    options = BankOptions(reals=4, noise=noise, normalise="channel")
    bank = FeatureBank(source, backbone, options, ipc=2)
    model, guidance = ClassifierFree(backbone, 2.0), Descend(Representative(bank), 0.1, "step")
    batch = Batch.of(source.class_names, [0, 0, 1], [0, 1, 0], 0)
    states = list(sample(model, guidance, batch, steps=4))
    pushed = [not torch.equal(state.next, state.proposal) for state in states]
    assert pushed == [isinstance(backbone.schedule, Flow) is False, True, True, True]
    assert torch.isfinite(states[-1].next).all() and not any(state.next.requires_grad for state in states)
    alone = latents(model, guidance, Batch.of(source.class_names, [1], [0], 0), steps=4)
    torch.testing.assert_close(alone, states[-1].next[2:], rtol=1e-3, atol=1e-3)


class Spy:
    """A backbone that notes how many images each tap passes, and whether a graph was asked for."""

    def __init__(self, backbone):
        self.inner, self.passed, self.graphs = backbone, [], []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def tap(self, x, t, condition, layer):
        self.passed.append(len(x))
        self.graphs.append(x.requires_grad)
        return self.inner.tap(x, t, condition, layer)


@pytest.mark.parametrize("repulsion", [0.0, 0.5])
def test_pairs_are_passed_in_chunks_and_without_a_graph(backbone, source, monkeypatch, repulsion):
    """Any size of the chunks gives the same energies; under targets: slot only an image's own share is passed for it."""
    found, counts = [], []
    for most, options in ((64, {}), (5, {}), (64, {"targets": "slot"})):
        monkeypatch.setattr(reals, "PASSES", most)
        bank = bank_of(backbone, source, "own", **options)
        state = state_of(backbone, source, bank)
        bank.backbone = spy = Spy(backbone)
        found.append(Representative(bank, repulsion=repulsion)(state))
        assert not any(spy.graphs) and max(spy.passed) <= most
        counts.append(sum(spy.passed))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    mates = 3 * 2 if repulsion else 0  # class 0 has three images
    assert counts[0] == counts[1] == 4 * 8 + mates
    assert counts[2] == 4 * 2 + mates + 2 * 8  # a share has two of eight; the statistics are those of all, once a class


def test_common_noise_is_kept_and_cached_and_differs_by_class_and_step(backbone, source, tmp_path):
    banks = []
    for cache in (None, tmp_path, tmp_path):
        options = BankOptions(reals=6, noise="common")
        banks.append(FeatureBank(source, backbone, options, ipc=4, run_seed=1, cache=cache))
        banks[-1].begin([0, 1])
    assert all(torch.equal(bank.at(0, T), banks[0].at(0, T)) for bank in banks)
    noises = [banks[0].noise(label, t) for label, t in ((0, T), (1, T), (0, 20))]
    assert not any(torch.equal(a, b) for a in noises for b in noises if a is not b)
    banks[0].backbone = spy = Spy(backbone)
    banks[0].at(0, T)
    assert not spy.passed


@pytest.mark.parametrize("noise", ["own", "common"])
@pytest.mark.parametrize("method", ["dap", "dap-slots"])
def test_the_methods_take_both_noises(colours, pipeline_folder, tmp_path, method, noise):
    def made(name, **guidance):
        values = {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 3}}
        chosen = {"method": method, "ipc": 2, "guidance": {"reals": 4, "clustered": 4, **guidance}}
        out = tmp_path / name
        distill(Recipe.parse({**values, **chosen}), out)
        assert json.loads((out / "recipe.json").read_text())["guidance"]["noise"] == guidance.get("noise", "fixed")
        return [file.read_bytes() for file in sorted((out / "images").rglob("*.png"))]

    strong = {"scale": 1.0, "unit": "step"}
    fixed, matched = made("fixed", **strong), made("matched", noise=noise, **strong)
    assert len(fixed) == len(matched) == 6 and fixed != matched
    assert made("neutral", noise=noise, scale=0.0, unit="step") == made("vanilla", scale=0.0, unit="step")


def test_the_words_of_the_option_are_those_of_the_bank():
    assert choices.BankOptions(noise="own").noise == "own"
    with pytest.raises(Exception, match="noise"):
        choices.BankOptions(noise="mine")
