"""The contracts shipped to users: what is good passes, and each check catches an object that is broken in just that."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from dap.backbones import Mixture, VariancePreserving, from_pipeline, load
from dap.base.errors import DapError
from dap.cli.main import main
from dap.guidance import Descend, Deviation, Energy, Guidance, Nothing, Paced, Representative, Trusted, Window
from dap.guidance.strength import FACTORS
from dap.kernels import KERNELS, Linear, parse
from dap.methods import Made, Method, find
from dap.methods.selection.random import Random
from dap.testing import check, check_backbone, check_guidance, check_kernel, check_method
from dap.testing.guidance import Stage


def wrongs(findings):
    return [str(f) for f in findings if f.level == "wrong"]


def caught(findings, name, level, words):
    """The check of that name, and no other thing, says so."""
    mine = [f for f in findings if f.check == name]
    assert mine, [f.check for f in findings]
    assert any(f.level == level and words in f.text for f in mine), "\n".join(map(str, findings))


# --- backbones


def test_good_backbones_pass(backbone):
    exact = check_backbone(Stage(), images=torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert not wrongs(exact)
    tiny = check_backbone(backbone)
    assert not wrongs(tiny)
    assert [f.check for f in tiny] == [f.check for f in exact]
    caught(tiny, "trained", "warn", "look untrained")
    assert all(not block._forward_hooks for block in backbone.transformer.transformer_blocks)
    assert all(f.text for f in tiny)


def test_the_starter_keeps_every_promise():
    findings = check_backbone(load("starter", device="cpu"))
    assert [f.level for f in findings] == ["ok"] * len(findings), "\n".join(map(str, findings))


@pytest.mark.parametrize("build", [lambda: tiny.stable_diffusion("v_prediction"), tiny.stable_diffusion_3])
def test_other_kinds_of_backbones_pass(build):
    findings = check_backbone(from_pipeline(build()))
    assert not wrongs(findings)
    caught(findings, "trained", "warn", "look untrained")


def test_half_precision_says_what_it_skips(pipeline_folder):
    findings = check_backbone(load(str(pipeline_folder), dtype="bfloat16", device="cpu"))
    assert not wrongs(findings)
    caught(findings, "gradient", "ok", "bfloat16 they drown in rounding")


def made(**attributes):
    backbone = Stage()
    for name, value in attributes.items():
        setattr(backbone, name, value)
    return backbone


def predicting(change):
    """A mixture whose prediction is changed: change(prediction, x, condition, grad_through)."""

    class Changed(Stage):
        def predict(self, x, t, condition, *, layer=None, grad_through="nothing"):
            got = super().predict(x, t, condition, layer=layer, grad_through=grad_through)
            return change(got, x, condition, grad_through)

    return Changed()


def tapping(change):
    class Changed(Stage):
        def tap(self, x, t, condition, layer):
            return change(super().tap(x, t, condition, layer))

    return Changed()


def overriding(name, function):
    """A mixture with one method replaced: function(itself's old method, *arguments)."""
    backbone = Stage()
    old = getattr(backbone, name)
    setattr(backbone, name, lambda *args: function(old, *args))
    return backbone


def with_module(module, in_state=True):
    backbone = made(head=module)
    held = backbone.state() | (dict(module.state_dict()) if in_state else {})
    backbone.state = lambda: held
    return backbone


def leak_graph(got, x, condition, through):
    return replace(got, eps=got.eps + 0 * x.sum()) if through == "features" else got


def batch_norm(got, x, condition, through):
    return replace(got, eps=got.eps / got.eps.std())


def half_detached(got, x, condition, through):
    if got.features is None:
        return got
    return replace(got, features=got.features.detach() + 0.5 * (x - x.detach()).flatten(1)[:, None])


def no_gradients_left(got, x, condition, through):
    if through == "features":
        torch.set_grad_enabled(False)
    return got


def flat_features(got, x, condition, through):
    return got if got.features is None else replace(got, features=0 * got.features + 1)


def alternate():
    calls = []

    def change(got, x, condition, through):
        calls.append(1)
        return replace(got, eps=got.eps * (1 + 0.01 * (len(calls) % 7)))

    return change


def anything_goes(old, names):
    known = [n if n in ("0", "1") else "0" for n in names]
    return old(known)


def only_first(old, names):
    return old([names[0]] * len(names))


def key_error(old, names):
    return torch.tensor([{"0": 0, "1": 1}[n] for n in names])


ABAR = Mixture(torch.zeros(1, 1, 1, 1, 1)).schedule.alphas_cumprod
CARD = Stage().card

BROKEN_BACKBONES = [
    (lambda: made(layers=()), "description", "wrong", "layers is ()"),
    (lambda: made(card=replace(CARD, layer="mid")), "description", "wrong", "'mid' is not among layers (x0, x)"),
    (lambda: made(latent_shape=[3, 4, 4]), "description", "wrong", "latent_shape is [3, 4, 4]"),
    (lambda: made(card=replace(CARD, cfg_channels=9)), "description", "wrong", "latents have 3 channels"),
    (lambda: made(class_names=()), "description", "wrong", "neither class_names nor"),
    (lambda: made(device="cpu"), "description", "wrong", "device is 'cpu'"),
    (lambda: made(card={"size": 4}), "description", "wrong", "card is a dict"),
    (lambda: made(schedule=VariancePreserving(ABAR.flip(0))), "schedule", "wrong", "does not fall"),
    (lambda: made(schedule=VariancePreserving(ABAR[:300])), "schedule", "wrong", "at the end alpha is"),
    (lambda: made(schedule=VariancePreserving(ABAR[400:])), "schedule", "wrong", "nearly data"),
    (lambda: made(schedule=torch.linspace(1, 0, 10)), "schedule", "wrong", "make it a VariancePreserving or a Flow"),
    (lambda: with_module(nn.Linear(2, 2).eval()), "frozen", "wrong", "2 tensors train (head.weight)"),
    (lambda: with_module(nn.Linear(2, 2).requires_grad_(False)), "frozen", "wrong", "head is in training mode"),
    (lambda: with_module(nn.Linear(2, 2).eval().requires_grad_(False), False), "frozen", "warn", "not in state()"),
    (lambda: predicting(lambda p, *_: replace(p, eps=p.eps.half())), "prediction", "wrong", "float16"),
    (lambda: predicting(lambda p, *_: replace(p, eps=p.eps * torch.nan)), "prediction", "wrong", "not finite"),
    (lambda: predicting(lambda p, *_: replace(p, variance=p.eps)), "prediction", "wrong", "learned_variance is False"),
    (lambda: made(learned_variance=True), "prediction", "wrong", "variance is missing"),
    (
        lambda: predicting(lambda p, *_: replace(p, eps=p.eps.detach().requires_grad_())),
        "prediction",
        "wrong",
        "frozen?",
    ),
    (lambda: predicting(alternate()), "determinism", "wrong", "draws at random"),
    (
        lambda: predicting(lambda p, *_: (torch.rand(1), p)[1]),
        "determinism",
        "wrong",
        "draws from torch's global generator",
    ),
    (lambda: predicting(batch_norm), "batch", "wrong", "normalise within images"),
    (lambda: overriding("null", lambda old, n: old(1)), "conditions", "wrong", "null of 3 images has 1 row;"),
    (lambda: overriding("condition", only_first), "conditions", "wrong", "means another thing alone"),
    (lambda: overriding("condition", anything_goes), "unknown class", "wrong", "was accepted"),
    (lambda: overriding("condition", key_error), "unknown class", "wrong", "KeyError"),
    (
        lambda: overriding("condition", lambda old, names: (old(names), torch.full((len(names),), -1))[1]),
        "condition matters",
        "warn",
        "it is ignored",
    ),
    (lambda: tapping(lambda f: f.flatten(1)), "features", "wrong", "make it (2, tokens, width)"),
    (lambda: tapping(lambda f: f[:1]), "features", "wrong", "(1, 1, 48)"),
    (lambda: tapping(lambda f: f * torch.inf), "features", "wrong", "not finite"),
    (lambda: tapping(lambda f: 2 * f), "tap", "wrong", "tap differs from predict's features"),
    (lambda: tapping(lambda f: f.detach().requires_grad_()), "tap", "wrong", "tap carries a graph"),
    (lambda: tapping(lambda f: f[..., :5]), "tap", "wrong", "make them the same"),
    (
        lambda: predicting(lambda p, *_: p if p.features is None else replace(p, eps=2 * p.eps)),
        "tap",
        "wrong",
        "only look, do not touch",
    ),
    (lambda: predicting(leak_graph), "graph", "wrong", "eps carries a graph past layer"),
    (lambda: predicting(no_gradients_left), "graph", "wrong", "leaves gradients switched off"),
    (
        lambda: predicting(lambda p, *_: replace(p, features=None if p.features is None else p.features.detach())),
        "graph",
        "wrong",
        "carry no graph to x, so nothing can guide",
    ),
    (
        lambda: predicting(lambda p, *_: replace(p, eps=p.eps.detach())),
        "graph",
        "wrong",
        "under 'denoiser' eps carries no graph",
    ),
    (lambda: predicting(half_detached), "gradient", "wrong", "features of layer 'x0': the gradient says"),
    (lambda: predicting(flat_features), "gradient", "wrong", "do not depend on x at all"),
    (lambda: overriding("encode", lambda old, x: old(x)[:, :2]), "encode", "wrong", "make them (3, 3, 4, 4) float32"),
    (lambda: overriding("encode", lambda old, x: old(x).half()), "encode", "wrong", "float16"),
    (lambda: overriding("encode", lambda old, x: old(x) + torch.randn_like(x)), "encode", "wrong", "not a sample"),
    (lambda: overriding("encode", lambda old, x: old(x) * torch.inf), "encode", "wrong", "not finite"),
    (lambda: overriding("encode", lambda old, x: 10 * old(x)), "encode", "warn", "scaling factor"),
    (lambda: overriding("decode", lambda old, z: z / 2 + 0.5), "decode", "wrong", "clamp images to [0, 1]"),
    (lambda: overriding("decode", lambda old, z: old(z)[..., :2]), "decode", "wrong", "the card says (3, 3, 4, 4)"),
    (lambda: overriding("decode", lambda old, z: old(z) * torch.nan), "decode", "wrong", "not finite"),
    (
        lambda: overriding("decode", lambda old, z: 1 - old(z)),
        "reconstruction",
        "warn",
        "come back from the autoencoder",
    ),
    (lambda: predicting(lambda p, *_: replace(p, eps=-p.eps)), "trained", "warn", "look untrained"),
    (lambda: predicting(alternate()), "sampling", "wrong", "guided with scale 0 the sample differs"),
    (lambda: predicting(flat_features), "sampling", "wrong", "does not change the sample"),
    (lambda: predicting(lambda p, *_: (torch.rand(1), p)[1]), "sampling", "wrong", "images' own seeds"),
    (lambda: overriding("state", lambda old: {}), "state", "wrong", "state() is empty"),
    (lambda: overriding("weights_hash", lambda old: "abc"), "state", "wrong", "64 hex digits"),
    (
        lambda: overriding("state", lambda old: {"a": torch.rand(3)}),
        "state",
        "wrong",
        "differs from call to call",
    ),
]


@pytest.mark.parametrize(("build", "name", "level", "words"), BROKEN_BACKBONES)
def test_a_broken_backbone_is_caught(build, name, level, words):
    mode = torch.is_grad_enabled()
    try:
        caught(check_backbone(build()), name, level, words)
    finally:
        torch.set_grad_enabled(mode)


def test_one_check_does_not_stop_the_others():
    def refuse(*_):
        raise RuntimeError("no such\nluck")

    findings = check_backbone(predicting(refuse))
    caught(findings, "prediction", "wrong", "stopped by RuntimeError: no such luck")
    assert {f.check for f in findings} - {line.split()[1][:-1] for line in wrongs(findings)} >= {
        "encode",
        "decode",
        "state",
    }


def test_a_layer_that_is_never_run(backbone):
    twin = copy.copy(backbone)
    twin.module = lambda layer: nn.Identity()
    caught(check_backbone(twin), "features", "wrong", "layer '0' is never reached")


def test_a_backbone_of_prompts_knows_any_class():
    class Prompted(Stage):
        def condition(self, class_names):
            return torch.tensor([len(name) % 2 for name in class_names])

    backbone = Prompted()
    backbone.class_names, backbone.card = (), replace(CARD, template="a photo of a {}")
    findings = check_backbone(backbone)
    assert not wrongs(findings)
    caught(findings, "unknown class", "ok", "prompts")


def test_latents_that_are_no_pictures():
    class Video(Mixture):
        def __init__(self):
            super().__init__(torch.randn(2, 1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)))

    assert not wrongs(check_backbone(Video()))


