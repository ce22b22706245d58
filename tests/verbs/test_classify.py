"""The diffusion classifier: against a plain computation on the exact mixture, in stages, and as a measure of sets."""

from __future__ import annotations

import json

import pytest
import torch

from dap.backbones import load
from dap.backbones.mixture import Mixture
from dap.backbones.schedules import Flow
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.posterior import Levels, errors
from dap.recipe import Recipe
from dap.verbs.classify import NOTE, ZeroShot
from dap.verbs.distill import distill
from dap.workshop import Workshop


@pytest.fixture(scope="module")
def mixture():
    draw = torch.Generator().manual_seed(0)
    return Mixture(torch.randn(5, 2, 2, 2, 2, generator=draw), std=0.3)


@pytest.fixture(scope="module")
def latents(mixture):
    draw = torch.Generator().manual_seed(1)
    return (mixture.means[:, :1] + 0.3 * torch.randn(5, 6, 2, 2, 2, generator=draw)).flatten(0, 1)


def plain(backbone, z, names, times, seed=0):
    """The mean squared error for one image and every class, by the definition."""
    found = []
    for k in range(len(names)):
        total = 0.0
        for t in times:
            alpha, sigma = backbone.schedule.level(t)
            draw = torch.Generator().manual_seed(seed_of(seed, "zero-shot", t))
            eps = torch.randn(*backbone.latent_shape, generator=draw)
            x = alpha * z + sigma * eps
            total += (eps - backbone.predict(x[None], t, backbone.condition([names[k]])).eps[0]).square().mean().item()
        found.append(total / len(times))
    return found


def test_errors_by_the_definition(mixture, latents):
    names = ["3", "0", "4"]  # some classes, in another order than the backbone's
    found = errors(mixture, latents[::7], names, Levels(4), batch=5)
    for z, row in zip(latents[::7], found, strict=True):
        assert row.tolist() == pytest.approx(plain(mixture, z, names, [125, 375, 625, 875]), rel=1e-4)
    assert (errors(mixture, latents[::7], names, Levels(4, seed=1)) != found).all()


def test_exact_scores_tell_classes_apart(mixture, latents):
    found = errors(mixture, latents, mixture.class_names, Levels(20)).argmin(1)
    assert found.tolist() == [label for label in range(5) for _ in range(6)]
    turned = errors(mixture, latents, mixture.class_names[::-1], Levels(20)).argmin(1)
    assert turned.tolist() == [4 - label for label in range(5) for _ in range(6)]


def test_a_row_depends_on_no_other_image(mixture, latents):
    whole = errors(mixture, latents, mixture.class_names, Levels(8, (3, 2)))
    torch.testing.assert_close(
        errors(mixture, latents[4:5], mixture.class_names, Levels(8, (3, 2)), batch=1), whole[4:5]
    )


def test_stages_leave_classes_out_by_what_was_seen_so_far(mixture, latents):
    names, levels, told = mixture.class_names, Levels(6, (3, 1)), []
    found = errors(mixture, latents, names, levels, batch=7, tell=lambda done, total: told.append((done, total)))
    first, second, third = levels.stages(mixture)
    assert sorted(first + second + third) == [83, 250, 416, 583, 750, 916] and len(first) == len(second) == 2
    assert max(first) - min(first) > 300, "every stage spreads over the schedule"
    assert told[-1] == (30 * 2 * (5 + 3 + 1),) * 2
    for z, row in zip(latents, found, strict=True):
        early, mid = plain(mixture, z, names, first), plain(mixture, z, names, first + second)
        left = sorted(range(5), key=early.__getitem__)[:3]
        winner = min(left, key=mid.__getitem__)
        assert row.isfinite().nonzero()[:, 0].tolist() == [winner]
        assert row[winner].item() == pytest.approx(plain(mixture, z, names, first + second + third)[winner], rel=1e-4)


