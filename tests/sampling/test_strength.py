"""Schedules of gamma: each against its plain formula, neutral where it should be, and through the recipe."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest
import torch

from dap.backbones import ClassifierFree, Flow, Mixture
from dap.base.errors import DapError
from dap.choices import ScheduleName
from dap.guidance import Descend, Guidance, Nothing, Representative, Sum, Trusted, strength
from dap.guidance.strength import SCHEDULES, scheduled
from dap.recipe import Recipe
from dap.sampling import Batch, latents, sample
from dap.verbs.distill import distill

STEPS = 6


class Push(Guidance):
    """The same push at every step: `length` on each number of the latent."""

    def __init__(self, length):
        self.length = length

    def __call__(self, state):
        return torch.full_like(state.proposal, self.length)


@pytest.fixture(params=[None, Flow(shift=3.0)], ids=["preserving", "flow"])
def mixture(request):
    means = torch.randn(2, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return Mixture(means, std=0.4, schedule=request.param)


def run(backbone, guidance, steps=STEPS):
    return list(sample(ClassifierFree(backbone, 1.0), guidance, Batch.of("01", [0, 1], [0, 0], 0), steps=steps))


PLAIN = {
    "constant": lambda state: 1.0,
    "sigma": lambda state: state.sigma,
    "snr": lambda state: 1 - 1 / (1 + (state.alpha / state.sigma) ** 2),
    "cosine": lambda state: math.cos(math.pi / 2 * state.index / (STEPS - 1)) ** 2,
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_push_is_the_formula_times_the_push(mixture, name):
    for state in run(mixture, scheduled(Push(0.1), name)):
        expected = torch.full_like(state.proposal, 0.1 * PLAIN[name](state))
        torch.testing.assert_close(state.next - state.proposal, expected, rtol=1e-3, atol=1e-6)


def test_what_the_schedules_do_over_a_run(mixture):
    """sigma and cosine fall, snr rises; cosine ends at 0, so that nothing is left that no step denoises."""
    sizes = {
        n: [(s.next - s.proposal).abs().max().item() for s in run(mixture, scheduled(Push(1.0), n))] for n in PLAIN
    }
    assert sizes["sigma"] == sorted(sizes["sigma"], reverse=True) and sizes["snr"] == sorted(sizes["snr"])
    assert sizes["cosine"] == sorted(sizes["cosine"], reverse=True) and sizes["cosine"][-1] == 0


@pytest.mark.parametrize("length", [1e-4, 0.1, 3.0])
def test_a_trusted_push_changes_the_prediction_by_no_more_than_it_may(mixture, length):
    """The change is recomputed from the mixture's closed form; a push within bounds is left as it is."""
    for state in run(mixture, scheduled(Push(length), "trust")):
        condition = mixture.condition(["0", "1"])
        moved = mixture.predict(state.x + length, state.t, condition).eps
        change = (moved - mixture.predict(state.x, state.t, condition).eps).flatten(1).square().mean(1).sqrt()
        factor = torch.where(change > strength.TRUST, strength.TRUST / change, torch.ones(2)).view(2, 1, 1, 1)
        torch.testing.assert_close(
            state.next - state.proposal, length * factor.expand_as(state.x), rtol=1e-3, atol=1e-5
        )
    if length == 3.0:
        assert factor.max() < 0.5
    if length == 1e-4:
        assert factor.min() == 1


def test_at_pure_noise_of_a_flow_all_of_a_push_is_noise():
    backbone = Mixture(torch.zeros(1, 1, 1, 2, 2), std=0.4, schedule=Flow())
    first = next(
        iter(sample(ClassifierFree(backbone, 1.0), Trusted(Push(0.2), 0.05), Batch.of("0", [0], [0], 0), steps=4))
    )
    torch.testing.assert_close(first.next - first.proposal, torch.full_like(first.x, 0.05))