# --- kernels


@pytest.mark.parametrize("text", [*KERNELS, "linear + 0.5 * rbf", "rbf * polynomial", "3 * cosine"])
def test_built_in_kernels_pass(text):
    findings = check_kernel(parse(text))
    assert [f.level for f in findings] == ["ok"] * 10, "\n".join(map(str, findings))


def kernel_with(**methods):
    return type("Mine", (Linear,), methods)()


BROKEN_KERNELS = [
    (lambda: kernel_with(fit=lambda self, x: None), "fit", "fit returns a NoneType"),
    (lambda: kernel_with(fit=lambda self, x: Scaled(1 / (x.std() - x.std()))), "fit", "not finite"),
    (lambda: kernel_with(diag=lambda self, x: x.square().sum()), "shapes", "make it (24,)"),
    (lambda: kernel_with(distance=lambda self, x, y: torch.cdist(x.double(), y.double())), "shapes", "make it float32"),
    (lambda: kernel_with(__call__=lambda self, x, y: (2 * x + 1) @ y.T), "symmetric", "a kernel is symmetric"),
    (lambda: kernel_with(__call__=lambda self, x, y: -x @ y.T), "positive", "not positive semi-definite"),
    (lambda: kernel_with(__call__=lambda self, x, y: torch.cdist(x, y)), "positive", "not positive semi-definite"),
    (lambda: kernel_with(diag=lambda self, x: x.sum(1)), "diagonal", "diag(x) differs"),
    (
        lambda: kernel_with(squared_distance=lambda self, x, y: torch.cdist(x, y).square() + 1),
        "zero",
        "away from itself",
    ),
    (lambda: kernel_with(squared_distance=lambda self, x, y: torch.cdist(x, y) ** 4), "triangle", "not a metric"),
    (lambda: kernel_with(squared_distance=lambda self, x, y: torch.cdist(x, y)), "consistent", "differs from k(x, x)"),
    (
        lambda: kernel_with(distance=lambda self, x, y: (x[:, None] - y).square().sum(2).sqrt()),
        "gradient",
        "not finite",
    ),
    (lambda: kernel_with(distance=lambda self, x, y: torch.cdist(x, y).detach()), "gradient", "carries no graph"),
    (
        lambda: kernel_with(
            distance=lambda self, x, y: torch.cdist(x, y).detach() + 0.1 * (x.sum() - x.sum().detach())
        ),
        "gradient",
        "a finite difference",
    ),
]


