"""`layer: auto` and `scale: auto`: chosen once, kept with the set, and numbers from then on."""

from __future__ import annotations

import math
import re
import shlex
import shutil

import pytest
import torch
import yaml

from dap import backbones
from dap.base.errors import DapError
from dap.choosing.layers import Curve
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.sections import choices
from dap.recipe import Recipe
from dap.verbs import settling
from dap.verbs.cells import Grid, Workshops, check
from dap.verbs.compare import grid
from dap.verbs.distill import distill
from dap.verbs.judges import loader
from dap.verbs.options import Judging, Machine
from dap.workshop import Workshop
from watching import hearing


@pytest.fixture
def base(colours, pipeline_folder):
    return {
        "method": "dap",
        "ipc": 2,
        "data": {"path": str(colours)},
        "backbone": {"path": str(pipeline_folder)},
        "sampling": {"steps": 2},
        "guidance": {"reals": 2, "layer": "auto"},
    }


@pytest.fixture
def counted(monkeypatch):
    """How often layers were compared and scales were tried."""
    counts = {"layer": 0, "scale": 0}
    for name, what in (("curve", "layer"), ("largest", "scale")):
        original = getattr(settling, name)

        def call(*args, original=original, what=what, **kwargs):
            counts[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(settling, name, call)
    return counts


def recipe_of(made: DistilledSet):
    assert made.recipe is not None
    return made.recipe


def pixels(made: DistilledSet):
    return torch.stack([image for image, _ in made])


def test_a_set_keeps_numbers_and_its_recipe_makes_it_again_without_a_choice(base, tmp_path, counted):
    notes = []
    recipe = {**base, "method": "dap+refine", "refine": {"layers": "auto", "steps": 1, "reals": 4, "times": "0.1"}}
    recipe["guidance"] = {**base["guidance"], "scale": "auto"}
    made = distill(recipe, tmp_path / "a", watcher=hearing(note=notes.append))
    guidance = recipe_of(made)["guidance"]
    assert guidance["layer"] in ("0", "1", "2") and 0 <= guidance["scale"] <= 1 and guidance["unit"] == "step"
    assert recipe_of(made)["refine"]["layers"][0] in ("0", "1", "2")
    assert counted == {"layer": 2, "scale": 1}
    told = [note for note in notes if "chosen by the criterion" in note]
    assert len(told) == 3 and all(" s on " in note for note in told)  # what was chosen, and its cost

    kept = made.noted("chosen.json")["choices"]
    assert [one["field"] for one in kept] == ["guidance.layer", "guidance.scale", "refine.layers"]
    assert kept[0]["candidates"] == ["0", "1", "2"] and set(kept[0]["scores"]) >= {"probe", kept[0]["by"]}
    assert "choice of guidance.scale" in made.noted("cost.json")["prepared"] and made.verify() == []
    (line, *_) = choices(group_sets(load([made.path])))
    assert "guidance.layer was left to auto" in line and line.count("0 ") >= 1

    again = distill(recipe, tmp_path / "a")  # the command that began it
    other = distill(tmp_path / "a" / "recipe.json", tmp_path / "b")  # and the recipe that it keeps
    assert counted == {"layer": 2, "scale": 1}
    assert torch.equal(pixels(other), pixels(made)) and torch.equal(pixels(again), pixels(made))
    assert (tmp_path / "b" / "recipe.json").read_bytes() == (tmp_path / "a" / "recipe.json").read_bytes()
    assert not (tmp_path / "b" / "chosen.json").exists()


def test_a_choice_is_the_same_for_every_run_seed_and_its_own_for_other_data(base, tmp_path, counted):
    first = distill(base, tmp_path / "a", seed=0)
    again = distill(base, tmp_path / "b", seed=7)
    assert counted["layer"] == 2  # nothing is shared without a cache
    one, two = (made.noted("chosen.json")["choices"][0] for made in (first, again))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    fewer = distill(base, tmp_path / "c", classes=["red", "blue"])
    assert fewer.noted("chosen.json")["choices"][0]["key"] != one["key"]


def test_a_run_that_was_killed_before_its_first_image_does_not_choose_again(base, tmp_path, counted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("dap.engines.making.plan", lambda *of: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill(base, tmp_path / "a")
    assert counted["layer"] == 1
    (tmp_path / "a" / "chosen.json").unlink()  # killed before this too; the store has it
    distill(base, tmp_path / "a")
    assert counted["layer"] == 1
    (tmp_path / "a" / "chosen.json").write_text('{"choices": [1]}')  # damaged, and the store is gone
    distill(base, tmp_path / "a")
    assert counted["layer"] == 2


def test_the_cells_of_a_grid_share_a_choice(base, tmp_path, counted):
    cells = Grid(
        tuple(grid(base, {"ipc": [1, 2]}, 2)), tmp_path, Judging(networks=("convnet1",)), Machine(device="cpu")
    )
    for _ in range(2):  # a second process
        shops = Workshops(cells)
        check(cells.cells, shops.of, loader(cells.judging, cells.machine, shops.main), tmp_path)
    assert counted["layer"] == 1
    shop = shops.of(cells.cells[0][1])
    made = distill(cells.cells[0][1], tmp_path / cells.cells[0][0], workshop=shop, grid=tmp_path)
    assert (
        counted["layer"] == 1
        and made.noted("chosen.json")["choices"][0]["value"] == recipe_of(made)["guidance"]["layer"]
    )


def test_a_scale_is_found_on_samples_of_the_method_itself(base, tmp_path, monkeypatch):
    """The trials of scale γ are the samples that the recipe with γ gives, and the change is that of their errors."""
    from dap.choosing.region import log_errors

    seen = {}

    def largest(trial, **how):
        seen["errors"] = [trial(scale) for scale in (0.0, 0.2)]
        return settling.Region(0.2, (0.2,), (0.0,), 1.0, 6)

    monkeypatch.setattr(settling, "largest", largest)
    shop = Workshop("cpu")
    asked = Recipe.parse({**base, "ipc": 6, "guidance": {"reals": 2, "scale": "auto"}})
    found = settling.settled(asked, shop, tmp_path / "x", hearing()).recipe
    assert found.guidance is not None and found.guidance.scale == 0.2 and found.guidance.unit == "step"
    for scale, errors in zip((0.0, 0.2), seen["errors"], strict=True):
        method, task = shop.task(Recipe.parse({**base, "ipc": 6, "guidance": {"reals": 2, "scale": scale}}))
        make = method.prepare(task)
        for label, mine in zip((0, 2), errors, strict=True):
            latents = make(settling.Unit(label, tuple(range(6)))).latents
            assert latents is not None
            assert torch.allclose(mine, log_errors(task.backbone, latents, task.source.class_names[label]), atol=1e-5)


def test_what_cannot_be_chosen_is_said_before_anything_is_made(base, tmp_path, capsys):
    with pytest.raises(DapError, match="unit: step, or a scale"):
        distill({**base, "guidance": {"scale": "auto", "unit": "paper"}}, tmp_path / "a")
    with pytest.raises(DapError, match="Method 'vanilla' has no guidance"):
        distill({**base, "method": "vanilla"}, tmp_path / "b")
    with pytest.raises(DapError, match=r"guidance.layer is auto, which dap distill settles"):
        Workshop("cpu").task(Recipe.parse(base))
    with pytest.raises(DapError, match=r"Class 'blue' has 3 images.*name a layer instead of auto"):
        distill({**base, "data": {**base["data"], "held_out": 0.7}}, tmp_path / "c")
    assert main(["distill", "--scale", "automatic", "--out", str(tmp_path / "d")]) == 1
    said = capsys.readouterr().err
    assert "the value should be a number, or the value should be 'auto' (given" in said
    assert not list(tmp_path.glob("*/images"))


def test_weak_features_are_told_before_sampling_and_kept(base, tmp_path, monkeypatch):
    heard = []
    weak = Curve(("0", "1", "2"), {"probe": (0.3, 0.34, 0.36), "transfer": (0.1, math.nan, 0.2)}, (0.1,), 36, 18, 1 / 3)
    monkeypatch.setattr(settling, "curve", lambda *of, **how: weak)
    monkeypatch.setattr(settling, "CRITERION", "transfer")
    watcher = hearing(note=heard.append, images=lambda name, done, *rest: heard.append(done))
    weak.scores["transfer"] = (0.1, math.nan, 0.2)
    made = distill(base, tmp_path / "a", watcher=watcher)
    (warning,) = [text for text in heard if str(text).startswith("Warning: ")]
    assert "is right on 36% of 18 held-out images, and a guess on 33%" in warning
    assert heard.index(warning) < heard.index(0)
    assert made.noted("chosen.json")["choices"][0]["warning"] == warning
    assert any(warning in line for line in choices(group_sets(load([made.path]))))


def test_an_empty_region_is_told(base, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(settling, "largest", lambda *of, **how: settling.Region(0.0, (0.01,), (3.0,), 0.1, 6))
    made = distill({**base, "guidance": {"scale": "auto"}}, tmp_path / "a", watcher=hearing(note=heard.append))
    assert recipe_of(made)["guidance"]["scale"] == 0
    assert any("sampled without guidance; give a --scale" in text for text in heard)


@pytest.fixture
def bare(pipeline_folder, tmp_path):
    """A backbone whose card names no layer."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "bare")
    (folder / "card.yaml").write_text("size: 8\nlicence: CC0-1.0\ncfg: 2.0\nscale: 0.1\nunit: step\n")
    return folder


def test_a_backbone_whose_card_names_no_layer_gets_one_as_auto_chooses_it(base, bare, tmp_path, counted):
    notes = []
    unsaid = {**base, "backbone": {"path": str(bare)}, "guidance": {"reals": 2}}
    made = distill(unsaid, tmp_path / "a", watcher=hearing(note=notes.append))
    asked = distill({**unsaid, "guidance": {"reals": 2, "layer": "auto"}}, tmp_path / "b")
    assert counted["layer"] == 2 and torch.equal(pixels(made), pixels(asked))
    assert recipe_of(made)["guidance"]["layer"] == recipe_of(asked)["guidance"]["layer"]
    (told,) = [note for note in notes if "guidance.layer of dap is" in note]
    assert "bare names no layer; --layer names another" in " ".join(told.split())
    assert made.noted("chosen.json")["choices"][0]["field"] == "guidance.layer"
    again = distill(tmp_path / "a" / "recipe.json", tmp_path / "c")
    assert counted["layer"] == 2 and torch.equal(pixels(made), pixels(again))


def test_a_set_begun_under_another_default_layer_says_how_to_go_on(base, bare, tmp_path, capsys):
    """Earlier versions took the middle layer of such a backbone, so their sets have this layer and no choice beside."""
    out = tmp_path / "old"
    unsaid = {**base, "backbone": {"path": str(bare)}, "guidance": {"reals": 2}}
    begun = distill({**unsaid, "guidance": {"reals": 2, "layer": "1"}}, out)
    before = pixels(begun)
    assert not (out / "chosen.json").exists()
    chosen = recipe_of(distill(unsaid, tmp_path / "new"))["guidance"]["layer"]
    assert chosen != "1", "the layer that would be chosen now is another one"
    for image in sorted(out.glob("images/*/*.png"))[3:]:
        image.unlink()
    with pytest.raises(DapError, match=f'What changed: guidance.layer: "1" -> "{chosen}"') as refused:
        distill(unsaid, out)
    (command,) = re.findall(r"as dap (distill .*) does, or another --out", str(refused.value))
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert torch.equal(pixels(DistilledSet.open(out)), before) and not DistilledSet.open(out).missing()


def test_nothing_is_chosen_where_no_layer_matters_or_one_is_named(base, bare, tmp_path, counted):
    for n, change in enumerate(
        (
            {"method": "vanilla", "guidance": None},
            {"guidance": {"reals": 2, "layer": "1"}},
            {"guidance": {"reals": 2, "scale": 0}},
            {"backbone": base["backbone"], "guidance": {"reals": 2}},  # its card.yaml names one
        )
    ):
        distill({**base, "backbone": {"path": str(bare)}, "ipc": 1, **change}, tmp_path / str(n))
    assert counted["layer"] == 0


def test_too_few_images_for_a_choice_that_nobody_asked_for(base, bare, tmp_path, counted):
    for name in ("red", "green"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(f"{base['data']['path']}/train/{name}/{i}.png", tmp_path / "few" / name)
    notes = []
    recipe = {
        **base,
        "data": {"path": str(tmp_path / "few")},
        "backbone": {"path": str(bare)},
        "guidance": {"reals": 2},
    }
    made = distill(recipe, tmp_path / "a", watcher=hearing(note=notes.append))
    assert recipe_of(made)["guidance"]["layer"] == "1"  # the middle of three
    (told,) = [note for note in notes if "so its middle one, 1, is taken" in note]
    assert "name a layer instead of auto" in told
    with pytest.raises(DapError, match="name a layer instead of auto"):
        distill({**recipe, "guidance": {"reals": 2, "layer": "auto"}}, tmp_path / "b")
    distill({**recipe, "guidance": {"reals": 2, "layer": "2"}}, tmp_path / "c")  # the advice


def test_which_layers_are_guessed(bare, tmp_path):
    from dap.backbones.cards import Found
    from dap.backbones.converting.convert import convert

    known = ["DiT-XL-2-256", "DiT-XL-2-512"]
    assert not any(Found(f"facebook/{name}").card("dit", size=256, layer="0").guessed for name in known)
    sd = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1-base"]
    assert not any(Found(name).card("unet", size=512, layer="mid").guessed for name in sd)
    assert Found("someone/else").card("unet", size=512, layer="mid").guessed
    assert not backbones.load("starter").card.guessed and not backbones.load("starter-unet").card.guessed
    written = yaml.safe_load((convert(bare, tmp_path / "out") / "card.yaml").read_text())
    assert "layer" not in written and "guessed" not in written
    assert backbones.load(str(tmp_path / "out")).card.guessed
