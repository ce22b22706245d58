"""`auto` and `NAME+refine`: prototypes, their order, the refinement in a run, resumed and over every kind of method."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dap.base.errors import DapError
from dap.choices import OwnGuidance
from dap.cli.main import main
from dap.data import typical
from dap.data.clusters import herded
from dap.data.sets.distilled import DistilledSet
from dap.methods import find
from dap.methods.diffusion.auto import MANY, MIDDLE, masses, nearest, pooled
from dap.methods.diffusion.latents import class_latents
from dap.methods.refined import with_typical
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine
from dap.workshop import Workshop


def recipe(method="auto", ipc=3, seed=0, block=None, refine=(), classes=("Trouser", "Bag"), **options):
    return Recipe.parse(
        {
            "method": method,
            "ipc": ipc,
            "seed": seed,
            "block": block,
            "data": {"classes": list(classes)},
            "sampling": {"steps": 4} if "backbone" in find(method).needs else None,
            "refine": {"steps": 3, "reals": 8, "typical": 1, **dict(refine)},
            "options": options,
        }
    )


@pytest.fixture(scope="module")
def shop():
    return Workshop("cpu")


def pixels(made: DistilledSet):
    return torch.stack([image for image, _ in made])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_herding_follows_the_mean_at_every_length():
    """Each next point is the best of those left, by trying all of them."""
    points, mean = random(9, 4), random(4, seed=1)
    order = herded(points, mean)
    assert sorted(order) == list(range(9))
    for k in range(9):
        gaps = {i: (points[[*order[:k], i]].mean(0) - mean).norm().item() for i in range(9) if i not in order[:k]}
        assert order[k] == min(gaps, key=lambda i: gaps[i])


def test_ten_of_fifty_slots_are_nearer_to_the_class_than_ten_others():
    """The first ten in the order of herding, against the ten after them and against the mean of random tens."""
    points = random(50, 16)
    mean = random(2000, 16, seed=1).mean(0)
    order = herded(points, mean)
    first = (points[order[:10]].mean(0) - mean).norm()
    others = [
        (points[torch.randperm(50, generator=torch.Generator().manual_seed(s))[:10]].mean(0) - mean).norm()
        for s in range(20)
    ]
    assert first < min(others)


def test_no_two_centres_take_one_point():
    points = torch.tensor([[0.0], [1.0], [5.0]])
    assert nearest(points, torch.tensor([[0.1], [0.2], [4.0]])).tolist() == [0, 1, 2]


def test_latents_are_clustered_on_a_grid_of_eight():
    assert pooled(random(2, 4, 32, 32)).shape == (2, 4 * 64)
    assert torch.equal(pooled(random(2, 4, 8, 8)), random(2, 4, 8, 8).flatten(1))
    assert pooled(random(2, 4, 3, 16, 16)).shape == (2, 4 * 3 * 64)


def test_a_set_of_prototypes_is_real_images_and_its_refinement_moves_them(shop, tmp_path):
    bare = distill(recipe(refine={"steps": 0}, strength=0, reals=20), tmp_path / "bare", workshop=shop)
    _, task = shop.task(recipe(refine={"steps": 0}, strength=0, reals=20))
    _, latents = class_latents(task, "Trouser", 20)
    drawn = task.backbone.decode(latents).mul(255).round()
    for image in pixels(bare)[:3].mul(255).round():
        assert ((drawn - image).abs().amax((1, 2, 3)) <= 1).sum() == 1  # a batch of another size rounds otherwise
    moved = distill(recipe(strength=0, reals=20), tmp_path / "moved", workshop=shop)
    gap = (pixels(moved) - pixels(bare)).abs().amax((1, 2, 3))
    assert (gap > 0.01).all() and (pixels(moved) - pixels(bare)).abs().mean() < 0.1


def test_prototypes_and_the_real_images_that_pull_are_typical_ones(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(typical, "CANDIDATES", 20)
    asked = recipe(refine={"steps": 0, "typical": 0.5}, strength=0)
    bare = distill(asked, tmp_path / "bare", workshop=shop)
    _, task = shop.task(asked)
    kept = with_typical(task).source
    assert [kept.count(0), with_typical(with_typical(task)).source.count(0)] == [10, 10]
    known = task.backbone.decode(task.backbone.encode(kept.images(0, range(10)))).mul(255).round()
    for image in pixels(bare)[:3].mul(255).round():
        assert ((known - image).abs().amax((1, 2, 3)) <= 1).sum() == 1
    first = pixels(distill(recipe(refine={"typical": 0.5}), tmp_path / "all", workshop=shop))
    for file in (tmp_path / "all").rglob("0001.png"):
        file.unlink()
    again = distill(recipe(refine={"typical": 0.5}), tmp_path / "all", workshop=Workshop("cpu"))
    assert torch.equal(pixels(again), first)
    assert not torch.equal(first, pixels(bare))


def test_prototypes_of_other_typical_images_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    """Which images are typical depends on the layer in whose features they are ranked."""
    monkeypatch.setattr(typical, "CANDIDATES", 20)

    def made(name, layer, **machine):
        asked = recipe(ipc=2, refine={"steps": 0, "typical": 0.1, "layers": [layer]}, strength=0, reals=20)
        return pixels(distill(asked, tmp_path / name, machine=Machine(device="cpu", **machine)))

    first, other = (made(f"cached {layer}", layer, cache=tmp_path / "cache") for layer in "06")
    assert other.equal(made("alone", "6")) and not first.equal(other)


def test_the_weight_of_a_prototype_is_its_share_of_the_class():
    """By plain loops; a point as near to two prototypes counts half for each."""
    points, prototypes = random(40, 3).round(decimals=1), random(4, 3, seed=1)
    prototypes[3] = prototypes[2]
    found = masses(points, prototypes)
    counts = [0.0] * 4
    for point in points:
        gaps = [(point - one).norm().item() for one in prototypes]
        near = [k for k in range(4) if gaps[k] <= min(gaps) + 1e-9]
        for k in near:
            counts[k] += 1 / len(near)
    assert found.tolist() == pytest.approx([4 * count / 40 for count in counts])
    assert found.sum().item() == pytest.approx(4) and found[2] == found[3]


def test_weights_are_in_the_manifest_with_mean_one_in_each_class(shop, tmp_path):
    made = distill(recipe(reals=20), tmp_path / "a", workshop=shop)
    _, task = shop.task(recipe(reals=20))
    for label, name in enumerate(made.class_names):
        weights = [line["weight"] for line in made.records if line["label"] == label]
        assert sum(weights) == pytest.approx(3) and min(weights) > 0
        points = pooled(class_latents(task, name, 20)[1])
        starts = find("auto").prototypes(task, name)
        rows = [(points - pooled(x[None])).norm(dim=1).argmin().item() for x in starts["x"]]
        owners = [min(range(3), key=lambda k, p=p: (p - points[rows[k]]).norm().item()) for p in points]
        assert weights == pytest.approx([3 * owners.count(k) / 20 for k in range(3)]), "in the order of the slots"
    middle = distill(recipe(refine={"steps": 0}, strength=0.5, reals=20), tmp_path / "b", workshop=shop)
    assert [line["weight"] for line in middle.records] == [line["weight"] for line in made.records]
    free = distill(recipe(refine={"steps": 0}, strength=1), tmp_path / "c", workshop=shop)
    assert not any("weight" in line for line in free.records), "pure noise stands for nothing"


def test_at_full_strength_and_without_refinement_the_images_are_vanilla_s(shop, tmp_path):
    auto = distill(recipe(refine={"steps": 0}, strength=1), tmp_path / "auto", workshop=shop)
    plain = {**recipe("vanilla+refine", refine={"steps": 0}).model_dump(exclude_unset=True), "method": "vanilla"}
    vanilla = distill(
        {**{k: v for k, v in plain.items() if k != "refine"}, "block": 3}, tmp_path / "plain", workshop=shop
    )
    assert torch.equal(pixels(auto), pixels(vanilla))


@pytest.mark.parametrize(
    "method", ["random", "vanilla", "dap-slots", pytest.param("mgd3", marks=pytest.mark.slow), "herding"]
)
def test_every_kind_of_method_can_be_refined(method, shop, tmp_path):
    """Without a step the images are those of the method, encoded or not; with steps every image moves."""
    few = {"pool": 50} if method == "herding" else {}
    before = distill(recipe(f"{method}+refine", refine={"steps": 0}, **few), tmp_path / "a", workshop=shop)
    after = distill(recipe(f"{method}+refine", **few), tmp_path / "b", workshop=shop)
    assert (pixels(after) - pixels(before)).abs().amax((1, 2, 3)).min() > 0.001
    kept = json.loads((tmp_path / "b" / "recipe.json").read_text())
    assert kept["method"] == f"{method}+refine" and kept["block"] == 3
    assert kept["refine"]["layers"] == ["4"] and kept["refine"]["steps"] == 3


def test_a_set_that_was_stopped_goes_on_with_the_same_bytes(shop, tmp_path):
    whole = distill(recipe(), tmp_path / "whole", workshop=shop)
    part = distill(recipe(), tmp_path / "part", workshop=shop)
    lines = (part.path / "manifest.jsonl").read_text().splitlines(keepends=True)
    (part.path / "manifest.jsonl").write_text("".join(lines[:4]))  # the second class is made anew
    again = distill(recipe(), tmp_path / "part", workshop=Workshop("cpu"))
    assert torch.equal(pixels(again), pixels(whole))


def test_the_layers_of_the_refinement_are_the_user_s(shop, tmp_path):
    made = distill(recipe(refine={"layers": "2,6", "times": "0.1"}), tmp_path / "a", workshop=shop)
    assert made.recipe["refine"]["layers"] == ["2", "6"]
    assert made.recipe["refine"]["times"] == [0.1]
    with pytest.raises(DapError, match="no layer '9' to tap"):
        shop.task(recipe(refine={"layers": ["9"]}))


def test_what_cannot_be_refined_is_said(shop, tmp_path, capsys):
    with pytest.raises(DapError, match=r"not refined twice; leave out \+refine"):
        find("auto+refine")
    with pytest.raises(DapError, match="not refined twice"):
        find("vanilla+refine+refine")
    with pytest.raises(DapError, match=r"take the method vanilla\+refine"):
        shop.task(Recipe.parse({**recipe("vanilla+refine").model_dump(exclude_unset=True), "method": "vanilla"}))
    assert main(["distill", "--method", "vanila+refine", "--out", str(tmp_path / "x")]) == 1
    assert "Did you mean 'vanilla'" in capsys.readouterr().err
    with pytest.raises(DapError, match="3 clusters of class 'Trouser'"):
        shop.task(recipe(reals=2))[0].prepare(shop.task(recipe(reals=2))[1])


def test_a_kernel_of_one_s_own_belongs_to_the_set(shop, tmp_path):
    """Its code is among what the set was made of, so a changed kernel does not go on with the set."""
    file = tmp_path / "mine.py"
    file.write_text("from dap.kernels import RBF\n\nclass Mine(RBF):\n    pass\n")
    wanted = recipe(refine={"kernel": f"{file}:Mine", "energy": "mmd"})
    distill(wanted, tmp_path / "a", workshop=Workshop("cpu"))
    assert "mine.py" in (tmp_path / "a" / "inputs.json").read_text()
    file.write_text(file.read_text() + "\n    changed = True\n")
    with pytest.raises(DapError, match="mine.py"):
        distill(wanted, tmp_path / "a", workshop=Workshop("cpu"))


def test_a_comparison_takes_refined_methods_beside_others(tmp_path, capsys):
    given = ["--ipc", "1", "--classes", "Trouser", "Bag", "--steps", "2", "--refine-steps", "1", "--refine-reals", "4"]
    judged = ["--protocol", "quick-hard", "--set", "epochs=1", "--set", "looks=1", "--seeds", "1", "--sets", "1"]
    judged += ["--set", "width=8", "--neighbours", "20"]
    methods = ["--methods", "random,random+refine,auto"]
    assert main(["compare", *methods, *given, *judged, "--out", str(tmp_path / "c")]) == 0
    assert "Random + refinement" in capsys.readouterr().out


def test_choices_about_sampling_that_mean_nothing_are_told(shop, tmp_path, caplog):
    """Nothing is sampled at strength 0, so a guidance of the user's own is refused, and fewer steps are told to do nothing."""
    shop.task(recipe(strength=0))[0].prepare(shop.task(recipe(strength=0))[1])
    assert "auto samples nothing" in caplog.text  # `recipe` asks for 4 steps
    file = tmp_path / "mine.py"
    file.write_text("from dap.guidance import Nothing\nclass Mine(Nothing): pass\n")
    own = recipe(strength=0).model_copy(update={"own_guidance": OwnGuidance(path=f"{file}:Mine")})
    method, task = shop.task(own)
    with pytest.raises(DapError, match="would do nothing. Give --option strength=0.3, or take --method vanilla"):
        method.prepare(task)
    sampled = recipe(strength=0.5).model_copy(update={"own_guidance": OwnGuidance(path=f"{file}:Mine")})
    method, task = shop.task(sampled)
    method.prepare(task)


