"""`dap.evaluate` and `dap.compare` on objects: sets and test images in memory, opened sources, methods of one's own."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil

import pytest
import torch

import dap
from dap.cli.main import main
from dap.data.real import sources
from dap.data.real.sources import open_source
from dap.evaluation import judge
from dap.evaluation.training.fitting import Training
from dap.methods.selection.random import Random
from dap.verbs import evaluate
from dap.verbs.options import Engine, Judging, Machine
from dap.verbs.report import Unfinished

FAST = Judging(networks=("convnet1",), epochs=2, changes={"mean": [0.5], "std": [0.25], "size": 8, "width": 4})
CPU = Machine(device="cpu")


@pytest.fixture
def made(colours, tmp_path):
    recipe = dap.Recipe.parse({"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8}})
    return dap.distill(recipe, tmp_path / "set", machine=CPU)


def test_a_set_its_folder_and_its_images_are_judged_alike(made, colours):
    named = dap.evaluate(made.path, judging=FAST, machine=CPU)
    images, labels = made.tensors()
    (trial,) = named.trials[made.path]
    test = open_source(colours, "test", size=8)
    for given in ((images, labels), dict(zip(made.class_names, images.split(2), strict=True))):
        for data in (test, colours, test.tensors()):
            options = {"classes": made.class_names} if isinstance(data, tuple) else {}
            found = dap.evaluate(given, data=data, **options, judging=FAST, machine=CPU)
            (same,) = found.trials[found.sets[0]]
            assert (same.curve, same.n_test, same.n_train) == (trial.curve, 18, 6)
            assert found.page is None and f"{100 * same.accuracy:.1f}" in found.table.markdown()
    folder = found.sets[0]
    assert folder.is_dir() and json.loads((folder / "classes.json").read_text())["names"] == list(made.class_names)
    del found
    assert not folder.exists(), "a set in memory leaves nothing behind"


def test_several_sets_and_a_page(made, tmp_path):
    pair = made.tensors()
    found = dap.evaluate([made, pair], data=(pair[0], pair[1]), classes=made.class_names, judging=FAST, out=tmp_path)
    assert len(found.sets) == 2 and found.page == tmp_path / "report.html" and found.page.is_file()
    one, other = (trials[0] for trials in found.trials.values())
    assert one.curve == other.curve and one.n_test == 6
    assert dap.report(found, tmp_path / "again") == tmp_path / "again" / "report.html"
    assert dap.report([made], tmp_path / "one").is_file()
    assert "<table" in found._repr_html_()


def test_labels_without_names_are_numbers(made):
    images, labels = made.tensors()
    found = dap.evaluate((images, labels), data=(images, labels), judging=FAST)
    assert json.loads((found.sets[0] / "classes.json").read_text())["names"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images, labels: ((images[1:], labels[1:]), {}), "same number of images for every class, not 1 of"),
        (lambda images, labels: ((images, labels + 1), {"classes": ["a", "b", "c"]}), "numbered from 0 to 2: a, b, c"),
        (lambda images, labels: ((images + 1, labels), {}), r"floats in \[0, 1\]"),
        (lambda images, labels: ([], {}), "no set to judge"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(made, change, says):
    images, labels = made.tensors()
    sets, options = change(images, labels)
    with pytest.raises(dap.DapError, match=says):
        dap.evaluate(sets, data=(images, labels), **options, judging=FAST)


def test_case_a9_a_set_is_not_judged_on_the_images_that_it_was_drawn_from(colours, tmp_path, monkeypatch):
    """Whoever names the same folder once more is told so; other images may be one folder, and each split is looked for once."""
    for name in ("mine", "theirs"):
        shutil.copytree(colours / "test", tmp_path / name / "test")
    recipe = dap.Recipe.parse(
        {"method": "random", "ipc": 2, "data": {"path": str(tmp_path / "mine" / "test"), "size": 8}}
    )
    made = dap.distill(recipe, tmp_path / "set", machine=CPU)
    monkeypatch.chdir(tmp_path)
    for data in (None, str(tmp_path / "mine" / "test"), "mine/test"):
        with pytest.raises(dap.DapError, match="would be its training images.* --split train=.,test=."):
            dap.evaluate(made, data=data, judging=FAST, machine=CPU)
    asked = []
    found, locate = sources.locate, lambda *given: asked.append(given[1]) or found(*given)
    monkeypatch.setattr(sources, "locate", locate)
    assert dap.evaluate(made, data="theirs/test", judging=FAST, machine=CPU).trials
    assert sorted(asked) == ["test", "train"]
    assert dap.evaluate(made, data="mine/test", split="train=.,test=.", judging=FAST, machine=CPU).trials


def test_data_that_are_objects_have_no_validation_part(made, colours):
    judging = Judging(networks=("convnet1",), on="validation")
    with pytest.raises(dap.DapError, match="give the folder as data"):
        dap.evaluate(made, data=open_source(colours, "test", size=8), judging=judging)


class Grey(Random):
    """Random real images without their colours."""

    def prepare(self, task):
        make = super().prepare(task)

        def grey(unit):
            done = make(unit)
            return type(done)(done.images.mean(1, keepdim=True).expand(-1, 3, -1, -1), done.records)

        return grey


def test_methods_of_one_s_own_are_compared_as_objects(colours, tmp_path):
    base = {"data": {"path": str(colours), "size": 8}}
    found = dap.compare(base, ["random", Grey()], [1], 1, tmp_path, judging=FAST, machine=CPU)
    random, grey = (dap.DistilledSet.open(path) for path in found.sets)
    torch.testing.assert_close(grey.tensors()[0][:, 0], random.tensors()[0].mean(1), atol=1 / 255, rtol=0)
    assert grey.recipe["method"].endswith(":Grey") and "Grey" in found.table.markdown()
    with pytest.raises(dap.DapError, match="Two methods are objects of"):
        dap.compare(base, [Grey(), Grey], [1], 1, tmp_path)
    with pytest.raises(dap.DapError, match="Several workers need methods that"):
        dap.compare(base, [Grey], [1], 1, tmp_path, workers=2)
    with pytest.raises(dap.DapError, match="3 is not a method"):
        dap.compare(base, [3], [1], 1, tmp_path)


def test_the_search_for_near_copies_says_which_real_images_it_saw(made, colours, tmp_path):
    """`dap push` compares them with those that the set was made of; judging has another size and fit."""
    dap.evaluate(made.path, judging=FAST, machine=CPU)
    kept = json.loads((made.path / "inputs.json").read_text())["data"]
    assert json.loads((made.path / "images.json").read_text())["data"] == kept
    fewer = shutil.copytree(colours, tmp_path / "fewer")
    next((fewer / "train").rglob("*.png")).unlink()
    dap.evaluate(made.path, data=fewer, judging=FAST, machine=CPU)
    assert json.loads((made.path / "images.json").read_text())["data"] not in (None, kept)


@pytest.fixture
def diverging(monkeypatch):
    """Lets seed 0 of convnet2 diverge."""
    epoch = Training._epoch
    monkeypatch.setattr(
        Training, "_epoch", lambda self, n: math.nan if (self.network, self.seed) == ("convnet2", 0) else epoch(self, n)
    )


@pytest.mark.parametrize("engine", [Engine(), Engine(engine="shard", shard="1/1")], ids=["alone", "shard"])
def test_a_network_that_diverges_stops_nothing_else(made, diverging, tmp_path, engine):
    other = shutil.copytree(made.path, tmp_path / "other")
    judging = dataclasses.replace(FAST, networks=("convnet2", "convnet1"), trials=2)
    with pytest.raises(Unfinished) as error:
        dap.evaluate([made.path, other], judging=judging, machine=CPU, out=tmp_path, engine=engine)
    for path in (made.path, other):
        assert f"A training of convnet2 on the set {path} failed. The loss became nan" in str(error.value)
        assert (path / "measures.json").is_file()
    results = error.value.results
    assert results is not None and results.page == tmp_path / "report.html" and (tmp_path / "report.html").is_file()
    done = {("convnet2", 1), ("convnet1", 0), ("convnet1", 1)}
    assert all({(one.network, one.seed) for one in trials} == done for trials in results.trials.values())


def test_a_network_that_diverges_is_told_after_the_table(made, diverging, capsys):
    flags = "--networks convnet2,convnet1 --epochs 1 --set size=8 --set width=4 --device cpu"
    assert main(["evaluate", str(made.path), *flags.split()]) == 1
    said = capsys.readouterr()
    assert "ConvNet-1" in said.out and f"Report: {made.path}" in said.out
    assert f"A training of convnet2 on the set {made.path} failed." in said.err


def test_the_page_on_what_workers_made_is_written_although_one_failed(made, tmp_path, monkeypatch):
    def run_workers(*given, **more):
        raise dap.DapError("Worker 0 of 2 stopped early.")

    monkeypatch.setattr(evaluate, "run_workers", run_workers)
    with pytest.raises(Unfinished, match="stopped early") as error:
        dap.evaluate(made.path, judging=FAST, machine=CPU, engine=Engine(workers=2), out=tmp_path / "page")
    assert error.value.results is not None and error.value.results.page == tmp_path / "page" / "report.html"
    assert not list(tmp_path.rglob(".claims")), "nothing is left behind"


def test_objects_that_judge_go_on_too_and_a_full_disk_stops_all(made, diverging, monkeypatch):
    judging = dataclasses.replace(FAST, networks=("convnet2", "convnet1"))
    with pytest.raises(Unfinished, match="A training of convnet2") as error:
        dap.evaluate(made, data=made.tensors(), classes=made.class_names, judging=judging, machine=CPU)
    assert error.value.results is not None
    assert [one.network for one in error.value.results.trials[made.path]] == ["convnet1"]

    def full(self, n):
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    monkeypatch.setattr(Training, "_epoch", full)
    with pytest.raises(OSError, match="No space left"):
        dap.evaluate(made, judging=judging, machine=CPU)


def test_a_set_is_asked_once_whether_it_can_be_judged(made, monkeypatch):
    asked, found = [], evaluate.check_ready
    for module in (evaluate, judge):
        monkeypatch.setattr(module, "check_ready", lambda *given, **more: asked.append(given) or found(*given, **more))
    dap.evaluate(made.path, judging=FAST, machine=CPU)
    assert len(asked) == 1
