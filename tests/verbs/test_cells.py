"""Grids from Python: what is told and given back, what workers are handed, and what is let go before they start."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap import backbones
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.evaluation.training.fitting import Training
from dap.verbs import cells, jobs
from dap.verbs.compare import compare, comparison, sweep, work_on
from dap.verbs.options import Judging, Machine
from dap.verbs.report import Unfinished
from watching import hearing

FAST = Judging(networks=("convnet1",), epochs=1, changes={"size": 16, "width": 4})


class Told(Watcher):
    def __init__(self):
        self.counts, self.trials = [], []

    def cells(self, done, total):
        self.counts.append((done, total))

    def trial(self, name, trial):
        self.trials.append((name, trial.network))


@pytest.fixture
def base(colours, pipeline_folder):
    return {
        "data": {"path": str(colours)},
        "backbone": {"path": str(pipeline_folder)},
        "sampling": {"steps": 3},
        "guidance": {"reals": 2},
    }


def test_a_sweep_gives_back_its_sets_table_and_page(base, tmp_path):
    told = Told()
    options = {"judging": FAST, "machine": Machine(device="cpu"), "watcher": told}
    asked = {**base, "method": "dap", "ipc": 1}
    found = sweep(asked, {"guidance.scale": [0.0, 0.1]}, 1, tmp_path, **options)
    names = ["scale=0.0/seed0", "scale=0.1/seed0"]
    assert found.sets == tuple(tmp_path / name for name in names)
    assert told.counts == [(0, 2), (1, 2), (2, 2)] and told.trials == [(name, "convnet1") for name in names]
    assert found.page == tmp_path / "report.html" and found.page.is_file()
    (trial,) = found.trials[tmp_path / names[0]]
    assert f"{100 * trial.accuracy:.1f}" in found.table.markdown() and "<table" in found._repr_html_()
    assert (
        sweep({**base, "method": "dap", "ipc": 1}, {"guidance.scale": [0.0, 0.1]}, 1, tmp_path, **options).trials
        == found.trials
    )


def test_a_failing_cell_is_an_error_that_has_the_others(base, tmp_path, monkeypatch):
    from dap.methods.selection.random import Random

    def prepare(self, task):
        def make(unit):
            raise DapError("no more images.")

        return make

    monkeypatch.setattr(Random, "prepare", prepare)
    with pytest.raises(Unfinished, match="1 of 2 failed, the others are done. method=random_ipc=1/seed0") as error:
        compare(base, ["random", "dap"], [1], 1, tmp_path, judging=FAST)
    assert error.value.results is not None
    assert [path.parent.name for path in error.value.results.sets if (path / "trials.jsonl").exists()] == [
        "method=dap_ipc=1"
    ]
    with pytest.raises(Unfinished, match="no more images") as error:
        compare({"data": base["data"]}, ["random"], [1], 1, tmp_path / "alone", judging=FAST)


def test_a_training_that_fails_stops_no_other_one_of_its_cell(base, tmp_path, monkeypatch):
    """The other network and the draw from the set are judged, as `dap evaluate` would."""
    epoch = Training._epoch
    monkeypatch.setattr(Training, "_epoch", lambda self, n: math.nan if self.network == "convnet2" else epoch(self, n))
    judging = dataclasses.replace(FAST, networks=("convnet2", "convnet1"))
    with pytest.raises(Unfinished) as error:
        compare({"data": base["data"]}, ["random"], [2], 1, tmp_path, subsample=(1,), judging=judging)
    assert str(error.value).count("A training of convnet2 on the set") == 2
    assert error.value.results is not None
    assert [[one.network for one in trials] for trials in error.value.results.trials.values()] == [["convnet1"]] * 2


def test_workers_are_handed_the_grid_and_no_backbone_stays_with_their_parent(base, tmp_path, monkeypatch):
    """In place of processes the grid is worked on here, from the file that they would read."""
    told, loaded, load = Told(), [], backbones.load

    def remembered(*args, **options):
        made = load(*args, **options)
        loaded.append(weakref.ref(made))
        return made

    def in_this_process(arguments, workers, spread=True, meanwhile=lambda: None, tell=None):
        assert loaded and not any(one() for one in loaded), "the parent keeps a backbone"
        assert arguments[0] == "worker" and workers == 2
        meanwhile()
        work_on(Path(arguments[1]))
        meanwhile()

    monkeypatch.setattr(backbones, "load", remembered)
    monkeypatch.setattr(cells, "run_workers", in_this_process)
    shared = {"judging": FAST, "machine": Machine(device="cpu", cache=tmp_path / "cache"), "subsample": (1,)}
    found = compare(base, ["vanilla", "dap"], [2], 1, tmp_path / "out", watcher=told, workers=2, **shared)
    assert told.counts[0] == (0, 2) and told.counts[-1] == (2, 2) and not told.trials
    assert len(found.sets) == 4 and all(len(trials) == 1 for trials in found.trials.values())
    assert not list((tmp_path / "out" / ".claims").glob("run-*"))


def test_a_grid_is_the_same_after_it_was_written_down(base, tmp_path):
    made = tuple(comparison({**base, "classifier": "x"}, ["random", "dap", "herding"], [1, 2], 2))
    judging = Judging(networks=("convnet1", "convnet2"), changes={"mean": [0.5]}, labels=tmp_path, trials=2)
    one = jobs.Grid(made, tmp_path, judging, Machine(cache=tmp_path), (1,), "dap compare")
    again = jobs.Grid.load(json.loads(json.dumps(one.dump(), default=str)))
    assert again == one
    assert [recipe.model_fields_set for _, recipe in again.cells] == [recipe.model_fields_set for _, recipe in made]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda job: job["machine"].update(fast=True), "machine has fast, which this version"),
        (lambda job: job["machine"].pop("cache"), None),
        (lambda job: job["machine"].update(cache=[1]), "cache"),
        (lambda job: job["judging"].update(networks=3), "networks"),
        (lambda job: job["judging"].update(networks="convnet3"), "networks"),
        (lambda job: job["judging"].update(on="both"), "on"),
        (lambda job: job["cells"].append([{}, {}]), "a cell is not the name"),
        (lambda job: job["cells"].append(["a", "b"]), "a cell is not the name"),
        (lambda job: job["cells"][0][1].update(ipc="many"), "ipc"),
        (lambda job: job.pop("judging"), "judging"),
    ],
)
def test_a_damaged_file_of_a_grid_is_one_sentence_that_names_it(base, tmp_path, change, says):
    """Found by fuzzing: KeyError and TypeError, and sentences without the file."""
    made = tuple(comparison({"data": base["data"]}, ["random"], [1], 1))
    job = json.loads(json.dumps(jobs.Grid(made, tmp_path, FAST, Machine()).dump(), default=str))
    change(job)
    (tmp_path / "job.json").write_text(json.dumps(job))
    if says is None:
        assert jobs.read_job(tmp_path / "job.json").machine == Machine()
        return
    with pytest.raises(DapError, match=f"job.json.*{says}"):
        jobs.read_job(tmp_path / "job.json")


def test_sets_of_different_sizes_are_named_before_the_work(tmp_path, monkeypatch):
    """Random real images keep their own size where neither a size nor a backbone is named, and the backbone's are of its size.
    Also where one protocol brings all to one size."""
    folder, draw = tmp_path / "photos", torch.Generator().manual_seed(0)
    for name in ("Bag", "Coat"):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
            for k in range(3):
                pixels = torch.randint(0, 256, (40, 40, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / name / f"{k}.png")
    monkeypatch.setattr(cells, "share", lambda *a, **k: [])  # nothing is made
    told, judging = [], Judging(networks=("convnet1",), epochs=1, changes={"width": 4})
    one_size = dataclasses.replace(judging, changes={"width": 4, "size": 16})
    apart, together = "accuracies stand in different tables", "all are judged at 16 px"
    for said, how in ((apart, judging), (together, one_size)):
        heard = list[str]()
        with contextlib.suppress(DapError):
            base = {"data": {"path": str(folder)}, "sampling": {"steps": 2}}
            watcher = hearing(note=heard.append)
            out = tmp_path / f"{len(said)}"
            compare(base, ["random", "vanilla@starter"], [1], 1, out, judging=how, watcher=watcher)
        (heard,) = (one for one in heard if "different sizes" in one)
        assert said in heard and "32 px: vanilla@starter; 40 px: random" in heard
    for size in ({}, {"size": 32}):
        base = {"data": {"path": str(folder), **size}, "sampling": {"steps": 2}}
        watcher = hearing(note=told.append)
        with contextlib.suppress(DapError):
            compare(base, ["random", "vanilla"], [1], 1, tmp_path / f"out{len(size)}", judging=judging, watcher=watcher)
        heard = [one for one in told if "different sizes" in one]
        assert len(heard) == 1 and "32 px: vanilla; 40 px: random" in heard[0] and "--size 32 makes" in heard[0]


def test_sets_of_real_images_have_the_size_of_the_backbone_that_is_named(colours, pipeline_folder, tmp_path):
    """`dap compare --backbone DIR` made sets of real images in their own size beside smaller ones of the backbone."""
    from dap import DistilledSet

    larger = tmp_path / "larger"
    for file in colours.rglob("*.png"):
        (larger / file.relative_to(colours)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((12, 12)).save(larger / file.relative_to(colours))
    base = {"data": {"path": str(larger)}, "sampling": {"steps": 2}, "backbone": {"path": str(pipeline_folder)}}
    for found in (
        compare(base, ["random", "vanilla"], [1], 1, tmp_path / "compared", judging=FAST),
        sweep(base, {"method": ["random", "vanilla"]}, 1, tmp_path / "swept", judging=FAST),
    ):
        sizes = [DistilledSet.open(path).tensors()[0].shape[-1] for path in found.sets]
        assert sizes == [8, 8]