class Scaled(Linear):
    def __init__(self, factor):
        self.__dict__["factor"] = factor

    def __call__(self, x, y):
        return self.factor * (x @ y.T)


@pytest.mark.parametrize(("build", "name", "words"), BROKEN_KERNELS)
def test_a_broken_kernel_is_caught(build, name, words):
    caught(check_kernel(build()), name, "wrong", words)


def test_a_kernel_that_subtracts_large_numbers_is_warned_of():
    def squared(self, x, y):
        return (self.diag(x)[:, None] + self.diag(y)[None] - 2 * self(x, y)).clamp_min(0)

    caught(check_kernel(kernel_with(squared_distance=squared)), "close points", "warn", "subtract large numbers")


# --- guidances and energies


class Reals:
    layer, branch = "x0", "cond"

    def begin(self, labels):
        pass

    def at(self, label, t):
        return torch.randn(6, 48, generator=torch.Generator().manual_seed(label))

    def shares(self, label):
        return None

    def transform(self, features, label, t):
        return features.flatten(1)


class ToZero(Energy):
    """Half the squared distance of x_t to 0."""

    def __call__(self, state):
        return 0.5 * state.x.square().flatten(1).sum(1)


GOOD = [
    lambda: Representative(Reals()),
    lambda: Representative(Reals(), parse("rbf"), repulsion=0.5),
    lambda: Descend(Representative(Reals()), 0.1, "step"),
    lambda: Descend(ToZero(), 0.01),
    lambda: Window(Descend(ToZero(), 0.1, "step"), 0.0, 0.5),
    lambda: Paced(Descend(ToZero(), 0.1, "step"), FACTORS["snr"]),
    lambda: Trusted(Descend(Representative(Reals()), 0.1, "step")),
    lambda: Descend(Representative(Reals()), 0.1, "step") + 0.5 * Descend(ToZero(), 0.1, "step"),
    ToZero,
    Deviation,
    lambda: Descend(Deviation(), 5.0) + Descend(ToZero(), 0.1, "step"),
]


