"""D3HR: inversion on the exact mixture, the choice of a group by hand, and whole runs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from dap import sampling, solvers
from dap.backbones.guided import ClassifierFree
from dap.backbones.mixture import Mixture
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.methods.diffusion.d3hr import D3HR, best_group, invert, scores
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop


def recipe(colours, folder, method="d3hr", ipc=2, seed=0, steps=4, block=None, **options):
    values = {"data": {"path": str(colours)}, "backbone": {"path": str(folder)}, "sampling": {"steps": steps}}
    return Recipe.parse({"method": method, "ipc": ipc, "seed": seed, "block": block, "options": options, **values})


@pytest.fixture(scope="module")
def mixture():
    draw = torch.Generator().manual_seed(0)
    return Mixture(torch.randn(2, 2, 2, 2, 2, generator=draw), std=0.4)


@pytest.mark.parametrize("cfg", [1.0, 1.5])
def test_inversion_and_ddim_are_each_other_s_inverse(mixture, cfg):
    model, steps, index = ClassifierFree(mixture, cfg), 20, 6
    x0 = mixture.means[:, 0] + 0.3 * torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    x = invert(model, x0, torch.tensor([0, 1]), solvers.make(mixture, "ddim", steps), index, refine=200)
    batch = sampling.Batch.of(("0", "1"), [0, 1], [0, 0], 0)
    start = sampling.Start(x, index, noised=True)
    back = sampling.latents(model, None, batch, steps=steps, solver="ddim", start=start)
    torch.testing.assert_close(back, x0, atol=1e-3, rtol=1e-3)


def test_the_usual_inversion_takes_each_level_s_noise_from_the_latents_below(mixture):
    """Against the plain formula in abar, with the classes not mixed up."""
    x0, steps, index = mixture.means[:, 1].clone(), 10, 4
    run = solvers.make(mixture, "ddim", steps)
    found = invert(ClassifierFree(mixture, 1.0), x0, torch.tensor([0, 1]), run, index)
    for k in range(2):
        x, below = x0[k : k + 1], torch.tensor(1.0)
        for t in sorted(run.timesteps)[: steps - index]:
            here = mixture.schedule.alphas_cumprod[t]
            eps = mixture.predict(x, t, torch.tensor([k])).eps
            x = (here / below).sqrt() * (x - (1 - below).sqrt() * eps) + (1 - here).sqrt() * eps
            below = here
        torch.testing.assert_close(found[k : k + 1], x, atol=1e-4, rtol=1e-4)


def test_a_gaussian_class_is_inverted_to_its_own_diffused_gaussian():
    """Of N(mu, s²) the ODE's x_t has mean alpha mu and variance alpha² s² + sigma²: what is fitted is known."""
    mu, s, n = 1.5, 0.5, 4000
    single = Mixture(torch.full((1, 1, 1, 1, 1), mu), std=s)
    x0 = mu + s * torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    run = solvers.make(single, "ddim", 200)
    x = invert(ClassifierFree(single, 1.0), x0, torch.zeros(n, dtype=torch.long), run, 76, refine=20)
    alpha, sigma = run.levels[76]
    assert x.mean().item() == pytest.approx(alpha * mu, abs=0.05)
    assert x.std().item() == pytest.approx((alpha**2 * s**2 + sigma**2) ** 0.5, rel=0.05)


def skewness_of_each_draw(group):
    """The formula of the authors' code, in plain loops: one number for each draw, over its dimensions."""
    mean, std = group.mean(0), group.std(0, ddof=1)
    size, dimensions = group.shape
    found = []
    for j in range(size):
        cubes = [((group[j, d] - mean[d]) / std[d]) ** 3 for d in range(dimensions)]
        found.append(sum(cubes) * dimensions / ((dimensions - 1) * (dimensions - 2)))
    return np.array(found)


