"""`--dry-run`: the times of trials add up to the time of the whole, and nothing is made."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dap.base.errors import DapError
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.protocol import load_protocol
from dap.methods.base import Made, Method
from dap.objects import Objects
from dap.recipe import Recipe
from dap.verbs.cells import run_grid
from dap.verbs.compare import compare, compared
from dap.verbs.distill import distill
from dap.verbs.options import Judging, Machine
from dap.verbs.planning import estimate, trials
from dap.verbs.planning.estimate import of_set, of_trainings, training_seconds
from dap.verbs.planning.grids import planned_grid, planned_judging, planned_set
from dap.workshop import Workshop
from watching import Clock

QUICK = Judging(protocol="quick-hard", epochs=2, changes={"size": 16, "width": 4, "looks": 1}, trials=2)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    monkeypatch.setattr(trials, "time", clock)
    return clock


def worker(clock, once, unit, step, refining, together):
    """A method that takes known times: once a class, for a unit, for an image's step of sampling, and of refinement."""

    class Worker(Method):
        needs = frozenset({"backbone"})
        guidance = None
        refinement = {"reals": 4}

        def prepare(self, task):
            run = task.recipe.run

            def encode():
                clock.now += once
                return {"x": torch.zeros(1)}

            def make(made):
                task.store.get("once", {"class": made.label}, encode)
                clock.now += unit + len(made.slots) * (step * run.sampling.steps + refining * run.refine.steps)
                return Made(torch.rand(len(made.slots), 3, 8, 8), [{} for _ in made.slots])

            return make

    Worker.together = together
    return Worker()


@pytest.mark.parametrize("together", [True, False])
def test_the_times_of_the_parts_add_up(together, clock, pipeline_folder, colours, tmp_path):
    """Three classes, seven images each: one unit a class, or units of three, three and one."""
    method = worker(clock, once=5.0, unit=2.0, step=0.1, refining=0.3, together=together)
    shop = Workshop("cpu", objects=Objects(method=method))
    asked = {"ipc": 7, "data": {"path": str(colours)}, "backbone": {"path": str(pipeline_folder)}}
    asked |= {"sampling": {"steps": 40}, "refine": {"steps": 90}} | ({} if together else {"block": 3})
    recipe = Recipe.parse({**asked, "method": "x:Worker"})
    found = of_set(recipe, tmp_path / "a", shop)
    images = 21
    units = 3 if together else images / 3  # a unit that is not whole counts as a part of one
    assert found.seconds == pytest.approx(3 * 5 + units * 2 + images * (40 * 0.1 + 90 * 0.3))
    assert (found.pieces, found.left, found.units) == (21, 21, 3 if together else 9)
    assert 100 < found.disk / 21 < 1000 and found.downloads == ()
    assert not (tmp_path / "a").exists()


def recipe(colours, **more):
    return Recipe.parse({"method": "random", "ipc": 4, "block": 2, "data": {"path": str(colours)}, **more})


def test_what_is_there_already_does_not_count(colours, tmp_path):
    made = distill(recipe(colours), tmp_path / "a", workshop=Workshop("cpu"))
    assert of_set(recipe(colours), tmp_path / "a", Workshop("cpu")).left == 0
    (made.path / made.records[5]["path"]).unlink()
    found = of_set(recipe(colours), tmp_path / "a", Workshop("cpu"))
    assert (found.pieces, found.left, found.units) == (12, 2, 1)
    grown = of_set(recipe(colours, ipc=6), tmp_path / "a", Workshop("cpu"))
    assert (grown.pieces, grown.left, grown.units) == (18, 8, 4)


def test_a_backbone_that_is_not_here_is_not_fetched(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "to_download", lambda path, revision, offline: (path, 3 * 10**9))
    asked = recipe(colours, method="vanilla", backbone={"path": "facebook/DiT-XL-2-256"})
    found = of_set(asked, tmp_path / "a", Workshop("cpu"))
    assert found.seconds is None and found.downloads == (("facebook/DiT-XL-2-256", 3 * 10**9),) and found.pieces == 12
    assert "is not on this machine yet" in found.why


