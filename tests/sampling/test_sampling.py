"""The sampling loop against closed forms and an independent implementation, and the promises about seeds and scale 0."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from chain import chain
from dap.backbones import ClassifierFree, Mixture
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.guidance import Descend, Energy, Guidance, Nothing, Representative, Window
from dap.sampling import Batch, images, latents, sample


@pytest.fixture(scope="module")
def gaussian():
    """One Gaussian N(mu, 0.5² I), for which the whole chain is affine."""
    mu = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 1, 1, 2, 2)
    return Mixture(mu, std=0.5)


def moments(backbone, steps):
    """Mean (as a multiple of mu) and variance of the chain's end. On one Gaussian each ancestral step is affine,
    x -> c x + d + s z, so both follow by recursion, in float64."""
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    mean, variance, s2 = 0.0, 1.0, backbone.std**2
    ts = [round(i * 999 / (steps - 1)) for i in range(steps)][::-1]
    for t, before in zip(ts, [*ts[1:], -1], strict=True):
        a, b = abar[t].item(), abar[before].item() if before >= 0 else 1.0
        alpha, beta = a / b, 1 - a / b
        gain = math.sqrt(a) * s2 / (a * s2 + 1 - a)  # E[x0|x] = mu + gain (x − sqrt(a) mu)
        x0, xt = math.sqrt(b) * beta / (1 - a), math.sqrt(alpha) * (1 - b) / (1 - a)
        noise = beta * (1 - b) / (1 - a) if t > 0 else 0.0
        mean = x0 * (1 - gain * math.sqrt(a)) + (x0 * gain + xt) * mean
        variance = (x0 * gain + xt) ** 2 * variance + noise
    return mean, variance


def test_samples_of_a_gaussian_have_the_closed_form_moments(gaussian):
    n = 4000
    mean, variance = moments(gaussian, 50)
    batch = Batch.of(("0",), [0] * n, list(range(n)), 0)
    made = latents(ClassifierFree(gaussian, 1.0), None, batch, steps=50).flatten(1)
    assert (made.mean(0) - mean * gaussian.means.flatten()).abs().max() < 5 * math.sqrt(variance / n)
    assert made.var(0).mean().item() == pytest.approx(variance, rel=0.05)


def test_many_steps_reach_the_data_distribution(gaussian):
    """The chain's own error (50 steps with the lower-bound variance lose a fifth of the spread) vanishes with steps."""
    mean, variance = moments(gaussian, 1000)
    assert mean == pytest.approx(1, abs=1e-3)
    assert variance == pytest.approx(gaussian.std**2, rel=0.02)


def test_the_chain_equals_an_independent_float64_implementation(backbone):
    """50 respaced steps with learned-range variance and guidance on 3 of 4 channels, from the equations."""
    cfg, steps = 3.0, 50
    batch = Batch.of(("red", "blue"), [0, 1], [0, 5], 7)
    made = latents(ClassifierFree(backbone, cfg, 3), None, batch, steps=steps)
    x = chain(backbone, batch, cfg, steps)
    torch.testing.assert_close(made.double(), x, rtol=1e-3, atol=1e-3)


def test_scale_zero_is_the_vanilla_sample_bit_for_bit(backbone, source, bank):
    model, batch = ClassifierFree(backbone, 2.0, 3), Batch.of(source.class_names, [0, 0, 1], [0, 1, 0], 0)
    vanilla = latents(model, None, batch, steps=10)
    energy = Representative(bank)
    for neutral in (
        Nothing(),
        Descend(energy, 0.0),
        Descend(energy, 0.0, "step"),
        0.0 * Descend(energy, 1.0),
        Window(Descend(energy, 1.0), 0.5, 0.5),
        Descend(energy, 0.0) + Nothing(),
    ):
        assert torch.equal(latents(model, neutral, batch, steps=10), vanilla)
    assert not torch.equal(latents(model, Descend(energy, 0.5, "step"), batch, steps=10), vanilla)


@pytest.fixture(scope="module")
def bank(backbone, source):
    from dap.data.bank import BankOptions, FeatureBank

    return FeatureBank(source, backbone, BankOptions(reals=6), ipc=4)


def test_an_image_depends_on_its_own_seed_alone(backbone, source, bank):
    """Whatever shares its batch and wherever it stands there: equal to tolerance, for batched arithmetic rounds."""
    model, guidance = ClassifierFree(backbone, 2.0), Descend(Representative(bank), 0.2, "step")
    names = source.class_names
    together = latents(model, guidance, Batch.of(names, [0, 1, 1, 2], [3, 0, 1, 2], 5), steps=12)
    alone = latents(model, guidance, Batch.of(names, [1], [1], 5), steps=12)
    turned = latents(model, guidance, Batch.of(names, [2, 1, 1, 0], [2, 1, 0, 3], 5), steps=12)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.flip(0), turned, rtol=1e-4, atol=1e-4)
    again = latents(model, guidance, Batch.of(names, [0, 1, 1, 2], [3, 0, 1, 2], 5), steps=12)
    assert torch.equal(together, again)