@pytest.mark.parametrize(("size", "dimensions"), [(5, 4), (2, 7), (3, 64)])
def test_scores_by_plain_numpy(size, dimensions):
    draw = torch.Generator().manual_seed(0)
    groups = torch.randn(3, size, dimensions, generator=draw)
    mean, std = torch.randn(dimensions, generator=draw), torch.rand(dimensions, generator=draw)
    found = scores(groups, mean, std, (1.0, 2.0, 0.5))
    for group, score in zip(groups.double().numpy(), found, strict=True):
        parts = [
            np.linalg.norm(group.mean(0) - mean.numpy()),
            np.linalg.norm(group.std(0, ddof=1) - std.numpy()),
            np.linalg.norm(skewness_of_each_draw(group)),
        ]
        assert score.item() == pytest.approx(parts[0] + 2 * parts[1] + 0.5 * parts[2], rel=1e-4)
    alone = scores(groups[:, :1], mean, std, (1.0, 1.0, 1.0))
    torch.testing.assert_close(alone, (groups[:, 0] - mean).norm(dim=1))
    few = scores(groups[:, :, :2], mean[:2], std[:2], (0.0, 0.0, 1.0))
    assert few.tolist() == [0, 0, 0], "two dimensions have no skewness"


def test_the_skewness_is_scipy_s_of_each_draw_over_its_dimensions():
    """Exactly, where every draw is standardised already: three draws, each dimension a permutation of the same values."""
    values = np.array([-1.5, 0.2, 1.3])
    values = (values - values.mean()) / values.std(ddof=1)
    # Each column is a permutation of the values, so the group's mean and deviation are 0 and 1 in each dimension. Each
    # row has every value twice, so its mean is 0 too.
    columns = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 1, 2), (1, 2, 0), (2, 0, 1)]
    group = np.stack([values[list(column)] for column in columns], axis=1)
    # scipy divides by each row's own deviation, which is sqrt((n - 1) / n D / (D - 1)) of the group's here.
    size, dimensions = group.shape
    own = ((size - 1) / size * dimensions / (dimensions - 1)) ** 1.5
    wanted = np.linalg.norm(stats.skew(group, axis=1, bias=False) * own)
    flat = torch.zeros(dimensions), torch.ones(dimensions)
    found = scores(torch.tensor(group)[None].float(), *flat, (0.0, 0.0, 1.0))
    assert found.item() == pytest.approx(wanted, rel=1e-4) and wanted > 0.1


def test_the_choice_follows_the_draws_and_not_the_dimensions():
    """Of two groups with equal means and deviations the one whose draws are less skewed is kept; the skewness of the
    dimensions over the draws would keep the other."""
    a = torch.tensor([-2.0, 0.0, 0.0, 2.0])  # symmetric over the draws
    skewed = torch.tensor([-1.0, -1.0, 0.0, 2.0])
    one = torch.stack([a, a, a, a], dim=1)  # a draw is far out in all dimensions: each draw is skewed
    turned = [skewed.roll(k) * (1 if k % 2 else -1) for k in range(4)]
    two = torch.stack(turned, dim=1)
    zero, unit = torch.zeros(4), torch.ones(4)
    by_draw = scores(torch.stack([one, two]), zero, unit, (0.0, 0.0, 1.0))
    assert by_draw[0] > by_draw[1]
    by_dimension = [np.linalg.norm(stats.skew(group.numpy(), axis=0)) for group in (one, two)]
    assert by_dimension[0] < by_dimension[1]


def test_the_best_of_all_candidates_is_taken_over_every_chunk(monkeypatch):
    monkeypatch.setattr("dap.methods.diffusion.d3hr.NUMBERS", 4 * 3 * 2)  # four groups a chunk
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    chunks = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed_of(7, c))) for c in range(3)]
    every = torch.cat(chunks)[:10] * std + mean
    told = scores(every, mean, std, (1.0, 1.0, 0.5))
    group, score = best_group(mean, std, 3, 10, 7)
    assert score == told.min().item() and torch.equal(group, every[told.argmin()])
    found = [best_group(mean, std, 3, n, 7)[1] for n in (1, 2, 5, 10)]
    assert found == sorted(found, reverse=True) and found[0] == told[0].item() > found[-1]


