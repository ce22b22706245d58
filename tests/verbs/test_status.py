"""`dap status`: how far sets and grids are, told by their files alone."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.cli.main import main
from dap.data.sets.imports import import_set
from dap.recipe import Recipe
from dap.verbs.compare import compare, sweep
from dap.verbs.distill import distill
from dap.verbs.options import Judging
from dap.verbs.planning.status import GRID, status
from dap.workshop import Workshop


class Stopped(Watcher):
    """Stops after so many images of a set."""

    def __init__(self, after):
        self.after = after

    def images(self, name, done, total, what=""):
        if done == self.after:
            raise KeyboardInterrupt


def asked(colours):
    return Recipe.parse({"method": "random", "ipc": 4, "block": 2, "data": {"path": str(colours)}})


@pytest.fixture
def begun(colours, tmp_path):
    """A set of 12 images in units of two, of which six are made."""
    with pytest.raises(KeyboardInterrupt):
        distill(asked(colours), tmp_path / "a", workshop=Workshop("cpu"), watcher=Stopped(6))
    return tmp_path / "a"


def dated(folder, *units, at=1000.0):
    """Give the images of a set times of change: those of a unit at one moment, and the units at these seconds."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        when = at + units[i // 2] + 0.001 * (i % 2)
        os.utime(folder / line["path"], (when, when))


def test_a_set_that_is_being_made(begun):
    dated(begun, 0, 10, 20)
    found = status(begun, now=1025.0)
    (one,) = found.sets
    assert (one.images, one.of, one.left, one.done, one.missing) == (6, 12, 6, False, False)
    assert one.rate == pytest.approx(4 / 20, rel=1e-3) and one.idle == pytest.approx(5, abs=0.01) and one.busy
    assert found.remaining == pytest.approx(30, rel=1e-3)
    assert not status(begun, now=1020.0 + 121).sets[0].busy


def test_a_pause_of_a_night_does_not_make_the_work_slow(begun, colours):
    made = distill(asked(colours), begun, workshop=Workshop("cpu"))
    dated(begun, 0, 10, 20, 40_020, 40_030, 40_040)
    for line in made.records[-2:]:
        (begun / line["path"]).unlink()
    lines = (begun / "manifest.jsonl").read_text().splitlines(keepends=True)
    (begun / "manifest.jsonl").write_text("".join(lines[:-2]))
    (one,) = status(begun, now=41_035.0).sets
    assert one.rate == pytest.approx(6 / 30, rel=1e-3) and one.images == 10


def test_images_that_failed_are_counted_once(begun, capsys):
    from dap.cli.main import main

    line = json.dumps({"label": 1, "class_name": "green", "slots": [2, 3], "reason": "no numbers"}) + "\n"
    (begun / "failed.jsonl").write_text(line + line)
    assert status(begun).sets[0].failed == 2
    assert main(["status", str(begun)]) == 0
    assert "2 images failed, see failed.jsonl there" in capsys.readouterr().out


def test_images_whose_files_are_gone_are_not_made(begun, colours, capsys):
    distill(asked(colours), begun, workshop=Workshop("cpu"))
    assert status(begun).done == 1
    for file in (begun / "images" / "red").iterdir():
        file.unlink()
    (one,) = status(begun).sets
    assert (one.images, one.left, one.gone, one.done) == (8, 4, 4, False)
    assert main(["status", str(begun)]) == 0
    told = capsys.readouterr().out
    assert "0 of 1 set is done" in told and "8 of 12 images" in told and "the files of 4 images are gone" in told
    theirs = import_set(colours / "train", begun.parent / "theirs", ipc=2).path
    shutil.rmtree(theirs / "images" / "red")
    (one,) = status(theirs).sets
    assert (one.images, one.gone, one.done) == (4, 2, False), "also where no plan says how many there should be"


