"""Draws of `dap compare --subsample` follow the set they were drawn from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dap.base.watch import Watcher
from dap.evaluation.recorded import BEFORE
from dap.verbs.compare import compare
from dap.verbs.options import Judging, Machine

FAST = Judging(networks=("convnet1",), epochs=1, changes={"size": 8, "width": 2})
SET, DRAW = "method=random_ipc=3/seed0", "method=random_ipc=3_drawn=1/seed0"


class Told(Watcher):
    def __init__(self):
        self.notes, self.trials = [], []

    def note(self, text):
        self.notes.append(text)

    def trial(self, name, trial):
        self.trials.append(name)


@pytest.fixture
def run(colours, tmp_path):
    data = shutil.copytree(colours, tmp_path / "data")

    def again(judging=FAST):
        told = Told()
        how = {"subsample": (1,), "judging": judging, "machine": Machine(device="cpu"), "watcher": told}
        compare({"data": {"path": str(data), "size": 8}}, ["random"], [3], 1, tmp_path / "out", **how)
        return told

    again.data, again.out = data, tmp_path / "out"
    return again


def of(folder, name):
    return {json.loads(line)[name] for line in (folder / "manifest.jsonl").read_text().splitlines()}


def made_anew(run):
    """The set is removed, and every training image is another one."""
    for folder in (run.data / "train").iterdir():
        files = sorted(folder.iterdir())
        pictures = [file.read_bytes() for file in files]
        for file, picture in zip(files, pictures[1:] + pictures[:1], strict=True):
            file.write_bytes(picture)
    shutil.rmtree(run.out / SET)


def test_a_draw_is_drawn_anew_from_a_set_that_was_made_anew(run):
    """The draw kept the images and the accuracy of the removed set."""
    assert run().trials == [SET, DRAW]
    before = of(run.out / DRAW, "sha256")
    shutil.rmtree(run.out / SET)
    again = run()
    assert again.trials == [SET] and "drawn" not in " ".join(again.notes), "a set of the same images has the same draw"
    made_anew(run)
    again = run()
    assert again.trials == [SET, DRAW] and f"{DRAW} was drawn from an earlier set" in " ".join(again.notes)
    assert of(run.out / DRAW, "sha256") != before
    assert of(run.out / DRAW, "source_sha256") < of(run.out / SET, "sha256")
    (trial,) = (run.out / DRAW / "trials.jsonl").read_text().splitlines()
    assert json.loads(trial)["n_train"] == 3 and run().trials == []


def test_trials_of_an_earlier_draw_are_kept_beside_those_that_count(run):
    run(Judging(networks=("convnet1",), epochs=2, changes={"size": 8, "width": 2}))
    run()
    before = (run.out / DRAW / "trials.jsonl").read_text()
    assert len(before.splitlines()) == 2
    for times in (1, 2):
        made_anew(run)
        told = run()
        assert told.trials == [SET, DRAW] and BEFORE in " ".join(told.notes)
        kept, now = ((run.out / DRAW / name).read_text() for name in (BEFORE, "trials.jsonl"))
        assert kept.startswith(before) and len(kept.splitlines()) == 1 + times and len(now.splitlines()) == 1
    assert sorted(one.name for one in (run.out / DRAW).parent.iterdir()) == ["seed0"]


def test_a_killed_process_loses_no_draw(run, monkeypatch):
    run()
    before = (run.out / DRAW / "trials.jsonl").read_text()
    made_anew(run)

    def killed(self, target, rename=Path.rename):
        if self.name == ".seed0.anew":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        run()
    assert not (run.out / DRAW).exists() and run().trials == [DRAW]
    assert (run.out / DRAW / BEFORE).read_text() == before
    assert sorted(one.name for one in (run.out / DRAW).parent.iterdir()) == ["seed0"]


def test_a_draw_whose_weights_were_copied_is_drawn_anew(run):
    """Earlier versions kept the weights of the set, whose mean in a class of the draw is not 1."""
    run()
    for folder, weight in ((SET, [0.25, 0.75, 2.0]), (DRAW, [0.25])):
        file = run.out / folder / "manifest.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line | {"weight": weight[line["slot"]]}) + "\n" for line in lines))
    before = (run.out / DRAW / "trials.jsonl").read_text()
    assert run().trials == [], "the draw has the same images, and its protocol looks at no weights"
    assert (run.out / DRAW / "trials.jsonl").read_text() == before
    assert of(run.out / DRAW, "weight") == {1.0} and run().trials == []