@pytest.mark.parametrize("build", GOOD)
def test_good_guidances_pass(build):
    findings = check_guidance(build())
    assert [f.level for f in findings] == ["ok"] * len(findings), "\n".join(map(str, findings))


def test_a_guidance_for_another_layer_and_a_given_backbone(backbone):
    class Small(Energy):
        layer = "2"

        def __call__(self, state):
            return state.features.square().flatten(1).mean(1)

    for findings in (check_guidance(Small()), check_guidance(Small(), backbone)):
        assert not wrongs(findings), "\n".join(map(str, findings))
    Small.layer = "9"
    caught(check_guidance(Small(), backbone), "description", "wrong", "name a layer of the backbone (0, 1, 2)")


def push_with(function, **attributes):
    return type("Mine", (Guidance,), {"__call__": lambda self, state: function(state), **attributes})()


def energy_with(function, **attributes):
    return type("Mine", (Energy,), {"__call__": lambda self, state: function(state), **attributes})()


def in_place(state):
    return state.proposal.mul_(0.5)


def growing():
    count = []
    return push_with(lambda s: (count.append(1), torch.full_like(s.proposal, 0.01 * len(count)))[1])


def small(state):
    return -0.01 * state.proposal


class Unscalable(Guidance):
    def __call__(self, state):
        return small(state)

    def __rmul__(self, factor):
        return self


