"""The tool chooses: a method for any folder, within a budget, once; and it says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dap
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.sections import choices
from dap.evaluation.report.summary import full_seconds
from dap.methods.matching.dm import Dm
from dap.recipe import Recipe
from dap.verbs.distill import distill, open_workshop
from dap.verbs.options import Judging, Machine
from dap.verbs.picking import budget, deciding, fitting, picked, words
from dap.verbs.picking.budget import rounded, seconds_of, written
from dap.verbs.planning import roughly
from dap.verbs.planning.grids import planned_set
from dap.verbs.planning.hour import Hourglass
from dap.verbs.planning.rates import Rate, of_iterations
from watching import hearing

NAMES = ("hats & caps", "socks", "ties")
"""Classes that no shipped backbone knows."""


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A folder of three classes that no backbone knows, with 6 images of 16 px each."""
    folder = tmp_path_factory.mktemp("strange")
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(NAMES):
        (folder / name).mkdir()
        for i in range(6):
            pixels = torch.randint(0, 100, (16, 16, 3), generator=generator)
            pixels[..., label] += 150
            Image.fromarray(pixels.byte().numpy()).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def no_other_backbones(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(fitting.VARIABLE, raising=False)


@pytest.fixture
def backbone(pipeline_folder, tmp_path, monkeypatch) -> Path:
    """The one backbone of a folder of its own, which the environment names."""
    folder = tmp_path / "backbones" / "mine"
    shutil.copytree(pipeline_folder, folder)
    monkeypatch.setenv(fitting.VARIABLE, str(folder.parent))
    return folder


@pytest.fixture
def rate(monkeypatch):
    """A measured rate of `dm` that a test says: 1 s, and 10 s for an iteration."""
    asked = []

    def measured(method, task):
        asked.append(task.options.real_batch)
        return Rate(1.0, 10.0)

    monkeypatch.setattr(deciding, "of_iterations", measured)
    monkeypatch.setattr(budget, "of_iterations", measured)
    return asked


def made_of(out: Path) -> dict[str, bytes]:
    """The files of a set that its images and its recipe are."""
    files = [out / "recipe.json", out / "inputs.json", out / "classes.json", *sorted(out.glob("images/**/*.png"))]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def command(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dap", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **env})


def test_the_command_alone_makes_a_set_of_any_folder_and_says_why(strange, tmp_path, capsys):
    out = tmp_path / "set"
    done = command("distill", "--data", strange, "--ipc", 1, "--budget", "4s", "--out", out)
    assert done.returncode == 0, done.stderr
    made = DistilledSet.open(out)
    assert len(made) == 3 and made.verify() == [] and "3 images in" in done.stdout
    assert made.recipe is not None and made.recipe["method"] in ("dm", "random")
    told = " ".join(done.stderr.split())
    assert (
        f"Method {made.recipe['method']}" in told and "starter does not know 'hats & caps' and 2 other classes" in told
    )
    assert "train-backbone --data" in told and "--backbone DIR" in told
    assert all(len(line) <= 100 or str(strange) in line for line in done.stderr.splitlines())

    before = made_of(out)
    next(out.glob("images/*/*.png")).unlink()
    again = ["distill", "--data", str(strange), "--ipc", "1", "--seed", "0", "--out", str(out)]  # 0 is the default
    assert main(again) == 0 and "As chosen when this set began" in capsys.readouterr().err
    assert made_of(out) == before


def test_a_rate_and_a_budget_settle_the_iterations_and_the_set_is_that_of_the_flags(
    strange, tmp_path, monkeypatch, rate
):
    monkeypatch.setattr(deciding, "LEAST", 2)
    notes = []
    made = distill(
        {"data": {"path": str(strange)}, "ipc": 2}, tmp_path / "a", budget="45s", watcher=hearing(note=notes.append)
    )
    assert made.recipe is not None and made.recipe["method"] == "dm" and made.recipe["options"]["iterations"] == 4
    assert rate == [deciding.BATCH]
    (told,) = [note for note in notes if note.startswith("Method")]
    assert "Method dm with 4 iterations" in told and "41 s" in told and max(map(len, told.splitlines())) <= 100
    kept = made.noted("chosen.json")["choices"]
    assert [(one["field"], one["value"]) for one in kept] == [
        ("method", "dm"),
        ("options.iterations", 4),
        ("options.real_batch", deciding.BATCH),
    ]
    assert kept[0]["limit"] == 45 and "Method dm" in kept[0]["warning"] and kept[0]["candidates"] == ["dm", "random"]
    lines = choices(group_sets(load([made.path])))
    took = f"; a set took {full_seconds(made.noted('cost.json')):,.0f} s."
    assert [line.partition(": ")[2] for line in lines[::2] + lines[-1:]] == [
        "dap chose method = dm by the classes and the time, within 45 s. Expected time: about 41 s with dm" + took,
        "dap chose options.iterations = 4 by the classes and the time, within 45 s. Expected time: about 41 s with 4"
        + took,
        f"dap chose options.real_batch = {deciding.BATCH} by the classes and the time, within 45 s.",
    ]

    options = {"iterations": 4, "real_batch": deciding.BATCH}
    distill({"method": "dm", "data": {"path": str(strange)}, "ipc": 2, "options": options}, tmp_path / "b")
    assert made_of(tmp_path / "a") == made_of(tmp_path / "b")


def test_a_run_that_was_killed_before_its_first_image_does_not_choose_anew(strange, tmp_path, monkeypatch, rate):
    monkeypatch.setattr(deciding, "LEAST", 2)
    out, recipe = tmp_path / "set", {"data": {"path": str(strange)}, "ipc": 1}

    class Killed(BaseException): ...

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dap.verbs.distill.make_alone", killed)
        with pytest.raises(Killed):
            distill(recipe, out, budget="35s")
    made = distill(recipe, out, budget="65s")
    assert made.recipe is not None and made.recipe["options"]["iterations"] == 3 and len(rate) == 1


def test_without_a_budget_the_usual_number_is_not_exceeded(strange, tmp_path, monkeypatch):
    monkeypatch.setattr(deciding, "ENOUGH", 25)
    made = dap.distill(source=strange, ipc=1, out=tmp_path / "a")
    assert made.recipe is not None and made.recipe["method"] == "dm" and made.recipe["options"]["iterations"] == 25

    images = {name: [Image.open(file) for file in sorted((strange / name).iterdir())] for name in NAMES}
    made = dap.distill(source=images, ipc=1, out=tmp_path / "b")
    assert made.recipe is not None and made.recipe["method"] == "dm"


def test_too_slow_for_dm_means_real_images(strange, tmp_path, monkeypatch, rate):
    notes = []
    watcher = hearing(note=notes.append)
    made = distill({"data": {"path": str(strange)}, "ipc": 1}, tmp_path / "a", budget="45s", watcher=watcher)
    assert made.recipe is not None and made.recipe["method"] == "random"
    told = " ".join(notes[-1].split())
    assert "dm would need about 2 min for 10 iterations, and fewer were not tried" in told
    assert "A longer --budget makes dm possible." in told


def test_images_that_memory_does_not_hold_are_not_optimised(strange, tmp_path, monkeypatch, rate):
    monkeypatch.setattr(deciding, "memory_budget", lambda: 1000)
    made = distill({"data": {"path": str(strange)}, "ipc": 1}, tmp_path / "a")
    assert made.recipe is not None and made.recipe["method"] == "random" and not rate


def test_a_class_with_too_few_images_is_named(strange, tmp_path):
    with pytest.raises(DapError, match=r"Class 'hats & caps' has 6 images, and a set of 7 .* Give --ipc 6 or less"):
        distill({"data": {"path": str(strange)}, "ipc": 7}, tmp_path / "a")


def test_an_explicit_method_is_obeyed_and_a_budget_bounds_its_work(strange, tmp_path, rate):
    recipe = {"method": "dm", "data": {"path": str(strange)}, "ipc": 1}
    notes = []
    made = distill(recipe, tmp_path / "a", budget="31s", watcher=hearing(note=notes.append))
    assert made.recipe is not None and made.recipe["options"]["iterations"] == 3 and rate == [256]
    assert any("dm with 3 of iterations, of 20,000 without a budget" in note for note in notes)
    made = distill({**recipe, "options": {"iterations": 2}}, tmp_path / "b", budget="31s")
    assert made.recipe is not None and made.recipe["options"]["iterations"] == 2  # what was said by hand stays
    made = distill({**recipe, "method": "random"}, tmp_path / "c", budget="31s")
    assert made.recipe is not None and made.recipe["method"] == "random"
    with pytest.raises(DapError, match="No budget can be kept for mtt"):
        distill({**recipe, "method": "mtt"}, tmp_path / "d", budget="31s")


def test_a_budget_bounds_the_steps_of_a_backbone(colours, pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "rate_of", lambda method, task, field: Rate(2.0, 1.0))
    recipe = {"method": "vanilla", "ipc": 1, "data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}}
    made = distill(recipe, tmp_path / "a", budget="14s")
    assert made.recipe is not None and made.recipe["sampling"]["steps"] == 12
    made = distill({**recipe, "method": "auto", "refine": {"reals": 4}}, tmp_path / "b", budget="25s")
    assert made.recipe is not None and made.recipe["refine"]["steps"] == 23
    made = distill({**recipe, "seed": 1}, tmp_path / "c", budget="5s")
    assert made.recipe is not None and made.recipe["sampling"]["steps"] == 10  # the least that makes sense


def test_real_rates_of_a_backbone_grow_with_the_steps(colours, pipeline_folder):
    recipe = {"method": "vanilla", "ipc": 1, "data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}}
    workshop = open_workshop(Machine())
    method, task = workshop.task(Recipe.parse(recipe))
    rate = budget.rate_of(method, task, "sampling.steps")
    assert 0 < rate.each < 5 and rate.seconds(50) > rate.seconds(10) > 0


def test_the_trial_of_iterations_is_that_of_the_iterations(strange, monkeypatch):
    """Doubling the work of an iteration is seen, and a trial keeps nothing."""
    recipe = {"method": "dm", "ipc": 1, "data": {"path": str(strange)}, "options": {"width": 8}}
    workshop = open_workshop(Machine())
    now = [0.0]
    method, task = workshop.task(Recipe.parse(recipe))
    assert isinstance(method, Dm)
    step = Dm.step

    def timed(self, run, iteration):
        now[0] += 0.5 * len(run.task.source.class_names)
        yield from step(self, run, iteration)

    monkeypatch.setattr(Dm, "step", timed)
    monkeypatch.setattr("dap.verbs.planning.rates.time.perf_counter", lambda: now[0])
    assert of_iterations(method, task).each == pytest.approx(0.5 * 3)
    monkeypatch.setattr("dap.verbs.planning.rates.CLASSES", 1)  # fewer classes are tried, and the time is that of all
    assert of_iterations(method, task).each == pytest.approx(0.5 * 3)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2min", 120), (45, 45)])
def test_budgets_are_times(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(written(seconds)) == seconds


@pytest.mark.parametrize("text", ["ten", "10", "-5m", "0s", "1e3s", "10 weeks", "99999999999h", "nan", "5mm"])
def test_a_wrong_budget_is_one_sentence(text, strange, tmp_path, capsys):
    from dap.cli.main import main

    words = ["distill", "--data", str(strange), "--ipc", "1", f"--budget={text}", "--out", str(tmp_path / "a")]
    assert main(words) == 1
    assert "--budget takes a time such as 90s, 10m or 1h" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_rounding_never_exceeds_what_fits():
    assert [rounded(n) for n in (0, 7, 99, 123, 1999, 20_000)] == [0, 7, 99, 120, 1900, 20_000]
    assert Rate(1, 10).pieces(0.5) == 0 and Rate(1, 10).pieces(21) == 2


def test_a_dry_run_tells_the_choice_and_makes_nothing(strange, tmp_path, rate, monkeypatch):
    monkeypatch.setattr(deciding, "LEAST", 2)
    monkeypatch.setattr("dap.verbs.planning.estimate.of_iterations", lambda method, task: Rate(1.0, 10.0))
    recipe = Recipe.parse({"data": {"path": str(strange)}, "ipc": 1})
    (found,) = planned_set(recipe, tmp_path / "a", budget="45s")
    assert found.seconds == 41 and found.left == 3 and not (tmp_path / "a").exists()


def test_a_backbone_of_this_machine_that_knows_the_images_is_taken(colours, backbone, tmp_path, monkeypatch):
    """Found by the environment; an untrained one, which knows the names, is not taken."""
    data, workshop = Recipe.parse({"data": {"path": str(colours)}}).data, open_workshop(Machine())
    looked = fitting.looked_at(data, workshop)
    assert [one.fits for one in looked if one.path == str(backbone)] == [False]
    assert "has never seen such images" in looked[0].why and looked[-1].path == "starter-unet"

    monkeypatch.setattr(fitting, "strangeness", lambda backbone, images, names: 0.3)
    (one,) = fitting.looked_at(data, workshop)
    assert one.fits and one.path == str(backbone)
    notes = []
    recipe = {"data": {"path": str(colours)}, "ipc": 1}
    made = distill(recipe, tmp_path / "a", watcher=hearing(note=notes.append))
    assert made.recipe is not None and made.recipe["method"] == "auto"
    assert made.recipe["backbone"]["path"] == str(backbone)
    assert any(note.startswith("Method auto on the diffusion model") for note in notes)
    named = {**recipe, "method": "auto", "backbone": {"path": str(backbone)}}
    distill(named, tmp_path / "b")
    assert made_of(tmp_path / "a") == made_of(tmp_path / "b")


def test_a_folder_in_the_hub_s_cache_is_found_without_a_network(colours, pipeline_folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    snapshot = cache / "models--me--mine" / "snapshots" / ("a" * 40)
    shutil.copytree(pipeline_folder, snapshot)
    (cache / "models--me--mine" / "refs").mkdir()
    (cache / "models--me--mine" / "refs" / "main").write_text("a" * 40)
    assert fitting._of_hub() == [("me/mine", snapshot)]
    monkeypatch.setattr(fitting, "strangeness", lambda backbone, images, names: 0.3)
    looked = fitting.looked_at(Recipe.parse({"data": {"path": str(colours)}}).data, open_workshop(Machine()))
    assert looked[-1].path == "me/mine" and looked[-1].fits


def test_fashion_mnist_has_the_default_of_before(tmp_path):
    workshop = open_workshop(Machine())
    found = deciding.decided(Recipe(), workshop, None)
    assert found.values == {"method": "auto"} and "starter: it was trained on these images" in found.told
    chosen = picked.picked(Recipe(ipc=1), workshop, tmp_path / "a", hearing())
    assert workshop.task(chosen.recipe)[1].recipe == workshop.task(Recipe(ipc=1))[1].recipe


def test_a_backbone_that_was_given_and_does_not_know_the_classes_is_still_an_error(strange, pipeline_folder, tmp_path):
    recipe = {"data": {"path": str(strange)}, "ipc": 1, "backbone": {"path": str(pipeline_folder)}}
    with pytest.raises(DapError, match=r"was not trained on 'hats & caps'.*dap train-backbone"):
        distill(recipe, tmp_path / "a")


def test_an_hour_is_told_once_and_how_to_do_with_less(monkeypatch):
    now, notes = [0.0], []
    monkeypatch.setattr("dap.verbs.planning.hour.time.monotonic", lambda: now[0])
    glass = Hourglass(hearing(note=notes.append))
    for done in range(1, 6):
        glass.work("dm: iterations", done, 20_000)
        now[0] += 15
    assert len(notes) == 1 and "about 83 h" in notes[0] and "--budget" in notes[0] and "Ctrl-C" in notes[0]
    assert max(map(len, notes[0].splitlines())) <= 100

    notes.clear()
    short = Hourglass(hearing(note=notes.append))
    for done in range(1, 6):
        short.work("dm: iterations", done, 100)
        now[0] += 15
    assert not notes


def test_an_hour_is_not_told_of_the_time_between_two_trainings_of_one_name(monkeypatch):
    now, notes = [0.0], []
    monkeypatch.setattr("dap.verbs.planning.hour.time.monotonic", lambda: now[0])
    glass = Hourglass(hearing(note=notes.append))
    for _ in range(2):  # two cells of a grid, between which a set is made
        for done in range(1, 51):
            now[0] += 1
            glass.epoch(0, done, 50)
        now[0] += 300
    assert not notes


@pytest.mark.parametrize(("one", "several"), [(50.0, 50.0), (50.0, 1.0), (1.0, None)])
def test_an_hour_of_a_backbone_is_told_before_the_first_image(
    one, several, colours, pipeline_folder, tmp_path, monkeypatch
):
    """Seconds of a pass of one image, and of an image among several. Nobody times several where one is fast enough."""

    def paces(backbone, quickly=False):
        return (one if quickly else several, 0.1, 0.1)

    monkeypatch.setattr("dap.verbs.planning.hours.SMALL", 0)
    monkeypatch.setattr("dap.verbs.planning.hours.paces", paces)
    monkeypatch.setattr("dap.verbs.planning.roughly.paces", paces)
    events = []
    watcher = hearing(note=events.append, images=lambda *told: events.append("images"))
    recipe = {"method": "vanilla", "ipc": 1, "data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}}
    distill(recipe, tmp_path / "a", watcher=watcher)
    found = [event for event in events if event.startswith("This will take about")]
    if several != 50:
        assert not found
        return
    (told,) = found
    assert "4.2 h" in told and "--budget 30m" in told and events.index(told) < events.index("images")


def test_chosen_notes_can_be_read_again(strange, tmp_path, monkeypatch, rate):
    monkeypatch.setattr(deciding, "LEAST", 2)
    distill({"data": {"path": str(strange)}, "ipc": 1}, tmp_path / "a", budget="35s")
    said = json.loads((tmp_path / "a" / "chosen.json").read_text())
    assert {one["by"] for one in said["choices"]} == {picked.BY}
    notes = []
    distill({"data": {"path": str(strange)}, "ipc": 1}, tmp_path / "a", budget="1h", watcher=hearing(note=notes.append))
    assert any("another --budget needs another --out" in " ".join(note.split()) for note in notes)


def test_compare_leaves_out_what_needs_a_backbone_that_is_not_there(strange, tmp_path, monkeypatch, rate):
    monkeypatch.setattr("dap.verbs.picking.compared.LEAST", 2)
    monkeypatch.setattr("dap.verbs.picking.compared.ENOUGH", 3)
    notes, out = [], tmp_path / "compared"
    base = {"data": {"path": str(strange), "split": {"train": ".", "test": "."}}, "ipc": 1}
    grids = []
    monkeypatch.setattr("dap.verbs.compare.run_grid", lambda cells, *args: grids.append(cells))
    dap.compare(base, None, (), 2, out, watcher=hearing(note=notes.append))
    (cells,) = [dict(grid.cells) for grid in grids]
    assert [Path(name).parent.name for name in cells][::2] == ["method=random_ipc=1", "method=dm_ipc=1"]
    assert cells["method=dm_ipc=1/seed1"].options == {"iterations": 3, "real_batch": deciding.BATCH}
    (told,) = [" ".join(note.split()) for note in notes if note.startswith("Compared are")]
    assert "random, dm with 3 iterations" in told and "Methods that sample a diffusion model are left out" in told
    assert "--classifier FILE" in told

    monkeypatch.setattr("dap.verbs.picking.compared.ENOUGH", 30)  # a resumed comparison measures nothing anew
    dap.compare(base, None, (), 2, out)
    assert grids[1].cells == grids[0].cells and len(rate) == 1
    dap.compare({**base, "classifier": "torchvision:resnet18"}, None, (), 1, out)
    assert {recipe.method for _, recipe in grids[2].cells} == {"random", "herding", "rded", "dm"}


def test_compare_keeps_its_methods_where_a_backbone_is_given_or_fits(colours, pipeline_folder, tmp_path, monkeypatch):
    from dap.verbs.picking.compared import METHODS, methods_for

    base = {"data": {"path": str(colours)}}
    assert methods_for({}, (), tmp_path / "a").methods == METHODS  # fashion-mnist
    given = {**base, "backbone": {"path": str(pipeline_folder)}}
    assert methods_for(given, (), tmp_path / "a").base == given
    monkeypatch.setenv(fitting.VARIABLE, str(pipeline_folder))
    monkeypatch.setattr(fitting, "strangeness", lambda backbone, images, names: 0.3)
    found = methods_for(base, (), tmp_path / "a")
    assert found.methods == METHODS and found.base == given and not (tmp_path / "a").exists()


def test_the_table_of_methods_fits_a_terminal_and_tells_the_cost_for_a_folder(colours, pipeline_folder, capsys):
    from dap.cli.main import main
    from dap.methods import METHODS
    from dap.methods.catalogue import WHEN

    assert set(WHEN) == set(METHODS)
    assert main(["methods"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    words = ["methods", "--data", str(colours), "--ipc", "1", "--backbone", str(pipeline_folder), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert found["random"]["seconds"] > 0 and found["vanilla"]["seconds"] > 0 and found["mtt"]["seconds"] is None
    assert found["dap"]["seconds"] > found["vanilla"]["seconds"]  # the real images are looked at too
    assert found["dm"]["seconds"] > 20 and found["herding"]["seconds"] is None  # there is no classifier
    assert main(words[:-1]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if len(line) > 100] == []
    assert "for this folder on this machine" in told


@pytest.mark.parametrize(("ipc", "said"), [(10, False), (49, False), (50, True), (100, True)])
def test_with_many_images_per_class_the_reason_says_that_real_images_may_do_better(ipc, said):
    told = words.of_backbone(fitting.Looked("starter", True, "knows these classes"), None, 60.0, ipc)
    assert "Method auto on the diffusion model starter: it knows these classes." in told
    assert ("--method herding" in told and f"With {ipc} images per class" in told) == said


def test_a_first_pass_that_other_work_slows_down_does_not_make_the_time_of_a_set(monkeypatch):
    def told(*taken: float, few: int = 8) -> tuple[float, int]:
        clock = iter(taken)
        asked = list[int]()

        def timed(work, device) -> float:
            work()
            return next(clock)

        monkeypatch.setattr(roughly, "_timed", timed)
        pace = roughly._pace(asked.append, torch.device("cpu"), few)
        assert list(clock) == []
        return pace, len(asked)

    assert told(3.0, 0.04, 0.4, 0.16) == (0.02, 4)  # slow once, then fast: several together are timed
    assert told(3.0, 2.0) == (2.0, 2)
    assert told(0.03, 0.16, 0.4) == (0.02, 3)
    assert told(90.0) == (90.0, 1)  # another such pass would take too long
    assert told(3.0, 0.04, few=1) == (0.04, 2)


def test_a_misspelt_network_and_protocol_are_told_before_the_images_are_looked_at(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("dap.verbs.picking.compared.looked_at", lambda *_: pytest.fail("the images were looked at"))
    for wrong in ({"networks": ("convnet33x",)}, {"protocol": "quick-hardd"}):
        with pytest.raises(DapError, match="convnet33x|quick-hardd"):
            dap.compare({"data": {"path": str(colours)}}, None, (), 1, tmp_path / "a", judging=Judging(**wrong))