def test_each_slot_of_each_class_is_its_own_group_s_member(colours, pipeline_folder, tmp_path):
    """The images are DDIM's from the stored groups, class by class, whatever the units; and one candidate is a first draw."""
    shop, wanted = Workshop("cpu"), recipe(colours, pipeline_folder, ipc=3, reals=6, candidates=20, strength=0.5)
    made = distill(wanted, tmp_path / "a", workshop=shop)
    _, task = shop.task(wanted)
    method, sampled = D3HR(), task.recipe.sampling
    model = ClassifierFree(task.backbone, sampled.cfg, sampled.cfg_channels)
    images, _ = made.tensors()
    for label in range(3):
        group = method.group(task, label, 2)
        assert group.shape == (3, *task.backbone.latent_shape)
        batch = sampling.Batch.of(task.source.class_names, [label] * 3, [0, 1, 2], 5)  # no noise of its own
        start = sampling.Start(group, 2, noised=True)
        again = sampling.images(model, None, batch, steps=4, solver="ddim", start=start)
        torch.testing.assert_close(images[3 * label : 3 * label + 3], again, atol=0.003, rtol=0)
        spread = method.spread(task, label, 2)
        flat = (
            spread["mean"].flatten(),
            spread["std"].flatten(),
            3,
            1,
            seed_of(0, task.source.class_names[label], "d3hr"),
        )
        assert best_group(*flat)[1] >= best_group(*flat[:3], 20, flat[4])[1]
    parted = distill(
        recipe(colours, pipeline_folder, ipc=3, reals=6, candidates=20, strength=0.5, block=1), tmp_path / "b"
    )
    assert (parted.tensors()[0] - images).abs().max() < 0.01
    assert task.recipe.sampling.solver == "ddim"


def test_a_class_with_a_broken_image_is_inverted_without_it(colours, pipeline_folder, tmp_path):
    mine = shutil.copytree(colours, tmp_path / "mine")
    (mine / "train" / "green" / "3.png").write_bytes(b"no image")
    made = distill(recipe(mine, pipeline_folder, steps=2, candidates=2), tmp_path / "a")
    assert len(made.records) == 6


def test_a_class_of_one_image_many_times_is_told_and_so_is_the_set(colours, pipeline_folder, tmp_path, caplog):
    mine = shutil.copytree(colours, tmp_path / "mine")
    for file in (mine / "train" / "green").iterdir():
        shutil.copy(mine / "train" / "red" / "0.png", file)
    made = distill(recipe(mine, pipeline_folder, steps=2, candidates=2, ipc=2), tmp_path / "a")
    assert (
        "of class 'green' only 1 differs, fewer than the 2 that a spread needs, so all its images begin" in caplog.text
    )
    assert len({record["sha256"] for record in made.records if record["class_name"] == "green"}) == 1
    assert (
        "2 of 6 images are the same as another one of their class ('green', slots 0, 1). The real images" in caplog.text
    )


def test_what_cannot_be_fitted_is_said_before_any_work(colours, pipeline_folder, tmp_path):
    with pytest.raises(DapError, match="must be at least 0, and one above, not"):
        distill(recipe(colours, pipeline_folder, weights=[0, 0, 0]), tmp_path / "a")
    few = shutil.copytree(colours, tmp_path / "few")
    for i in range(1, 12):
        (few / "train" / "red" / f"{i}.png").unlink()
    with pytest.raises(DapError, match="Class 'red' has one image alone"):
        distill(recipe(few, pipeline_folder), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_sets_share_knows_the_prompts(colours, sd_folder, tmp_path):
    """The inversion is told the class by the template, so another template's spread is another one."""
    shared = Workshop("cpu", cache=tmp_path / "cache")
    plain = Recipe.parse({**recipe(colours, sd_folder, steps=2, candidates=2, reals=4).model_dump(exclude_unset=True)})
    words = plain.model_copy(update={"backbone": plain.backbone.model_copy(update={"template": "no {}"})})
    first = distill(plain, tmp_path / "a", workshop=shared)
    with_cache = distill(words, tmp_path / "b", workshop=shared)
    alone = distill(words, tmp_path / "c", workshop=Workshop("cpu"))
    hashes = [[r["sha256"] for r in made.records] for made in (first, with_cache, alone)]
    assert hashes[1] == hashes[2] != hashes[0]
    assert first.noted("inputs.json").keys() == {"classes", "data", "weights"}, "a set says the template in its recipe"


def test_on_the_starter(tmp_path):
    values = {"method": "d3hr", "ipc": 2, "data": {"classes": ["Trouser", "Bag"]}, "sampling": {"steps": 5}}
    made = distill(Recipe.parse({**values, "options": {"reals": 20, "candidates": 50}}), tmp_path / "a")
    assert [r["class_name"] for r in made.records] == ["Trouser", "Trouser", "Bag", "Bag"]
    assert {name.split(" of ")[0] for name in made.noted("cost.json")["prepared"]} == {"spread", "group"}