BROKEN_GUIDANCES = [
    (lambda: push_with(lambda s: s.proposal.flatten(1).sum(1)), "push", "wrong", "make it (3, 3, 4, 4)"),
    (lambda: push_with(lambda s: None), "push", "wrong", "a NoneType"),
    (lambda: push_with(lambda s: s.proposal * torch.nan), "push", "wrong", "not finite at t"),
    (lambda: push_with(lambda s: 0.1 * s.x, grad_through="features"), "push", "wrong", "carries a graph"),
    (lambda: push_with(in_place), "push", "wrong", "changes state.proposal in place"),
    (lambda: push_with(lambda s: torch.zeros_like(s.x)), "push", "warn", "all zero"),
    (lambda: push_with(small, grad_through="feature"), "description", "wrong", "grad_through is 'feature'"),
    (lambda: push_with(small, branch="uncond"), "description", "wrong", "branch is 'uncond'"),
    (lambda: push_with(small, layer=4), "description", "wrong", "layer is 4"),
    (lambda: push_with(small, joint=None), "description", "wrong", "joint is None"),
    (lambda: push_with(small, active=lambda self, index, steps: None), "active", "wrong", "return True or False"),
    (Nothing, "active", "warn", "nothing below was really tried"),
    (Unscalable, "scale zero", "wrong", "differs from vanilla"),
    (lambda: push_with(lambda s: 0.01 * torch.randn_like(s.x)), "random state", "wrong", "global generator of torch"),
    (lambda: push_with(lambda s: small(s) * np.random.rand()), "random state", "wrong", "global generator of numpy"),
    (growing, "random state", "wrong", "keep no state between runs"),
    (lambda: push_with(lambda s: small(s) / s.proposal.std()), "batch mates", "wrong", "or set joint = True"),
    (lambda: energy_with(lambda s: s.x.square().mean()), "energy", "wrong", "make it (3,), one an image"),
    (lambda: energy_with(lambda s: s.x.detach().square().flatten(1).sum(1)), "energy", "wrong", "carries no graph"),
    (lambda: energy_with(lambda s: s.x.flatten(1).sum(1) * torch.inf), "energy", "wrong", "not finite"),
    (
        lambda: energy_with(lambda s: (s.x.detach() * s.x).flatten(1).sum(1)),
        "gradient",
        "wrong",
        "a part of the energy is detached",
    ),
    (
        lambda: energy_with(lambda s: s.x0_hat.square().flatten(1).sum(1) + s.x.flatten(1).sum(1)),
        "gradient",
        "wrong",
        "needs grad_through = 'denoiser'",
    ),
    (lambda: energy_with(lambda s: 0 * s.x.flatten(1).sum(1)), "gradient", "warn", "guides nothing"),
    (
        lambda: energy_with(lambda s: s.x.square().flatten(1).sum(1), grad_through="nothing"),
        "description",
        "wrong",
        "the energy has no gradient",
    ),
]