def test_trust_costs_one_prediction_a_guided_step(mixture):
    asked = []

    class Counted(ClassifierFree):
        def predict(self, x, *args, **options):
            asked.append(x.requires_grad)
            return super().predict(x, *args, **options)

    batch = Batch.of("01", [0, 1], [0, 0], 0)
    latents(Counted(mixture, 1.0), scheduled(Push(0.1), "trust"), batch, steps=STEPS)
    assert len(asked) == 2 * STEPS
    asked.clear()
    latents(Counted(mixture, 1.0), Trusted(Nothing()), batch, steps=STEPS)
    assert len(asked) == STEPS


@pytest.mark.parametrize("name", SCHEDULES)
def test_scale_zero_is_vanilla_and_constant_is_the_guidance_itself(backbone, source, name):
    from dap.data.bank import BankOptions, FeatureBank

    energy = Representative(FeatureBank(source, backbone, BankOptions(reals=4), ipc=2))
    model, batch = ClassifierFree(backbone, 2.0, 3), Batch.of(source.class_names, [0, 1], [0, 0], 0)
    vanilla = latents(model, None, batch, steps=4)
    for neutral in (Descend(energy, 0.0, "step"), 0.0 * Descend(energy, 1.0), Nothing()):
        assert torch.equal(latents(model, scheduled(neutral, name), batch, steps=4), vanilla)
    guidance = Descend(energy, 1.0, "step")
    assert (scheduled(guidance, name) is guidance) == (name == "constant")
    for solver in ("ddpm", "dpm++2m"):
        plain = latents(model, guidance, batch, steps=4, solver=solver)
        assert torch.equal(latents(model, scheduled(guidance, name), batch, steps=4, solver=solver), plain) == (
            name == "constant"
        )


def test_schedules_wrap_sums_and_say_what_their_parts_need(backbone, source):
    from dap.data.bank import BankOptions, FeatureBank

    energy = Representative(FeatureBank(source, backbone, BankOptions(reals=4), ipc=2), repulsion=0.5)
    for name in SCHEDULES:
        made = scheduled(Sum((Push(0.1), Descend(energy, 0.1))), name)
        assert made.joint and made.layer == "1" and made.grad_through == "features" and made.active(0, 3)


def test_the_words_are_those_of_the_recipe_and_others_are_refused():
    assert get_args(ScheduleName) == SCHEDULES
    with pytest.raises(DapError, match=r"no schedule 'cosin' .*cosine"):
        scheduled(Push(1.0), "cosin")
    with pytest.raises(DapError, match="schedule"):
        Recipe.parse({"guidance": {"schedule": "linear"}})
    with pytest.raises(DapError, match="must be positive, not 0"):
        Trusted(Push(1.0), 0.0)
    state = run(Mixture(torch.zeros(2, 1, 1, 2, 2)), None)[0]
    with pytest.raises(DapError, match="guides a run of sampling alone"):
        Trusted(Push(1.0))(state)


def test_a_recipe_says_its_schedule_and_one_without_is_read_as_before(colours, pipeline_folder, tmp_path):
    values = {"method": "dap", "ipc": 1, "data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}}
    guidance = {"reals": 4, "scale": 1.0, "unit": "step"}
    found = {}
    for name in (None, *SCHEDULES):
        chosen = guidance if name is None else {**guidance, "schedule": name}
        out = tmp_path / str(name)
        distill(Recipe.parse({**values, "sampling": {"steps": 3}, "guidance": chosen}), out)
        kept = json.loads((out / "recipe.json").read_text())["guidance"]
        assert kept.get("schedule", "constant") == (name or "constant") and ("schedule" in kept) == (
            name not in (None, "constant")
        )
        assert Recipe.parse(json.loads((out / "recipe.json").read_text())).guidance.schedule == (name or "constant")
        found[name] = [file.read_bytes() for file in sorted((out / "images").rglob("*.png"))]
    assert found[None] == found["constant"]
    assert all(found[name] != found["constant"] for name in SCHEDULES[1:])