def test_a_flow_has_real_times():
    flow = Mixture(torch.tensor([[[[[1.0]]]], [[[[-1.0]]]]]), std=0.1, schedule=Flow())
    assert Levels(4).stages(flow)[0] == [125.0, 625.0, 375.0, 875.0]
    assert errors(flow, torch.tensor([[[[-0.9]]]]), ("0", "1")).argmin(1).tolist() == [1]


def test_what_cannot_be_asked(mixture, latents):
    for wrong, says in (((1, (2,)), "2 stages need as many"), ((9, (2, 3)), "must fall"), ((9, (0,)), "at least 1")):
        with pytest.raises(DapError, match=says):
            Levels(*wrong)
    with pytest.raises(DapError, match="has 1000 noise levels, not 2000"):
        errors(mixture, latents, mixture.class_names, Levels(2000))
    with pytest.raises(DapError, match="no class 'x'"):
        errors(mixture, latents, ("x",))
    with pytest.raises(DapError, match="not finite"):
        errors(mixture, latents * torch.nan, mixture.class_names)


@pytest.fixture
def coloured(source):
    """A mixture in the pixels of the coloured images, which knows its classes well; red and green are swapped."""
    swapped = {"red": "green", "green": "red", "blue": "blue"}
    means = [source.images(source.class_names.index(swapped[name]), range(12)).mean(0) for name in source.class_names]
    return Mixture(torch.stack(means)[:, None] * 2 - 1, std=0.3, class_names=source.class_names)


def test_each_image_is_told_by_its_own_label_and_slot(coloured, colours, tmp_path):
    made = distill(
        Recipe.parse({"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8}}), tmp_path / "a"
    )
    real = open_source(colours, "test", size=8, classes=made.class_names)
    found = ZeroShot(coloured, "w", reals=4)(made, real)
    b, g, r = 0, 1, 2
    assert list(made.class_names) == ["blue", "green", "red"]
    assert [(i["label"], i["slot"], i["predicted"]) for i in found["images"]] == [
        (b, 0, b), (b, 1, b), (g, 0, r), (g, 1, r), (r, 0, g), (r, 1, g)
    ]  # fmt: skip
    assert found["agreement"] == found["real"]["accuracy"] == pytest.approx(1 / 3) and found["real"]["images"] == 12
    assert json.loads((tmp_path / "a" / NOTE).read_text()) == found


def test_what_is_known_is_not_looked_at_again(coloured, colours, tmp_path, monkeypatch):
    base = {"method": "random", "data": {"path": str(colours), "size": 8}}
    one, two = (distill(Recipe.parse({**base, "ipc": 1, "seed": s}), tmp_path / str(s)) for s in range(2))
    real, calls = open_source(colours, "test", size=8, classes=one.class_names), []
    judge = ZeroShot(coloured, "w", reals=4, store=Store(), tell=lambda what, done, total: calls.append(what))
    first = judge(one, real, [one, two])
    seen, calls[:] = set(calls), []
    assert len(seen) == 6 and judge(one, real, [one, two]) == first and not calls
    assert judge(two, real, [one, two])["real"] == first["real"] and {what.split()[0] for what in calls} == {"1"}
    other = ZeroShot(coloured, "w", Levels(5), reals=4, tell=lambda what, done, total: calls.append(what))
    calls.clear()
    other(two, real)
    assert len(set(calls)) == 6, "other noise levels are another measure"


def test_a_broken_test_image_is_left_out(coloured, colours, tmp_path):
    import shutil

    mine = shutil.copytree(colours, tmp_path / "mine")
    (mine / "test" / "red" / "2.png").write_bytes(b"no image")
    made = distill(Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(mine), "size": 8}}), tmp_path / "a")
    found = ZeroShot(coloured, "w")(made, open_source(mine, "test", size=8, classes=made.class_names))
    assert found["real"]["images"] == 17