@pytest.mark.parametrize(("build", "name", "level", "words"), BROKEN_GUIDANCES)
def test_a_broken_guidance_is_caught(build, name, level, words):
    caught(check_guidance(build()), name, level, words)


def test_an_energy_through_the_denoiser_passes():
    energy = energy_with(lambda s: s.x0_hat.square().flatten(1).sum(1), grad_through="denoiser")
    assert not wrongs(check_guidance(energy))
    caught(check_guidance(push_with(lambda s: small(s) / s.proposal.std(), joint=True)), "batch mates", "ok", "joint")


def test_a_sequential_guidance_may_look_back_and_not_ahead():
    class Ahead(Deviation):
        def __call__(self, state):
            return state.x.flatten(1).sum(1) * len(self._finished)

    class Unsaid(Deviation):
        sequential = False

    caught(check_guidance(Deviation()), "batch mates", "ok", "does on no later one")
    caught(check_guidance(Ahead()), "batch mates", "wrong", "earlier ones alone")
    caught(check_guidance(Unsaid()), "batch mates", "wrong", "sequential, if it looks at finished ones")


# --- methods


@pytest.mark.parametrize("name", ["random", "vanilla", "dap"])
def test_built_in_methods_pass(name):
    findings = check_method(find(name))
    assert [f.level for f in findings] == ["ok"] * 8, "\n".join(map(str, findings))


def making(images=None, **attributes):
    """A method without a backbone; images(unit, recipe, generator) in [0, 1]."""

    class Mine(Method):
        def prepare(self, task):
            def make(unit):
                generator = torch.Generator().manual_seed(task.recipe.seed + 10 * unit.label)
                drawn = (images or noise)(unit, task.recipe, generator)
                return Made(drawn, [{"seed": task.recipe.seed}] * len(unit.slots))

            return make

    for key, value in attributes.items():
        setattr(Mine, key, value)
    return Mine()


def noise(unit, recipe, generator):
    return torch.rand(len(unit.slots), 3, 32, 32, generator=generator)


def ignores_the_order():
    shared = torch.Generator().manual_seed(0)

    class Mine(Method):
        def prepare(self, task):
            shared.manual_seed(task.recipe.seed)
            return lambda unit: Made(noise(unit, None, shared), [{}] * len(unit.slots))

    return Mine()


def asks_the_network(self, task):
    task.backbone.encode(torch.zeros(1, 3, 32, 32))
    return lambda unit: Made(noise(unit, None, torch.Generator()), [{}] * len(unit.slots))


