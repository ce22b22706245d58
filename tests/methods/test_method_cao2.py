"""CaO2: the choice and the refinement by hand, the neutral setting, and whole runs."""

from __future__ import annotations

import pytest
import torch

from dap import sampling
from dap.backbones.guided import ClassifierFree
from dap.backbones.mixture import Mixture
from dap.base.errors import DapError
from dap.methods.base import Unit
from dap.methods.diffusion.cao2 import CaO2, choose, loss, refine
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop
from watching import hearing

OWN = """
import torch


class Own(torch.nn.Module):
    def forward(self, images):
        return 4 * images.mean((2, 3)) + 4 * images[:, :, :4].mean((2, 3))


def build(class_names):
    return Own()
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A network that takes the strongest colour for the class, in the order of the data: blue, green, red, so often wrong."""
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(OWN)
    return f"{file}:build"


@pytest.fixture
def make(colours, pipeline_folder, teacher):
    def recipe(method="cao2", ipc=2, seed=0, block=None, **options):
        values = {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 3}}
        values |= {"classifier": teacher} if method == "cao2" else {}
        return Recipe.parse({"method": method, "ipc": ipc, "seed": seed, "block": block, "options": options, **values})

    return recipe


def hashes(made):
    return [record["sha256"] for record in made.records]


def test_the_choice_by_hand():
    confidence = torch.tensor([0.9, 0.5, 0.7, 0.4, 0.45, 0.9])
    correct = torch.tensor([True, True, True, False, False, False])
    assert choose(confidence, correct, 2, least=False) == [0, 2]
    assert choose(confidence, correct, 2, least=True) == [1, 2]
    assert choose(confidence, correct, 5, least=False) == [0, 1, 2, 4, 5], "wrong ones fill up, the surest first"
    assert choose(confidence, correct, 5, least=True) == [0, 1, 2, 3, 4], "wrong ones fill up, the least sure first"
    assert choose(torch.full((3,), 0.5), torch.ones(3, dtype=torch.bool), 2, least=True) == [0, 1], (
        "of equals the earlier"
    )


@pytest.mark.parametrize("least", [False, True])
def test_the_choice_is_the_published_rule_on_random_predictions(least):
    """All candidates are sorted by their largest probability; the correct ones come first, then the others, in this order."""
    for seed in range(20):
        said = (3 * torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))).softmax(1)
        sure, first = said.max(1)
        order = sure.argsort(descending=not least).tolist()
        ranked = [i for i in order if first[i] == 2] + [i for i in order if first[i] != 2]
        for k in (1, 5, 12):
            assert choose(sure, first == 2, k, least=least) == sorted(ranked[:k])


def test_wrong_candidates_fill_up_by_their_largest_probability_of_any_class(make, tmp_path, monkeypatch):
    """All candidates are wrong: the one that is surest of another class is kept, not the one nearest to the class."""
    wanted = make(ipc=1, candidates=2, iterations=0)

    class Fixed:
        name = "fixed"

        def logits(self, images):
            assert len(images) == 2
            return torch.tensor([[0.0, 1.0, 1.0], [0.0, 9.0, 9.1]])

    shop = Workshop("cpu")
    _, task = shop.task(wanted)
    monkeypatch.setattr(type(task), "classifier", property(lambda self: Fixed()), raising=False)
    kept = CaO2().kept(task, 0)
    assert kept["candidates"].tolist() == [1] and kept["correct"].tolist() == [False]
    assert kept["confidence"].item() < 1e-3, "the manifest still says the probability of the class"


def test_the_loss_by_hand():
    eps, noise = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]], [[[-1.0, 0.5]]]])
    assert loss(eps, noise, 10.0).tolist() == pytest.approx([4 / 2 + 20, 1.25 / 2 + 10])