def test_an_exact_backbone_has_a_hash(gaussian):
    assert len(gaussian.weights_hash()) == 64


def test_seeds_are_stable_and_distinct():
    assert seed_of(0, "Dress", 3) == 6381058498463298120
    assert len({seed_of(r, c, s) for r in range(5) for c in "ab" for s in range(50)}) == 500


class ToTarget(Energy):
    """Half the squared distance of x_t to a point: its gradient is known."""

    grad_through = "features"

    def __init__(self, target):
        self.target = target

    def __call__(self, state):
        return 0.5 * (state.x - self.target).square().flatten(1).sum(1)


def test_the_push_is_minus_scale_times_gradient_added_after_the_step(gaussian):
    """x_{t−1} = x̃_{t−1} + γ g_t with g_t taken at x_t (Eq. 8)."""
    target = torch.full((1, 2, 2), 2.0)
    batch = Batch.of(("0",), [0, 0], [0, 1], 0)
    for state in sample(ClassifierFree(gaussian, 1.0), Descend(ToTarget(target), 0.01), batch, steps=5):
        torch.testing.assert_close(state.next, state.proposal - 0.01 * (state.x - target))


def test_a_step_unit_push_has_the_asked_norm(gaussian):
    batch = Batch.of(("0",), [0, 0], [0, 1], 0)
    guidance = Descend(ToTarget(torch.zeros(1, 2, 2)), 0.25, "step")
    for state in sample(ClassifierFree(gaussian, 1.0), guidance, batch, steps=5):
        pushed = (state.next - state.proposal).flatten(1).norm(dim=1)
        step = (state.proposal - state.x).flatten(1).norm(dim=1)
        torch.testing.assert_close(pushed, 0.25 * step)


def test_a_zero_gradient_pushes_nothing(gaussian):
    class Flat(ToTarget):
        def __call__(self, state):
            return super().__call__(state) * 0

    model, batch = ClassifierFree(gaussian, 1.0), Batch.of(("0",), [0], [0], 0)
    flat = latents(model, Descend(Flat(torch.zeros(1, 2, 2)), 0.5, "step"), batch, steps=5)
    torch.testing.assert_close(flat, latents(model, None, batch, steps=5))