def test_small_sets_look_at_typical_images_alone(shop):
    """The default is a function of ipc; the resolved recipe holds the number, and a number of one's own wins."""
    asked = {"method": "auto", "data": {"classes": ["Trouser", "Bag"]}}
    found = {ipc: shop.task(Recipe.parse({**asked, "ipc": ipc}))[1].recipe.refine.typical for ipc in (1, 9, 10, 50)}
    assert found == {1: 0.75, 9: 0.75, 10: 1.0, 50: 1.0}
    assert shop.task(Recipe.parse({**asked, "ipc": 1, "refine": {"typical": 0.5}}))[1].recipe.refine.typical == 0.5


def test_auto_is_explained():
    assert main(["methods", "auto"]) == 0
    assert main(["methods", "mgd3+refine"]) == 0


def test_large_sets_are_denoised_from_the_prototypes_unless_the_user_says_otherwise(shop):
    """The recipe of a set keeps what was decided, so a set that an earlier version began with 0 is still the same set."""
    usual = {ipc: shop.task(recipe(ipc=ipc))[1].recipe.options["strength"] for ipc in (1, MANY - 1, MANY, 100)}
    assert usual == {1: 0.0, MANY - 1: 0.0, MANY: MIDDLE, 100: MIDDLE}
    assert shop.task(recipe(ipc=MANY, strength=0))[1].recipe.options["strength"] == 0
    assert shop.task(recipe(ipc=1, strength=1))[1].recipe.options["strength"] == 1