def records_of(record):
    return lambda self, task: lambda unit: Made(noise(unit, None, torch.Generator()), record)


BROKEN_METHODS = [
    (lambda: making(needs=frozenset({"backbones"})), "description", "wrong", "make it a frozenset of backbone"),
    (lambda: making(guidance={"scal": 1}), "description", "wrong", "Did you mean 'scale'"),
    (lambda: making(guidance=["scale"]), "description", "wrong", "guidance is a list"),
    (
        lambda: making(prepare=asks_the_network, needs=frozenset({"backbone"})),
        "prepare",
        "warn",
        "prepare runs the network (encode, 1 times",
    ),
    (lambda: making(prepare=lambda self, task: None), "prepare", "wrong", "prepare returns a NoneType"),
    (lambda: making(lambda u, r, g: 2 * noise(u, r, g)), "images", "wrong", "finite and in [0, 1]"),
    (lambda: making(lambda u, r, g: noise(u, r, g)[:1]), "images", "wrong", "make them (2, 3, 32, 32) float32"),
    (lambda: making(lambda u, r, g: noise(u, r, g).requires_grad_()), "images", "wrong", "carry a graph"),
    (lambda: making(prepare=lambda self, task: lambda unit: "done"), "images", "wrong", "make it a dap.methods.Made"),
    (lambda: making(prepare=records_of([{"x": torch.ones(1)}] * 2)), "records", "wrong", "written as JSON"),
    (lambda: making(prepare=records_of([{"label": 1}] * 2)), "records", "wrong", "which the set writes itself"),
    (lambda: making(prepare=records_of([{}])), "records", "wrong", "1 records for 2 images"),
    (lambda: making(lambda u, r, g: torch.rand(len(u.slots), 3, 32, 32)), "repeatable", "wrong", "ignores recipe.seed"),
    (ignores_the_order, "repeatable", "wrong", "depend on which units were made before"),
    (lambda: making(lambda u, r, g: noise(u, r, g.manual_seed(u.label))), "seed", "warn", "it ignores the seed"),
    (lambda: making(lambda u, r, g: (torch.rand(1), noise(u, r, g))[1]), "random state", "warn", "global generator"),
    (lambda: making(lambda u, r, g: noise(u, r, g) * 0 + 0.5), "different", "warn", "the same image"),
]


@pytest.mark.parametrize(("build", "name", "level", "words"), BROKEN_METHODS)
def test_a_broken_method_is_caught(build, name, level, words):
    caught(check_method(build()), name, level, words)


def test_a_slow_prepare_is_warned_of(monkeypatch):
    monkeypatch.setattr("dap.testing.method.SLOW", 0.0)
    caught(check_method(Random()), "prepare", "warn", "leave the work to the first unit")


# --- names and the command