def test_results_apart_hold_only_the_images_of_a_page_and_lack_none(colours, tmp_path):
    how = ["--method", "random", "--data", str(colours), "--size", "8", "--ipc", "12", "--out", str(tmp_path / "set")]
    assert main(["distill", *how]) == 0
    judge = ["--protocol", "small-hard", "--epochs", "1", "--networks", "convnet1", "--set", "looks=1"]
    assert main(["evaluate", str(tmp_path / "set"), *judge, "--out", str(tmp_path / "out")]) == 0
    (one,) = status(tmp_path / "out").sets
    assert one.gone == 0 and one.done and one.images == len(list((tmp_path / "set" / "images").rglob("*.png")))


def test_one_unit_tells_no_rate(begun):
    dated(begun, 0, 0, 0)
    found = status(begun, now=1001.0)
    assert found.sets[0].rate is None and found.remaining is None


def test_a_grid_knows_what_has_not_begun(colours, tmp_path):
    """Sets that were planned count, and an earlier command's sets stay in the plan."""
    base = {"data": {"path": str(colours), "classes": ["red", "blue"], "size": 16}}

    def run(sets, trials):
        how = {"epochs": 1, "changes": {"size": 16, "width": 4, "looks": 1}, "trials": trials}
        compare(base, ["random"], [2], sets, tmp_path / "grid", judging=Judging(protocol="quick-hard", **how))

    run(sets=2, trials=2)
    found = status(tmp_path / "grid")
    assert [one.done for one in found.sets] == [True, True] and found.remaining == 0
    assert [(one.images, one.of, one.trainings, one.planned) for one in found.sets] == [(4, 4, 2, 2)] * 2
    shutil.rmtree(found.sets[1].path)
    found = status(tmp_path / "grid")
    assert [one.missing for one in found.sets] == [False, True] and found.done == 1
    plan = json.loads((tmp_path / "grid" / GRID).read_text())
    assert len(plan["sets"]) == 2 and {one["trainings"] for one in plan["sets"]} == {2}
    run(sets=1, trials=3)
    assert [
        (one["images"], one["trainings"]) for one in json.loads((tmp_path / "grid" / GRID).read_text())["sets"]
    ] == [
        (4, 3),
        (4, 2),
    ]


def test_a_plan_names_the_protocol_of_each_set_as_its_trials_do(colours, tmp_path):
    """Size, mean and standard deviation of the data are in the name, and sets of one grid may differ in them."""
    base = {"method": "random", "ipc": 1, "data": {"path": str(colours), "classes": ["red", "blue"], "size": 16}}
    judging = Judging(protocol="quick-hard", epochs=1, changes={"width": 4, "looks": 1})
    sweep(base, {"data.size": [16, 24]}, 1, tmp_path / "grid", judging=judging)
    found = status(tmp_path / "grid")
    assert [(one.trainings, one.others, one.planned, one.done) for one in found.sets] == [(1, 0, 1, True)] * 2
    plan = json.loads((tmp_path / "grid" / GRID).read_text())["sets"]
    assert len({one["protocol"] for one in plan}) == 2


def test_images_of_others_have_no_plan(begun, colours, tmp_path):
    import_set(colours / "train", tmp_path / "theirs", ipc=2)
    (one,) = status(tmp_path / "theirs").sets
    assert (one.images, one.done, one.planned) == (6, True, None)


def test_where_there_is_nothing_the_message_says_what_to_give(tmp_path):
    with pytest.raises(DapError, match="There is no folder"):
        status(tmp_path / "none")
    with pytest.raises(DapError, match="holds no distilled set, finished or begun"):
        status(tmp_path)
    (tmp_path / GRID).write_text('{"sets": 3}')
    with pytest.raises(DapError, match="grid.json"):
        status(tmp_path)


def test_the_command(begun, capsys):
    from dap.cli.main import main

    dated(begun, 0, 10, 20, at=time.time() - 20)
    assert main(["status", str(begun)]) == 0
    told = capsys.readouterr().out
    assert "0 of 1 set is done" in told and "6 of 12 images, 0.2 images/s" in told and "30 s left" in told
    assert main(["status", str(begun), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remaining_seconds"] == pytest.approx(30, rel=0.05)
