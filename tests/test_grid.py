"""The queue of `dap compare` for grids: its order, its notes and ledger, and that it goes on after a kill."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import benched

ROOT = Path(__file__).parents[1]
LISTS = sorted(file.name for file in (ROOT / "benchmarks").glob("*.yaml"))

STANDS_IN = """
import json, sys, time
from pathlib import Path

given = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[2:] if "=" in flag)
out, here = Path(sys.argv[1]), Path(__file__).parent
with (here / "begun.txt").open("a") as file:
    file.write(f"{given['methods']} {given['ipc']} {given['networks']} {given['seed']}\\n")
while (here / "wait").exists():
    time.sleep(0.02)
if given["methods"] == "herding" and (here / "broken").exists():
    sys.exit("broken")
folder = out / f"method={given['methods']}_ipc={given['ipc']}" / f"seed{given['seed']}"
folder.mkdir(parents=True, exist_ok=True)
recipe = {"method": given["methods"], "ipc": int(given["ipc"]), "seed": int(given["seed"])}
(folder / "recipe.json").write_text(json.dumps(recipe))
(folder / "classes.json").write_text(json.dumps({"folders": ["bag"], "ipc": recipe["ipc"]}))
known = {"protocol": given["protocol"], "network": given["networks"], "last": 0.5, "best": 0.5}
with (folder / "trials.jsonl").open("a") as file:
    file.writelines(json.dumps(known | {"seed": k}) + "\\n" for k in range(int(given["seeds"])))
"""
"""A program in the place of `dap compare`: it leaves what that leaves, and says that it was begun."""

DRIVER = """
import sys
from pathlib import Path

import grid

fake = str(Path(__file__).with_name("compare.py"))
grid.Job.command = lambda self, out: [sys.executable, fake, str(out / self.folder), *self.flags]
grid.main()
"""
"""The queue with the stand-in."""

CELLS = [
    {"methods": ["random", "herding"], "ipc": [1, 10], "networks": ["convnet3", "resnet18"]},
    {"methods": ["vanilla"], "variants": {"γ = 1": {"scale": 1}, "": {}}},
]


@pytest.fixture
def grid():
    return benched.load("rivals", "grid")


@pytest.fixture
def listed(tmp_path):
    """Writes a list whose files lie in the test's own folder."""

    def write(cells=CELLS, **shared):
        given = {"out": str(tmp_path / "out"), "ledger": str(tmp_path / "ledger.csv"), "shared": shared, "cells": cells}
        (tmp_path / "list.yaml").write_text(yaml.safe_dump(given, allow_unicode=True, sort_keys=False))
        return tmp_path / "list.yaml"

    (tmp_path / "compare.py").write_text(STANDS_IN)
    return write


@pytest.fixture
def begun(tmp_path, grid, monkeypatch):
    """Runs a list with the stand-in, and returns what it began, each as method, ipc, network and seed."""

    def command(self, out):
        return [sys.executable, str(tmp_path / "compare.py"), str(out / self.folder), *self.flags]

    def run(file, *flags):
        (tmp_path / "begun.txt").unlink(missing_ok=True)
        monkeypatch.setattr(grid.Job, "command", command)
        monkeypatch.setattr(sys, "argv", ["grid.py", str(file), *flags])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test process keeps its own handlers
        grid.main()
        lines = (tmp_path / "begun.txt").read_text().splitlines() if (tmp_path / "begun.txt").exists() else []
        return [tuple(line.split()) for line in lines]

    return run


