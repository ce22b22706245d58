"""Recipes: closed, explained, and resolved once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dap
from dap.base.errors import DapError
from dap.methods import METHODS, SUMMARIES, find, plan
from dap.recipe import Recipe, overlaid
from dap.verbs.compare import grid
from dap.workshop import Workshop


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"metod": "dap"}, "Unknown key 'metod'. Did you mean 'method'"),
        ({"guidance": {"scal": 1}}, "Unknown key 'guidance.scal'. Did you mean 'scale'"),
        ({"ipc": 0}, "ipc: the value should be greater than or equal to 1"),
        ({"guidance": {"scale": -1}}, "guidance.scale"),
        ({"guidance": {"scale": float("nan")}}, "guidance.scale"),
        ({"guidance": {"targets": "slots"}}, "'class' or 'slot'"),
        ({"sampling": {"cfg_channels": "some"}}, "sampling.cfg_channels"),
    ],
)
def test_mistakes_name_the_field(values, says):
    with pytest.raises(DapError, match=says):
        Recipe.parse(values)


def test_yaml(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("method: dap\nguidance: {scale: 0.1, layer: 4}\nexpected: {note: none published}\n")
    recipe = Recipe.parse(Recipe.load(file))
    assert recipe.guidance.layer == "4" and recipe.guidance.scale == 0.1
    with pytest.raises(DapError, match="There is no recipe file"):
        Recipe.load(tmp_path / "none.yaml")
    file.write_text("a: [")
    with pytest.raises(DapError, match="not YAML"):
        Recipe.load(file)
    file.write_text("just text")
    with pytest.raises(DapError, match="mapping"):
        Recipe.load(file)


def test_the_shipped_recipes_parse():
    files = sorted((Path(dap.__file__).parent / "recipes").glob("*.yaml"))
    assert files
    for file in files:
        assert Recipe.parse(Recipe.load(file), file.name).method in METHODS


def test_resolved_fills_the_card_s_choices(backbone):
    recipe = Recipe.parse({"guidance": {"reals": 3}}).resolved(backbone, find("dap").guidance, 8)
    assert (recipe.guidance.layer, recipe.guidance.scale, recipe.guidance.unit) == ("1", 0.1, "step")
    assert (recipe.sampling.cfg, recipe.sampling.cfg_channels, recipe.guidance.reals) == (2.0, 3, 3)
    assert Recipe.parse(recipe.values()).resolved(backbone, find("dap").guidance, 8) == recipe


def test_the_method_s_defaults_lie_between_card_and_user(backbone):
    slots = find("dap-slots").guidance
    assert Recipe.parse({}).resolved(backbone, slots, 8).guidance.targets == "slot"
    assert Recipe.parse({"guidance": {"targets": "class"}}).resolved(backbone, slots, 8).guidance.targets == "class"


def test_a_baseline_never_sees_the_method_s_options(backbone):
    with pytest.raises(DapError, match="no guidance, so these options mean nothing to it: scale"):
        Recipe.parse({"method": "vanilla", "guidance": {"scale": 1.0}}).resolved(backbone, find("vanilla").guidance, 8)
    plain = Recipe.parse({"method": "random"}).resolved(None, None, 8)
    assert plain.values()["sampling"] is None
    with pytest.raises(DapError, match="Method 'random' uses recipe.sampling, so its `needs` must name \"backbone\""):
        _ = plain.sampling


def test_the_size_is_part_of_the_recipe(backbone):
    assert Recipe.parse({"method": "random"}).resolved(None, None, 8).data.size == 8
    assert Recipe.parse({"data": {"size": 64}}).resolved(None, None, 8).data.size == 64
    with pytest.raises(DapError, match="makes images of 8 px, not 64"):
        Recipe.parse({"data": {"size": 64}}).resolved(backbone, {}, 8)


def test_all_slots_of_a_class_form_one_block_under_repulsion(backbone):
    slots = find("dap-slots").guidance
    assert Recipe.parse({"ipc": 50}).resolved(backbone, slots, 8).block == 50
    assert Recipe.parse({"ipc": 50}).resolved(backbone, {}, 8).block == 10
    with pytest.raises(DapError, match="with unit 'paper' give a scale"):
        Recipe.parse({"guidance": {"unit": "paper"}}).resolved(backbone, slots, 8)


def test_a_scale_without_its_unit_is_not_reinterpreted(backbone):
    with pytest.raises(DapError, match="with unit 'paper' give a scale"):
        Recipe.parse({"guidance": {"unit": "paper"}}).resolved(backbone, {}, 8)


def test_the_plan_is_a_function_of_the_recipe_and_grows(backbone):
    small, large = plan(3, 10, 10), plan(3, 30, 10)
    assert set(small) <= set(large) and len(large) == 9
    assert [u.slots for u in plan(1, 7, 3)] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_unknown_method_lists_the_known():
    with pytest.raises(DapError, match="Did you mean 'dap-slots'"):
        find("dap-slot")
    with pytest.raises(DapError, match="is not a method"):
        find("dap.kernels:Linear")


def test_a_grid_of_recipes():
    cells = dict(grid({"method": "dap", "seed": 4}, {"guidance.scale": [0, "0.5"], "guidance.layer": [1]}, 2))
    assert list(cells) == [
        "scale=0_layer=1/seed4", "scale=0_layer=1/seed5", "scale=0.5_layer=1/seed4", "scale=0.5_layer=1/seed5",
    ]  # fmt: skip
    assert cells["scale=0.5_layer=1/seed5"].guidance.scale == 0.5 and cells["scale=0_layer=1/seed4"].seed == 4


@pytest.mark.parametrize("module", ["dap.recipe", "dap.choices", "dap.methods", "dap.base.registry"])
def test_recipes_and_the_names_of_methods_are_read_without_torch(module):
    """In a process of its own, since this one has imported everything long ago."""
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'diffusers', 'scipy') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_every_method_is_found_by_name_and_told_in_one_line():
    assert METHODS.keys() == SUMMARIES.keys()
    for name, method in METHODS.items():
        assert type(find(name)) is method
        assert len(SUMMARIES[name]) < 90 and "\n" not in SUMMARIES[name]


@pytest.mark.parametrize(
    ("keyword", "section", "beside"),
    [
        ("data", {"path": "fashion-mnist", "held_out": 0.1}, "data='fashion-mnist', held_out=0.1"),
        ("backbone", {"path": "starter", "dtype": "float32"}, "backbone='starter', dtype='float32'"),
    ],
)
def test_a_section_in_place_of_one_field_is_told_how_to_be_given(keyword, section, beside):
    with pytest.raises(DapError, match=f"takes {keyword}.path alone.*: {re.escape(beside)}[.]"):
        overlaid({}, {keyword: section})


def test_a_stated_value_is_not_taken_for_the_one_that_the_method_decides():
    """In one workshop, the values of two recipes are equal, but `dap-slots` has targets of its own where none are stated."""
    shop = Workshop("cpu", offline=True)
    left, stated = (Recipe.parse({"method": "dap-slots", "guidance": g}) for g in ({}, {"targets": "class"}))
    assert left == stated
    found = [shop.task(one)[1].recipe.run.guidance.targets for one in (left, stated)]
    assert found == ["slot", "class"]