OWN = """
import torch
from dap.backbones import Mixture
from dap.guidance import Energy
from dap.kernels import Kernel

class Even(Kernel):
    def __call__(self, x, y):
        return (x @ y.T / x.shape[1]).exp()

    def diag(self, x):
        return x.square().mean(1).exp()

class Odd(Even):
    def __call__(self, x, y):
        return (x @ y.T - 1).tanh()

class Mine(Mixture):
    def __init__(self):
        super().__init__(torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 0.4, ["red", "green", "blue"])

class Loud(Mine):
    def decode(self, latents):
        return latents

class Needy(Mine):
    def __init__(self, path):
        super().__init__()

def build():
    return Needy("weights")

class Away(Energy):
    def __call__(self, state):
        return -state.x.square().flatten(1).sum(1)

instance = Mine()
nothing = 3
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(OWN)
    return file


def dap(*args):
    return subprocess.run([sys.executable, "-m", "dap", *map(str, args)], capture_output=True, text=True, timeout=200)


def test_the_command_on_a_folder_a_file_and_a_wrong_name(pipeline_folder, mine, capsys):
    done = dap("check", pipeline_folder, "--device", "cpu", "--offline")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert all(line.startswith(("ok     ", "warn   ")) for line in lines[:-1]) and len(lines) == 20
    assert f"{pipeline_folder} (backbone): keeps its contract" in lines[-1]

    assert main(["check", f"{mine}:Even"]) == 0
    assert f"{mine}:Even (kernel): keeps its contract, 0 warnings" in capsys.readouterr().out

    assert main(["check", f"{mine}:Odd"]) == 1
    said = capsys.readouterr()
    assert not said.err and "WRONG  positive: the smallest eigenvalue of k(x, x) is -" in said.out
    assert said.out.splitlines()[-1].startswith(f"{mine}:Odd (kernel): ") and " wrong, " in said.out

    assert main(["check", "strater"]) == 1
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert "dap: error: There is no 'strater' to check. Did you mean 'starter'" in said.err


@pytest.mark.parametrize(
    ("name", "kind"), [("Mine", "backbone"), ("build", "backbone"), ("instance", "backbone"), ("Away", "energy")]
)
def test_own_things_by_name(mine, name, kind, capsys):
    assert main(["check", f"{mine}:{name}"]) == 0, capsys.readouterr()
    assert f"({kind}): keeps its contract" in capsys.readouterr().out.splitlines()[-1]


def test_a_broken_backbone_by_name(mine, capsys):
    assert main(["check", f"{mine}:Loud"]) == 1
    said = capsys.readouterr()
    assert not said.err and "WRONG  decode: decoding noise gives pixels from" in said.out
    assert "Loud (backbone): 2 wrong" in said.out.splitlines()[-1]


def test_names_in_their_order(mine, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rbf").mkdir()
    assert check("rbf")[0] == "kernel"
    assert "the folder of this name is ./rbf" in caplog.text
    (tmp_path / "starter").mkdir()
    assert check("starter")[0] == "backbone" and "the folder of this name is ./starter" in caplog.text
    assert check("random")[0] == "method"
    assert check("dap.kernels:Linear")[0] == "kernel"
    with pytest.raises(DapError, match="model_index.json"):
        check("./rbf")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":Needy", "could not be made without arguments: TypeError.*path.*file.py:function"),
        (":nothing", "'int', which has no contract"),
        (":Mien", "Did you mean 'Mine'"),
        ("x:Mine", "No file"),
    ],
)
def test_mistakes_in_names(mine, name, says):
    with pytest.raises(DapError, match=says):
        check(f"{mine}{name}" if name.startswith(":") else f"{mine.parent}/x.py:Mine")
    with pytest.raises(DapError, match="no such folder"):
        check("a/b/c")


def test_own_backbones_load_by_name(mine):
    assert load(f"{mine}:Mine").class_names == ("red", "green", "blue")
    assert type(load(f"{mine}:build", device="cpu")).__name__ == "Needy"
    assert load(f"{mine}:Mine", template=None).card.name == "exact Gaussian mixture"
    for options, named in (
        ({"dtype": "bfloat16"}, "dtype"),
        ({"revision": "main"}, "revision"),
        ({"template": "a {}"}, "template"),
    ):
        with pytest.raises(DapError, match=f"leave out {named}"):
            load(f"{mine}:Mine", **options)
    with pytest.raises(DapError, match="There is no device 'meta'"):
        load(f"{mine}:Mine", device="meta")
    with pytest.raises(DapError, match="is not a backbone but a int"):
        load(f"{mine}:nothing")
    with pytest.raises(DapError, match="is not a backbone but a Away"):
        load(f"{mine}:Away")


def test_a_recipe_with_an_own_backbone_records_its_code(mine, colours, tmp_path):
    args = ["--backbone", f"{mine}:Mine", "--data", str(colours), "--method", "vanilla", "--steps", "2", "--ipc", "1"]
    assert main(["distill", *args, "--out", str(tmp_path / "set")]) == 0
    inputs = json.loads((tmp_path / "set" / "inputs.json").read_text())
    assert len(inputs[f"code {mine}"]) == 64 and len(inputs["weights"]) == 64
    assert main(["distill", *args, "--out", str(tmp_path / "set")]) == 0