def ledger(tmp_path):
    with (tmp_path / "ledger.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_cell_gets_its_first_set_before_any_gets_its_second(grid, listed):
    _, entries = grid.read(listed(sets=3, trainings=2, seed=5))
    todo = grid.jobs(entries)
    cells = list(itertools.product(["convnet3", "resnet18"], [1, 10], ["random", "herding"]))
    wanted = [(m, ipc, network, "") for network, ipc, m in cells]
    wanted += [("vanilla", 10, "convnet3", "γ = 1"), ("vanilla", 10, "convnet3", "")]
    assert [(*job.kind, job.variant) for job in todo] == 3 * wanted
    assert [job.round for job in todo] == [round for round in range(3) for _ in wanted]
    assert len({job.key for job in todo}) == len(todo)
    for job in todo:
        assert {f"--seed={5 + job.round}", "--seeds=2", "--sets=1"} <= set(job.flags)
        assert ("--scale=1" in job.flags) is (job.variant == "γ = 1")
        assert "--threads 1" in " ".join(job.command(Path("out")))
    assert len({job.folder for job in todo if job.kind[0] == "vanilla"}) == 2, "variants of a method are kept apart"


def test_entries_take_what_they_share_and_say_otherwise(grid, listed):
    cells = [{"methods": ["random"], "flags": {"option": ["a=1", "b=2"]}}, {"methods": ["random"], "sets": 1}]
    _, entries = grid.read(listed(cells, sets=2, flags={"held-out": 0.05, "option": ["c=3"]}))
    first, second = (job.flags for job in grid.jobs(entries)[:2])
    assert [flag for flag in first if "option" in flag] == ["--option=a=1", "--option=b=2"]
    assert "--held-out=0.05" in first and "--option=c=3" in second
    assert [cells.sets for cells in entries] == [2, 1]


def test_trainings_come_into_the_ledger_once_and_nothing_is_run_twice(listed, begun, tmp_path):
    file = listed(sets=2, trainings=2)
    ran = begun(file)
    assert len(ran) == len(set(ran)) + 2 == 20, "both variants of vanilla look alike here"
    lines = ledger(tmp_path)
    assert len(lines) == 20 * 2
    assert {line["variant"] for line in lines if line["method"] == "vanilla"} == {"", "γ = 1"}
    assert begun(file) == [] and ledger(tmp_path) == lines
    more = [*CELLS, {"methods": ["k-center"]}]
    assert {method for method, *_ in begun(listed(more, sets=2, trainings=2))} == {"k-center"}
    changed = [{**CELLS[0], "flags": {"steps": 20}}, *more[1:]]
    assert {method for method, *_ in begun(listed(changed, sets=2, trainings=2))} == {"random", "herding"}


def test_a_job_that_fails_stops_no_other_and_is_run_again(listed, begun, tmp_path, capsys):
    (tmp_path / "broken").touch()
    file = listed()
    with pytest.raises(SystemExit) as stopped:
        begun(file)
    said = str(stopped.value)
    assert "4 of 10 failed" in said and "exit status 1" in said and "Traceback" not in said
    log = Path(next(word for word in said.split() if word.endswith(".txt")))
    assert "broken" in log.read_text()
    assert {line["method"] for line in ledger(tmp_path)} == {"random", "vanilla"}
    (tmp_path / "broken").unlink()
    assert {method for method, *_ in begun(file)} == {"herding"}
    assert begun(file, "--status") == [] and "10 of 10 jobs done" in capsys.readouterr().out


def test_status_counts_rounds_and_guesses_from_jobs_that_are_alike(grid, listed, tmp_path):
    _, entries = grid.read(listed(sets=2))
    todo = grid.jobs(entries)
    done = {job.key: 3600.0 * (2 if job.kind[0] == "herding" else 1) for job in todo[:2]}  # convnet3, 1 image per class
    said = grid.status(todo, done)
    assert "set 1 of each cell: 2 of 10 jobs done" in said and "set 2 of each cell: 0 of 10 jobs done" in said
    assert "2 of 20 jobs done in 3.0 h, 18 left" in said
    assert "2 of them take about 3.0 h on one core" in said and "of 16 of them nothing is known" in said
    other = grid.status(todo, {todo[0].key: 3600.0})  # herding as long as random on the same network and ipc
    assert "3 of them take about 3.0 h" in other


def test_a_line_that_a_kill_cut_off_counts_for_nothing(grid, listed, tmp_path):
    _, entries = grid.read(listed())
    first, second = grid.jobs(entries)[:2]
    (tmp_path / "jobs.csv").write_text(f"{first.key},1.0,2026-11-27T00:00:00Z,0,dap compare\n{second.key},2.0,2026")
    assert grid.Notes(tmp_path).done() == {first.key: 1.0}
    grid.Notes(tmp_path).add(second, 3.0, 0, ["dap"])
    assert grid.Notes(tmp_path).done() == {first.key: 1.0, second.key: 3.0}


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([{"methods": ["ranom"]}], "ranom"),
        ([{"methods": ["random"], "speed": 1}], "speed"),
        ([{"methods": ["random"], "sets": 0}], "sets"),
        ([], "cells"),
    ],
)
def test_a_wrong_list_is_refused_before_any_work(listed, begun, cells, said, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        begun(listed(cells))
    assert said in str(stopped.value) and not (tmp_path / "out").exists()


def test_it_goes_on_after_a_kill(listed, begun, tmp_path):
    """SIGTERM ends the command that runs too; the next start runs this job again, and the rest."""
    file = listed([{"methods": ["random", "vanilla"]}])
    (tmp_path / "wait").touch()
    (tmp_path / "driver.py").write_text(DRIVER)
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "src")])
    queue = subprocess.Popen([sys.executable, tmp_path / "driver.py", file], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 200
    while not (tmp_path / "begun.txt").exists() and time.monotonic() < deadline and queue.poll() is None:
        time.sleep(0.05)
    assert (tmp_path / "begun.txt").read_text().split()[0] == "random"
    queue.terminate()
    assert queue.wait(60) == 128 + signal.SIGTERM
    (tmp_path / "wait").unlink()
    time.sleep(0.2)
    assert not (tmp_path / "ledger.csv").exists() and not list((tmp_path / "out").glob("starter/*/*/*/trials.jsonl"))
    assert [method for method, *_ in begun(file)] == ["random", "vanilla"]
    assert [line["method"] for line in ledger(tmp_path)] == ["random", "vanilla"]


@pytest.mark.parametrize("name", LISTS)
def test_dap_takes_every_command_of_the_lists(grid, name, monkeypatch):
    """Each command of the lists that come with the project reads as a recipe for each of its cells."""
    from dap.cli.main import main
    from dap.verbs import compare as verbs

    asked = []

    def stands_in(base, methods, ipcs, sets, out, *, options=None, judging=None, **_):
        asked.extend(verbs.comparison(base, methods, ipcs, sets, options))
        asked[-1] = (*asked[-1], judging)
        raise KeyboardInterrupt  # there are no results to show

    monkeypatch.setattr(verbs, "compare", stands_in)
    queue, entries = grid.read(ROOT / "benchmarks" / name)
    first = [job for job in grid.jobs(entries) if job.round == 0]
    distinct = {tuple(flag for flag in job.flags if not flag.startswith(("--networks", "--ipc"))): job for job in first}
    for job in distinct.values():
        assert main(["compare", *job.flags, "--quiet", "--out", "nowhere"]) == 130, job
    assert len(asked) == len(distinct)
    for job, (_, recipe, judging) in zip(distinct.values(), asked, strict=True):
        assert (recipe.method, recipe.ipc) == job.kind[:2]
        assert (judging.on == "validation") is (queue.ledger != "docs/rivals.csv"), (
            "choices are made on validation images"
        )


def test_the_lists_are_there():
    power = ["power-fifty.yaml", "power-resnets.yaml", "power-rivals.yaml", "power.yaml"]
    known = ["grid.yaml", "kernels.yaml", *power, "reals.yaml"]
    assert known == LISTS