def test_guidance_moves_samples_towards_the_target(gaussian):
    model, batch = ClassifierFree(gaussian, 1.0), Batch.of(("0",), [0] * 20, range(20), 0)
    target = torch.full((1, 2, 2), 2.0)
    gaps = [
        (latents(model, Descend(ToTarget(target), scale), batch) - target).flatten(1).norm(dim=1).mean().item()
        for scale in (0.0, 0.01, 0.05)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_window_and_last_step():
    inner = Descend(ToTarget(torch.zeros(1)), 1.0)
    window = Window(inner, 0.2, 0.6)
    assert [i for i in range(10) if window.active(i, 10)] == [2, 3, 4, 5]
    assert [i for i in range(3) if Window(inner, last=False).active(i, 3)] == [0, 1]
    with pytest.raises(DapError, match="start"):
        Window(inner, 0.7, 0.2)


def test_the_graph_ends_at_the_tapped_layer(backbone):
    """The prediction carries no graph, the features do, and their gradient is the full network's."""
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.tensor([0, 1])
    cut = backbone.predict(x, 500, label, layer="1", grad_through="features")
    whole = backbone.predict(x, 500, label, layer="1", grad_through="denoiser")
    assert not cut.eps.requires_grad and cut.features.requires_grad and whole.eps.requires_grad
    torch.testing.assert_close(cut.eps, whole.eps)
    a, b = (torch.autograd.grad(p.features.square().sum(), x)[0] for p in (cut, whole))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(backbone.tap(x.detach(), 500, label, "1"), cut.features.detach())
    assert not any(block._forward_hooks for block in backbone.transformer.transformer_blocks)


class Held:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


class FromX0(Energy):
    """An energy whose graph goes through the whole denoiser."""

    grad_through = "denoiser"

    def __call__(self, state):
        return state.x0_hat.square().flatten(1).sum(1)


@pytest.mark.parametrize("kind", ["features", "denoiser", "both", "eps"])
def test_the_graph_of_a_step_is_free_before_the_next_forward_pass(backbone, bank, kind):
    """Counts the tensors that autograd holds whenever the denoiser starts; the garbage collector does not help."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()
    counts, most = [], []

    def keep(tensor):
        box = Held(tensor.detach())  # an output that a node keeps of itself would be a circle
        held.add(box)
        return box

    class Watched(ClassifierFree):
        def predict(self, *args, **options):
            counts.append(len(held))
            prediction = super().predict(*args, **options)
            most.append(len(held))
            return prediction

    energies = {"features": Representative(bank), "denoiser": FromX0(), "eps": Representative(bank)}
    guidance = Descend(energies.get(kind, FromX0()), 0.05, "step")
    guidance = guidance + Descend(Representative(bank), 0.05, "step") if kind == "both" else guidance
    batch = Batch.of(("blue", "green", "red"), [2, 0], [0, 0], 0)
    solver = "dpm++2m" if kind == "eps" else None
    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box.tensor):
            for state in sample(Watched(backbone, 2.0, 3), guidance, batch, steps=4, solver=solver):
                assert not any(
                    getattr(state, name).requires_grad for name in ("x", "x0_hat", "eps", "proposal", "next")
                )
    finally:
        gc.enable()
    assert counts == [0] * 4 and min(most) > 0


def test_classifier_free_guidance_channels_and_scale_one(backbone):
    x, label = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])
    cond = backbone.predict(x, 300, label).eps
    null = backbone.predict(x, 300, backbone.null(2)).eps
    three = ClassifierFree(backbone, 4.0, 3).predict(x, 300, label).eps
    torch.testing.assert_close(three[:, :3], (null + 4 * (cond - null))[:, :3])
    assert torch.equal(three[:, 3:], cond[:, 3:])
    every = ClassifierFree(backbone, 4.0).predict(x, 300, label).eps
    torch.testing.assert_close(every, null + 4 * (cond - null))
    assert torch.equal(ClassifierFree(backbone, 1.0).predict(x, 300, label).eps, cond)


def test_non_finite_samples_stop_with_a_sentence(gaussian):
    batch = Batch.of(("0",), [0], [0], 0)
    guidance = Descend(ToTarget(torch.full((1, 2, 2), 1e30)), 1e30)
    with pytest.raises(DapError, match="lower the guidance scale"):
        latents(ClassifierFree(gaussian, 1.0), guidance, batch, steps=5)

    class Broken(ToTarget):
        def __call__(self, state):
            return super().__call__(state) * torch.nan

    with pytest.raises(DapError, match="gradient of Broken is not finite"):
        latents(ClassifierFree(gaussian, 1.0), Descend(Broken(torch.zeros(1, 2, 2)), 1.0), batch, steps=5)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(DapError, match="scale"):
        Descend(ToTarget(torch.zeros(1)), scale)


def test_unknown_layer_class_and_steps(backbone, bank):
    model = ClassifierFree(backbone, 1.0)
    with pytest.raises(DapError, match="purple.*red, green, blue"):
        latents(model, None, Batch.of(("purple",), [0], [0], 0))
    for steps in (0, 1, 1001):
        with pytest.raises(DapError, match="steps must be between 2 and 1000"):
            latents(model, None, Batch.of(("red",), [0], [0], 0), steps=steps)
    with pytest.raises(DapError, match="no layer '9'"):
        backbone.check_layer("9")


def test_the_caller_s_random_state_is_untouched(backbone):
    before = torch.get_rng_state()
    latents(ClassifierFree(backbone, 1.0), None, Batch.of(("red",), [0], [0], 0), steps=3)
    assert torch.equal(before, torch.get_rng_state())


def test_latents_of_any_rank():
    """Nothing in the loop, the kernels or the guidance assumes 2-D images: a 1-D and a 3-D latent go through."""
    for shape in ((2, 5), (1, 2, 3, 4)):
        mixture = Mixture(torch.zeros(1, 1, *shape), std=0.3)
        batch = Batch.of(("0",), [0, 0], [0, 1], 0)
        made = latents(ClassifierFree(mixture, 1.0), Descend(ToTarget(torch.ones(shape)), 0.1, "step"), batch, steps=5)
        assert made.shape == (2, *shape)


def test_images_are_in_range(backbone):
    made = images(ClassifierFree(backbone, 1.0), None, Batch.of(("red",), [0, 0], [0, 1], 0), steps=4)
    assert made.shape == (2, 3, 8, 8) and made.min() >= 0 and made.max() <= 1


def test_guidance_sums_scale_and_refuse_two_layers(bank):
    class Push(Guidance):
        def __init__(self, value, layer=None):
            self.value, self.layer = value, layer

        def __call__(self, state):
            return torch.full_like(state.proposal, self.value)

    mixture = Mixture(torch.zeros(1, 1, 1, 1, 1))
    batch = Batch.of(("0",), [0], [0], 0)
    for state in sample(ClassifierFree(mixture, 1.0), Push(1.0) + 2 * Push(3.0) + Nothing(), batch, steps=3):
        torch.testing.assert_close(state.next - state.proposal, torch.full_like(state.proposal, 7.0))
    with pytest.raises(DapError, match="different layers"):
        Push(1.0, "1") + Push(1.0, "2")
