"""The shipped recipes: found by name, checked, true to the paper's figures, and each run through its smoke twin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dap import imagenet as ids
from dap import shipped
from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.training.networks import KNOWN
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop

RECIPES = [name for name in shipped.names() if not name.startswith("smoke/")]
PAPER = [
    *(f"{data}-dit-ipc{ipc}" for data in ("imagenet1k", "imagenette", "imagewoof") for ipc in (10, 50, 100)),
    *(f"imagenet1k-sd-ipc{ipc}" for ipc in (10, 50, 100)),
]
MAY_DIFFER = {"ipc", "sampling.steps", "guidance.reals", "data.classes", "backbone.dtype"}


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted names to values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def values(recipe: str, backbone: str | Path, data: str | Path) -> dict[str, Any]:
    """A recipe's values as the flags --backbone and --data would leave them, for ImageNet's."""
    loaded = Recipe.load(recipe)
    if loaded["data"]["path"] == "imagenet":
        loaded["data"]["path"], loaded["backbone"]["path"] = str(data), str(backbone)
    return loaded


def test_the_recipes_of_the_paper_are_there_and_each_has_a_twin():
    assert set(PAPER) <= set(RECIPES)
    assert {f"smoke/{name}" for name in RECIPES} == {n for n in shipped.names() if n.startswith("smoke/")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_is_its_recipe_made_small(name):
    whole, twin = Recipe.load(name), Recipe.load(f"smoke/{name}")
    assert "expected" not in shipped.read(f"smoke/{name}")  # a twin reproduces nothing
    a, b = ({k: v for k, v in flat(r).items() if k not in MAY_DIFFER} for r in (whole, twin))
    assert a == b
    recipe, small = Recipe.parse(whole), Recipe.parse(twin)
    assert small.ipc == 2 < recipe.ipc and 2 <= len(small.data.classes) <= 3
    if recipe.data.classes:
        assert small.data.classes == recipe.data.classes[: len(small.data.classes)]
    if recipe.method != "random":
        assert small.sampling.steps < 5 < recipe.sampling.steps == 50


@pytest.mark.parametrize("name", PAPER)
def test_what_the_recipes_of_the_paper_say(name):
    data, kind, ipc = name.rsplit("-", 2)
    recipe = Recipe.parse(Recipe.load(name))
    assert (recipe.method, f"ipc{recipe.ipc}", recipe.data.path) == ("dap", ipc, "imagenet")
    assert recipe.data.classes == ids.subset(data)
    assert (recipe.sampling.steps, recipe.sampling.solver) == (50, "ddpm")
    if kind == "dit":
        assert recipe.backbone.path == "facebook/DiT-XL-2-256"
        assert (recipe.sampling.cfg, recipe.sampling.cfg_channels) == (4.0, 3)
        assert (recipe.guidance.scale, recipe.guidance.unit, recipe.guidance.kernel) == (1.0, "paper", "linear")
    else:
        assert recipe.backbone.path == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        assert recipe.guidance is None  # the card's, since the paper names none


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("imagenette-dit-ipc10", {"convnet6": (64.8, 0.8), "resnetap10": (67.8, 1.2), "resnet18": (66.4, 0.5)}),
        ("imagenette-dit-ipc50", {"convnet6": (82.2, 1.6), "resnetap10": (82.3, 0.7), "resnet18": (82.8, 1.1)}),
        ("imagenette-dit-ipc100", {"convnet6": (85.7, 1.3), "resnetap10": (86.0, 2.1), "resnet18": (85.5, 1.5)}),
        ("imagewoof-dit-ipc10", {"convnet6": (37.6, 0.9), "resnetap10": (41.8, 0.7), "resnet18": (43.9, 0.9)}),
        ("imagewoof-dit-ipc50", {"convnet6": (55.8, 0.4), "resnetap10": (63.3, 0.5), "resnet18": (63.2, 0.7)}),
        ("imagewoof-dit-ipc100", {"convnet6": (62.4, 1.2), "resnetap10": (70.8, 1.4), "resnet18": (71.6, 1.3)}),
    ],
)
def test_the_hard_label_figures(name, cells):
    expected = shipped.expected(name)
    assert {v.network: (v.mean, v.std) for v in expected.values} == cells
    assert {v.labels for v in expected.values} == {"hard"}
    assert all("arXiv 2510.17421 Table 3" in v.source and v.network in KNOWN for v in expected.values)


def test_the_figures_of_imagenet_1k():
    def cells(name: str) -> dict[str, float]:
        expected = shipped.expected(name)
        assert all(v.network == "resnet18" and v.std is None and "2510.17421" in v.source for v in expected.values)
        return {v.labels: v.mean for v in expected.values}

    assert cells("imagenet1k-dit-ipc10") == {"soft": 49.1} and cells("imagenet1k-dit-ipc50") == {"soft": 62.7}
    assert cells("imagenet1k-sd-ipc10") == {"soft": 47.4, "hard": 40.7}
    assert cells("imagenet1k-sd-ipc50") == {"soft": 60.9, "hard": 55.0}
    for kind in ("dit", "sd"):
        none = shipped.expected(f"imagenet1k-{kind}-ipc100")
        assert none.values == () and "gives no value" in none.note
    assert shipped.expected("fashion-mnist-ipc10-dap") is None


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ("null", "expected: give values, or a note that says why there are none"),
        ("{}", "give values, or a note"),
        ("70", "expected: "),
        ("{valeus: []}", "(?i)unknown key 'expected.valeus'. Did you mean 'values'"),
        ("{values: [{network: a, labels: hard, mean: 5, source: s, sdt: 1}]}", "Did you mean 'std'"),
        ("{values: [{network: a, labels: hard, mean: 5}]}", "(?i)the key 'expected.values.0.source' is missing"),
        ("{values: [{network: a, labels: hard, mean: 500, source: s}]}", "expected.values.0.mean: .* 100"),
        ("{values: [{network: a, labels: firm, mean: 5, source: s}]}", "expected.values.0.labels: .*'hard' or 'soft'"),
        (
            "{values: [{network: a, labels: hard, mean: 5, source: s}, {network: a, labels: hard, mean: 6, source: s}]}",
            "two values for the same network and labels",
        ),
    ],
)
def test_a_wrong_expected_section_stops_the_run(tmp_path, expected, says):
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: dap\nexpected: {expected}\n")
    for read in (Recipe.load, shipped.expected):
        with pytest.raises(DapError, match=says) as error:
            read(file)
        assert str(file) in str(error.value)


def test_names_and_files(tmp_path, monkeypatch):
    assert Recipe.load("imagenette-dit-ipc10") == Recipe.load("imagenette-dit-ipc10.yaml")
    with pytest.raises(DapError, match=r"no shipped recipe of that name. Did you mean 'imagenette-dit-ipc10'\?"):
        Recipe.load("imagenete-dit-ipc10")
    with pytest.raises(DapError, match="There is no recipe file .*mine.yaml and no shipped recipe"):
        shipped.expected(tmp_path / "mine.yaml")
    # A file of one's own wins over a shipped recipe of the same name.
    monkeypatch.chdir(tmp_path)
    Path("imagenette-dit-ipc10").write_text("ipc: 3\n")
    assert Recipe.load("imagenette-dit-ipc10") == {"ipc": 3}


@pytest.mark.parametrize("verb", ["distill", "sweep"])
def test_imagenet_has_to_be_given(verb, tmp_path, monkeypatch, capsys):
    """Without --data the run ends before it looks for the backbone, which here would need the network."""
    monkeypatch.chdir(tmp_path)
    assert main([verb, "imagenette-dit-ipc10", "--out", "set"]) == 1
    said = capsys.readouterr().err
    assert "data path imagenet does not exist" in said and "--data FOLDER" in said and said.count("\n") == 1


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop("cpu", offline=True)


@pytest.mark.parametrize("name", RECIPES)
def test_every_twin_runs(name, workshop, imagenet, imagenet_pipeline_folder, sd_folder, tmp_path):
    backbone = sd_folder if "-sd-" in name else imagenet_pipeline_folder
    recipe = Recipe.parse(values(f"smoke/{name}", backbone, imagenet))
    made = distill(recipe, tmp_path / "set", workshop=workshop)
    assert made.class_names == recipe.data.classes and made.ipc == 2 and not made.missing() and not made.verify()
    assert len({record["sha256"] for record in made.records}) == 2 * len(recipe.data.classes)
    written = made.recipe
    assert written["data"]["classes"] == list(recipe.data.classes)
    if "-dit-" in name:
        assert (written["sampling"]["cfg"], written["sampling"]["cfg_channels"]) == (4.0, 3)
        assert (written["guidance"]["scale"], written["guidance"]["unit"]) == (1.0, "paper")
    if "-sd-" in name:
        assert (written["guidance"]["scale"], written["guidance"]["unit"]) == (0.05, "step")
        assert (written["guidance"]["layer"], written["backbone"]["template"]) == ("mid", "a photo of a {}")


def test_the_paper_s_twins_are_guided(workshop, imagenet, imagenet_pipeline_folder, sd_folder, tmp_path):
    """The same seeds unguided give other images, so a twin does exercise the guidance."""
    for name, backbone in (("imagenette-dit-ipc10", imagenet_pipeline_folder), ("imagenet1k-sd-ipc10", sd_folder)):
        chosen = values(f"smoke/{name}", backbone, imagenet)
        guided = distill(Recipe.parse(chosen), tmp_path / name / "dap", workshop=workshop)
        chosen = {k: v for k, v in chosen.items() if k != "guidance"} | {"method": "vanilla"}
        plain = distill(Recipe.parse(chosen), tmp_path / name / "vanilla", workshop=workshop)
        assert [r["seed"] for r in guided.records] == [r["seed"] for r in plain.records]
        assert {r["sha256"] for r in guided.records}.isdisjoint(r["sha256"] for r in plain.records)


def test_a_twin_by_name_on_the_command_line(imagenet, imagenet_pipeline_folder, tmp_path):
    """In a fresh process, as a user would."""
    words = ["--data", str(imagenet), "--out", str(tmp_path), "--backbone", str(imagenet_pipeline_folder)]
    done = subprocess.run(
        [sys.executable, "-m", "dap", "distill", "smoke/imagewoof-dit-ipc10", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    made_of_its_classes("imagewoof-dit-ipc10", tmp_path, done.stdout)


def test_the_twin_of_stable_diffusion_by_name(imagenet, sd_folder, tmp_path, capsys):
    words = ["--data", str(imagenet), "--out", str(tmp_path), "--backbone", str(sd_folder)]
    assert main(["distill", "smoke/imagenet1k-sd-ipc50", *words]) == 0
    made_of_its_classes("imagenet1k-sd-ipc50", tmp_path, capsys.readouterr().out)


def made_of_its_classes(name, out, said):
    written = json.loads((out / "recipe.json").read_text())
    shipped_recipe = Path(shipped.__file__).parent / "recipes" / "smoke" / f"{name}.yaml"
    assert written["data"]["classes"] == yaml.safe_load(shipped_recipe.read_text())["data"]["classes"]
    assert f"{2 * len(written['data']['classes'])} images in" in said