def test_training_methods_are_not_guessed(colours, tmp_path):
    found = of_set(recipe(colours, method="mtt"), tmp_path / "a", Workshop("cpu"))
    assert found.seconds is None and "trains something before its first image" in found.why
    few, many = (
        of_set(recipe(colours, method="dm", options={"iterations": n}), tmp_path / "a", Workshop("cpu"))
        for n in (2, 2000)
    )
    assert few.seconds is not None and many.seconds is not None and many.seconds > 50 * few.seconds > 0


def test_what_could_not_be_made_is_told_as_ever(colours, tmp_path):
    with pytest.raises(DapError, match="no class 'mauve'|mauve"):
        of_set(recipe(colours, data={"path": str(colours), "classes": ["mauve"]}), tmp_path / "a", Workshop("cpu"))


REFUSED = {
    "another recipe": lambda folder, colours: distill(recipe(colours, seed=1), folder / "a", workshop=Workshop("cpu")),
    "other files": lambda folder, colours: (folder / "a").mkdir() or (folder / "a" / "notes.txt").write_text("mine"),
    "a file": lambda folder, colours: (folder / "a").write_text("mine"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_distill_refuses_is_refused_in_its_words(what, colours, tmp_path):
    REFUSED[what](tmp_path, colours)
    with pytest.raises(DapError) as wanted:
        distill(recipe(colours), tmp_path / "a", workshop=Workshop("cpu"))
    with pytest.raises(DapError) as found:
        of_set(recipe(colours), tmp_path / "a", Workshop("cpu"))
    assert str(found.value) == str(wanted.value)


def test_a_set_among_the_class_folders_is_refused_before_any_trial(colours, tmp_path, monkeypatch):
    shutil.copytree(colours / "train", tmp_path / "data")
    inner = recipe(tmp_path / "data", backbone={"path": "facebook/DiT-XL-2-256"}, method="vanilla")
    monkeypatch.setattr(estimate, "to_download", lambda path, revision, offline: (path, 3 * 10**9))
    for asked in (recipe(tmp_path / "data"), inner):
        with pytest.raises(DapError, match="would be read as one of its classes"):
            of_set(asked, tmp_path / "data" / "out", Workshop("cpu"))
    base = {"data": {"path": str(tmp_path / "data"), "split": {"train": ".", "test": "."}, "size": 16}}
    cells = compared(base, ["random"], [2], 1, tmp_path / "data" / "g", judging=QUICK)
    for refused in (lambda: planned_grid(cells, machine=Machine()), lambda: run_grid(cells, "x")):
        with pytest.raises(DapError, match="would be read as one of its classes"):
            refused()
    assert not (tmp_path / "data" / "g").exists()


def test_every_cell_of_a_grid_is_checked(colours, tmp_path):
    base = {"data": {"path": str(colours), "classes": ["red", "blue"], "size": 16}}
    cells = compared(base, ["random"], [2], 2, tmp_path / "g", judging=QUICK)
    second = tmp_path / "g" / cells.cells[1][0]
    second.mkdir(parents=True)
    (second / "notes.txt").write_text("mine")
    with pytest.raises(DapError, match="is not empty and holds no recipe.json"):
        planned_grid(cells, machine=Machine())


def test_images_of_a_grid_whose_files_are_gone_are_left(colours, tmp_path):
    base = {"data": {"path": str(colours), "classes": ["red", "blue"], "size": 16}}
    cells = compared(base, ["random"], [4], 2, tmp_path / "g", judging=QUICK)
    _, made = (distill(one, tmp_path / "g" / name, workshop=Workshop("cpu")) for name, one in cells.cells)
    (made.path / made.records[0]["path"]).unlink()
    first = tmp_path / "g" / cells.cells[0][0]
    shutil.rmtree(first)
    assert planned_grid(cells, machine=Machine())[0].left == 8 + 1


def test_a_dry_run_with_a_budget_and_an_open_layer_writes_nothing(pipeline_folder, colours, tmp_path):
    open_layer = {"guidance": {"layer": "auto"}, "backbone": {"path": str(pipeline_folder)}, "sampling": {"steps": 10}}
    asked = recipe(colours, method="dap", **open_layer)
    planned_set(asked, tmp_path / "a", machine=Machine(device="cpu"), budget="1m")
    assert not (tmp_path / "a").exists()


def test_the_time_of_a_training_is_that_of_its_epochs_and_looks(clock, monkeypatch):
    """By a training whose times are known: 0.01 s an image and epoch, 0.002 s a tested image, and 3 s at its beginning."""
    protocol = load_protocol("quick-hard")

    def evaluate(train, test, short, seeds, *, classes, network, device, progress):
        clock.now += 3
        for epoch in range(1, short.epochs + 1):
            clock.now += 0.01 * len(train[0])
            if epoch in short.look_epochs:
                clock.now += 0.002 * len(test[0])
            progress(0, epoch, short.epochs)
        yield None

    monkeypatch.setattr(estimate, "evaluate", evaluate)
    usual = protocol.settled(ipc=50, classes=10, network="convnet3")
    wanted = usual.epochs * 0.01 * 500 + len(usual.look_epochs) * 0.002 * 8000
    assert training_seconds(protocol, "convnet3", 500, 8000, 10, "cpu") == pytest.approx(wanted)


def test_labels_of_a_classifier_are_not_guessed():
    found = of_trainings("x", load_protocol("rded-soft"), {"resnet18": 3}, (100, 100, 10), "cpu")
    assert found.seconds is None and found.left == 3 and "labels" in found.why


def test_a_grid_counts_what_is_left(colours, tmp_path):
    base = {"data": {"path": str(colours), "classes": ["red", "blue"], "size": 16}}

    def grid(sets):
        return compared(base, ["random", "dm"], [2, 4], sets, tmp_path / "g", subsample=[3], judging=QUICK)

    found = planned_grid(grid(2), machine=Machine())
    assert not (tmp_path / "g").exists()
    sets = [one for one in found if one.kind == "images"]
    assert [(one.pieces, one.left) for one in sets] == [(8, 8), (16, 16)] * 2
    trainings = [one for one in found if one.kind == "trainings"]
    assert [(one.pieces, one.left) for one in trainings] == [(4, 4)] * 6  # 2 and 4 and 3 drawn of 4, by two methods
    compare(base, ["random"], [2], 1, tmp_path / "g", judging=QUICK)
    found = planned_grid(grid(2), machine=Machine())
    assert (found[0].pieces, found[0].left, found[1].pieces, found[1].left) == (8, 4, 4, 2)
    assert (
        found[0].name == "method=random_ipc=2: 2 sets" and found[1].name == "method=random_ipc=2, trained on 2 a class"
    )
    made = tmp_path / "g" / "method=random_ipc=2" / "seed0"
    (judged,) = planned_judging([made], judging=QUICK, machine=Machine())
    assert (judged.pieces, judged.left, judged.seconds) == (2, 0, 0)


def test_the_command(colours, tmp_path, capsys):
    from dap.cli.main import main

    out = tmp_path / "set"
    words = ["--method", "random", "--ipc", "2", "--data", str(colours), "--out", str(out), "--dry-run"]
    assert main(["distill", *words]) == 0
    told = capsys.readouterr().out
    assert told.startswith("This is a dry run: nothing was made.\n  set: 6 images in 3 units; ")
    assert "Disk: about" in told and "Downloads: nothing." in told
    assert main(["distill", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["work"][0]["left"] == 6
    assert not out.exists()
    assert main(["distill", *words[:-1]]) == 0
    assert DistilledSet.open(out).missing() == []
    capsys.readouterr()
    assert main(["evaluate", str(out), "--epochs", "2", "--set", "size=16", "--set", "width=4", "--dry-run"]) == 0
    assert f"{out}: 1 training; " in capsys.readouterr().out
    assert not (out / "trials.jsonl").exists()