@pytest.mark.parametrize(
    ("sampling", "flags"),
    [
        ({}, None),
        ({"solver": "ddim", "eta": 0.5}, "--solver, --eta"),
        ({"solver": "ddim"}, "--solver"),
        ({"steps": 7, "cfg": 3.0}, "--steps, --cfg"),
        ({"cfg_channels": 1}, "--cfg-channels"),
    ],
)
def test_each_choice_about_sampling_that_means_nothing_is_named(
    sampling, flags, colours, pipeline_folder, tmp_path, caplog
):
    asked = {"data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}, "refine": {"steps": 0}}
    few = tmp_path / "few"
    shutil.copytree(pipeline_folder, few)
    (few / "card.yaml").write_text((few / "card.yaml").read_text() + "steps: 4\nsolver: ddim\neta: 0.5\n")
    recipe = Recipe.parse({**asked, "method": "auto", "ipc": 2, "sampling": sampling})
    method, task = Workshop("cpu").task(recipe)
    method.prepare(task)
    assert [message.partition(": ")[2] for message in caplog.messages] == ([flags] if flags else [])
    caplog.clear()
    usual = Recipe.parse({**asked, "method": "auto", "ipc": 2, "backbone": {"path": str(few)}})
    method, task = Workshop("cpu").task(usual)
    method.prepare(task)
    assert not caplog.messages, "a backbone of few steps has its own"