def test_prompts_are_part_of_what_is_judged(colours, sd_folder, tmp_path):
    """Two templates on the same weights are two classifiers."""
    made = distill(
        Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(colours), "size": 8}}), tmp_path / "a"
    )
    real = open_source(colours, "test", size=8, classes=made.class_names)
    found = []
    for template in ("{}", "no {}"):
        backbone = load(str(sd_folder), device="cpu", template=template)
        found.append(ZeroShot(backbone, backbone.weights_hash(), Levels(2), reals=2)(made, real))
    assert found[0]["tested"] != found[1]["tested"] and found[0]["judged"] != found[1]["judged"]


def test_an_image_that_moves_to_the_next_class_is_judged_by_its_new_label(coloured, colours, tmp_path):
    """The images stay in the same order."""
    folder = tmp_path / "theirs"
    for name in ("blue", "green", "red"):
        (folder / name).mkdir(parents=True)
        for i in (4, 5):
            (folder / name / f"{i}.png").write_bytes((colours / "train" / name / f"{i}.png").read_bytes())
    real = open_source(colours, "test", size=8, classes=["blue", "green", "red"])
    found = []
    for moved in (False, True):
        if moved:
            (folder / "blue" / "5.png").rename(folder / "green" / "3.png")
        made = DistilledSet.from_folder(folder)
        made.results = tmp_path / "results"
        made.results.mkdir(exist_ok=True)
        found.append(ZeroShot(coloured, "w", reals=2)(made, real)["agreement"])
    assert found == [pytest.approx(1 / 3), pytest.approx(1 / 6)]


def test_an_unfinished_set_is_refused(coloured, colours, source, tmp_path):
    recipe = Recipe.parse({"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8}})
    made = distill(recipe, tmp_path / "a")
    lines = (tmp_path / "a" / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "manifest.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DapError, match="still lacks 1 image"):
        ZeroShot(coloured, "w")(DistilledSet.open(tmp_path / "a"), source)
    assert made.class_names == source.class_names


def test_by_command_on_the_starter(tmp_path, capsys):
    values = {"method": "random", "ipc": 2, "data": {"classes": ["Trouser", "Bag"], "size": 32}}
    made = distill(Recipe.parse(values), tmp_path / "a", workshop=Workshop("cpu"))
    run = ["classify", str(tmp_path / "a"), "--reals", "4", "--times", "4"]
    assert main(run) == 1 and "say which one should classify: --backbone NAME" in capsys.readouterr().err
    assert main([*run, "--backbone", "starter"]) == 0
    told = capsys.readouterr().out
    assert "of 4 images are what they are labelled" in told and "of 8 real test images" in told
    found = made.noted(NOTE)
    assert found["agreement"] == 1 and found["real"]["accuracy"] >= 0.75, "trousers are no bags"
    assert not (tmp_path / "a" / ".zeroshot").exists()


def test_what_any_set_lacks_is_said_before_the_first_is_looked_at(colours, pipeline_folder, tmp_path, capsys):
    shared = {"ipc": 1, "data": {"path": str(colours), "size": 8}, "sampling": {"steps": 2}}
    made = distill(
        Recipe.parse({"method": "vanilla", "backbone": {"path": str(pipeline_folder)}, **shared}), tmp_path / "a"
    )
    distill(Recipe.parse({"method": "random", **{k: shared[k] for k in ("ipc", "data")}}), tmp_path / "b")
    assert main(["classify", str(tmp_path / "a"), str(tmp_path / "b"), "--reals", "2", "--times", "2"]) == 1
    told = capsys.readouterr()
    assert "b was made without a backbone" in told.err and not told.out and made.noted(NOTE) is None


def test_a_set_of_one_class_is_not_classified(coloured, colours, tmp_path):
    asked = {"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8, "classes": ["blue"]}}
    made = distill(Recipe.parse(asked), tmp_path / "a")
    with pytest.raises(DapError, match="has one class, blue, so no answer could be wrong"):
        ZeroShot(coloured, "w")(made, open_source(colours, "test", size=8, classes=["blue"]))
