"""D4M: prototypes by hand, where the run begins, and the neutral setting."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import kmeans_plusplus

from dap import sampling, solvers
from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.methods.diffusion.d4m import D4m
from dap.methods.diffusion.latents import class_latents
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop


def recipe(method="d4m", seed=0, steps=5, classes=("Trouser", "Bag"), ipc=2, **options):
    return Recipe.parse(
        {
            "method": method,
            "ipc": ipc,
            "seed": seed,
            "data": {"classes": list(classes)},
            "sampling": {"steps": steps},
            "options": options,
        }
    )


@pytest.fixture(scope="module")
def shop():
    return Workshop("cpu")


def test_a_run_begins_at_the_schedule_s_noise_level(shop):
    """Of 5 steps at strength 0.6 the last 3 are done, from alpha x0 + sigma noise at their first level."""
    backbone = shop.backbone(recipe().backbone)
    batch = sampling.Batch.of(("Bag",), [0], [0], 0)
    x0 = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    start = sampling.Start.at(x0, 0.6, 5)
    states = list(sampling.sample(ClassifierFree(backbone, 1.0), None, batch, steps=5, start=start))
    assert [state.index for state in states] == [2, 3, 4]
    alpha, sigma = solvers.make(backbone, "ddpm", 5).levels[2]
    noise = normal(backbone.latent_shape, generators(batch.seeds), x0)
    torch.testing.assert_close(states[0].x, alpha * x0 + sigma * noise)
    noised = sampling.Start(states[0].x, 2, noised=True)
    (first, *_) = sampling.sample(ClassifierFree(backbone, 1.0), None, batch, steps=5, start=noised)
    assert torch.equal(first.x, states[0].x)
    with pytest.raises(DapError, match="begin at step 0 to 4, not at 5"):
        list(sampling.sample(ClassifierFree(backbone, 1.0), None, batch, steps=5, start=sampling.Start(x0, 5)))


def test_as_little_strength_as_one_step_gives_the_prototypes_back(shop, tmp_path):
    """50 steps at strength 0.02 leave the smallest noise level alone, so images are decoded centres of the latents."""
    wanted = recipe(steps=50, strength=0.02, reals=40)
    made = distill(wanted, tmp_path / "a", workshop=shop)
    _, task = shop.task(wanted)
    images, labels = made.tensors()
    centres = torch.cat([D4m().prototypes(task, name) for name in ("Trouser", "Bag")])
    assert labels.tolist() == [0, 0, 1, 1]
    decoded = task.backbone.decode(centres)
    near = (images - decoded).abs().mean((1, 2, 3))
    far = (images - decoded.roll(2, 0)).abs().mean((1, 2, 3))
    assert (near < 0.06).all() and (near < far / 3).all()


@pytest.mark.parametrize("expand", [None, 4])
def test_prototypes_are_the_running_means_of_one_pass_of_mini_batch_k_means(shop, expand):
    """As in the authors' code: batches of expand times ipc, each seen once; their script has expand 1."""
    _, task = shop.task(recipe(reals=62, ipc=3, **({} if expand is None else {"expand": expand})))
    latents = class_latents(task, "Bag", 62)[1].flatten(1).double()
    found = D4m().prototypes(task, "Bag").flatten(1).double()
    first, *others = latents.split(3 * (expand or 1))
    seed = seed_of(0, "Bag", "k-means") % 2**32
    centres = torch.from_numpy(kmeans_plusplus(first.float().numpy(), 3, random_state=seed)[0]).double()
    seen: list[list[torch.Tensor]] = [[], [], []]
    for part in (first, *(other for other in others if len(other) >= 3)):
        for point, nearest in zip(part, torch.cdist(part, centres).argmin(1).tolist(), strict=True):
            seen[nearest].append(point)
        centres = torch.stack([torch.stack(points).mean(0) for points in seen])
    assert sum(map(len, seen)) == 60, "the last two of 62 are too few for a batch"
    torch.testing.assert_close(found, centres, atol=1e-4, rtol=1e-4)


def test_one_prototype_is_the_mean_of_all_latents(shop):
    _, task = shop.task(recipe(reals=30, ipc=1))
    mean = class_latents(task, "Bag", 30)[1].mean(0, keepdim=True)
    torch.testing.assert_close(D4m().prototypes(task, "Bag"), mean, atol=1e-4, rtol=1e-4)


def test_prototypes_of_duplicates_are_told(shop, monkeypatch, caplog):
    _, task = shop.task(recipe(reals=30, ipc=3))
    monkeypatch.setattr(
        "dap.methods.diffusion.d4m.class_latents", lambda *a: ([], torch.eye(2).repeat(4, 1)[:, :, None])
    )
    D4m().prototypes(task, "Bag")
    assert "Of 8 real images of class 'Bag' only 2 differ, fewer than the 3 centres" in caplog.text


def test_strength_one_is_the_vanilla_sample_and_classes_are_keyed_by_name(shop, tmp_path):
    free = distill(recipe(strength=1, reals=20), tmp_path / "a", workshop=shop)
    vanilla = distill(recipe("vanilla"), tmp_path / "b", workshop=shop)
    assert [r["sha256"] for r in free.records] == [r["sha256"] for r in vanilla.records]
    free = distill(recipe(strength=1, reals=1), tmp_path / "f", workshop=shop)
    assert [r["sha256"] for r in free.records] == [r["sha256"] for r in vanilla.records], (
        "no prototype, no image needed"
    )
    one = distill(recipe(reals=20), tmp_path / "c", workshop=shop)
    other = distill(recipe(reals=20, classes=("Bag", "Trouser")), tmp_path / "d", workshop=shop)
    by_name = [{(r["class_name"], r["slot"]): r["sha256"] for r in made.records} for made in (one, other)]
    assert by_name[0] == by_name[1]
    with pytest.raises(
        DapError, match="2 clusters of class 'Trouser' need as many real images; it has 6000, and reals is 1"
    ):
        distill(recipe(reals=1), tmp_path / "e", workshop=shop)