def test_refinement_is_adam_on_the_mixture_image_by_image():
    """Against Adam written out, with the gradient by autograd through the exact score; and the loss falls."""
    draw = torch.Generator().manual_seed(0)
    mixture = Mixture(torch.randn(2, 2, 2, 2, 2, generator=draw, dtype=torch.float64), std=0.3)
    z0, noise = (torch.randn(3, 2, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    condition, times, lr = torch.tensor([0, 1, 1]), [200, 50, 120, 200, 80], 0.01
    found = refine(mixture, z0, condition, noise, times, lr=lr, peak=10.0)

    def of(z, k, t):
        alpha, sigma = mixture.schedule.level(t)
        x = alpha * z + sigma * noise[k : k + 1]
        gap = (x - alpha * mixture.posterior_mean(x, t, condition[k : k + 1])) / sigma - noise[k : k + 1]
        return gap.square().mean() + 10 * gap.abs().max()

    for k in range(3):
        z, m, v = z0[k : k + 1].clone(), 0, 0
        for i, t in enumerate(times, 1):
            z = z.requires_grad_()
            (g,) = torch.autograd.grad(of(z, k, t), z)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            z = (z - lr * (m / (1 - 0.9**i)) / ((v / (1 - 0.999**i)).sqrt() + 1e-8)).detach()
        torch.testing.assert_close(found[k : k + 1], z)
    longer = refine(mixture, z0, condition, noise, [100] * 100, lr=lr)
    assert all(of(longer[k : k + 1], k, 100) < of(z0[k : k + 1], k, 100) for k in range(3))


def test_one_candidate_and_no_iteration_is_the_vanilla_sample(make, tmp_path):
    shop = Workshop("cpu")
    neutral = distill(make(ipc=3, block=2, candidates=1, iterations=0), tmp_path / "a", workshop=shop)
    vanilla = distill(make("vanilla", ipc=3, block=2), tmp_path / "b", workshop=shop)
    assert hashes(neutral) == hashes(vanilla)
    moved = distill(make(ipc=3, block=2, candidates=1, iterations=2, lr=0.1), tmp_path / "c", workshop=shop)
    assert set(hashes(moved)).isdisjoint(hashes(vanilla))


def test_a_refinement_after_it_begins_at_its_latents_and_not_at_decoded_images(make):
    method, task = Workshop("cpu").task(make(candidates=1, iterations=1))
    made = method.prepare(task)(Unit(0, (0, 1)))
    assert made.latents is not None and torch.equal(task.backbone.decode(made.latents).cpu(), made.images)


@pytest.mark.parametrize("prefer", ["most", "least"])
def test_what_is_kept_are_vanilla_samples_that_the_classifier_would_have_chosen(make, prefer, tmp_path):
    shop = Workshop("cpu")
    made = distill(make(candidates=3, iterations=0, prefer=prefer), tmp_path / "a", workshop=shop)
    _, task = shop.task(make(candidates=3))
    sampled = task.recipe.sampling
    model = ClassifierFree(task.backbone, sampled.cfg, sampled.cfg_channels)
    for label, name in enumerate(task.source.class_names):
        batch = sampling.Batch.of(task.source.class_names, [label] * 6, range(6), 0)
        images = sampling.images(model, None, batch, steps=3)
        said = task.classifier.logits(images)
        correct = said.argmax(1) == label
        best = choose(said.softmax(1).amax(1), correct, 2, least=prefer == "least")
        mine = [record for record in made.records if record["class_name"] == name]
        assert [record["candidate"] for record in mine] == best
        assert [record["correct"] for record in mine] == correct[best].tolist()
        assert [record["seed"] for record in mine] == [batch.seeds[i] for i in best]
        kept = made.tensors()[0][2 * label : 2 * label + 2]
        torch.testing.assert_close(kept, images[best], atol=0.003, rtol=0)


def test_candidates_that_were_there_when_a_run_was_killed_are_not_made_again(make, tmp_path, monkeypatch):
    wanted = make(ipc=2, block=1, candidates=3, iterations=1)
    whole = distill(wanted, tmp_path / "a")
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")

    def stop(what, done, total):
        if what == "candidates of green" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(wanted, tmp_path / "b", watcher=hearing(work=stop))
    told = []
    watcher = hearing(work=lambda what, done, total: told.append((what, done)))
    again = distill(wanted, tmp_path / "b", watcher=watcher)
    assert [done for what, done in told if what == "candidates of green"] == [5, 6]
    assert hashes(again) == hashes(whole) and not (tmp_path / "b" / ".work").exists()


def test_a_missing_classifier_is_said_before_a_backbone_is_loaded(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("dap.backbones.load", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(DapError, match="needs a network trained on the real data"):
        distill(Recipe.parse({"method": "cao2", "data": {"path": str(colours)}}), tmp_path / "a")
    with pytest.raises(DapError, match="has no use for a classifier"):
        distill(Recipe.parse({"method": "vanilla", "classifier": "x.pt"}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_on_the_starter(tmp_path):
    values = {"method": "cao2", "ipc": 2, "data": {"classes": ["Trouser", "Bag"]}, "sampling": {"steps": 5}}
    made = distill(Recipe.parse({**values, "options": {"candidates": 2, "iterations": 2}}), tmp_path / "a")
    assert all({"candidate", "confidence", "correct"} <= record.keys() for record in made.records)
