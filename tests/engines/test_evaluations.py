"""Several processes train networks on sets: each training is made once, and the results are those of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from dap.base.errors import DapError
from dap.engines import on_ray
from dap.evaluation.recorded import RecordedTrials
from dap.evaluation.training.trials import Trial
from dap.verbs.compare import compare
from dap.verbs.distill import distill
from dap.verbs.evaluate import evaluate
from dap.verbs.options import Engine, Judging
from trainings import trials_of

FAST = Judging(networks=("convnet1", "convnet2"), trials=2, epochs=2, changes={"size": 16, "width": 4})


@pytest.fixture
def sets(colours, tmp_path):
    for seed in (0, 1):
        distill(out=tmp_path / f"set{seed}", data=str(colours), method="random", ipc=2, seed=seed)
    return [tmp_path / "set0", tmp_path / "set1"]


def results_of(folder):
    """What is recorded beside a set, in order and without times."""
    notes = {name: (folder / name).read_text() for name in ("protocols.json", "measures.json")}
    return trials_of(folder), {name: json.loads(text) for name, text in notes.items()}


@pytest.fixture
def alone(sets):
    copies = [shutil.copytree(path, path.with_name(f"alone-{path.name}")) for path in sets]
    evaluate(copies, judging=FAST)
    return [results_of(path) for path in copies]


def test_shards_share_trainings_and_measures(sets, alone):
    failed = []

    def run(shard):
        try:
            evaluate(sets, judging=FAST, engine=Engine(shard=shard))
        except Exception as error:
            failed.append(error)

    runs = [threading.Thread(target=run, args=(f"{k}/3",)) for k in (1, 2, 3)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert not failed and [results_of(path) for path in sets] == alone
    left = [path.name for path in sets[0].iterdir() if path.name.startswith(".")]
    assert left == [".lock"], left


@pytest.mark.slow  # the killed worker of a set, which ends and begins again in the same way, is always tested
def test_workers_train_and_a_killed_one_is_made_up_for(sets, alone):
    flags = [
        "--networks",
        "convnet1,convnet2",
        "--trials",
        "2",
        "--epochs",
        "2",
        "--set",
        "size=16",
        "--set",
        "width=4",
    ]
    run = [
        sys.executable,
        "-P",
        "-m",
        "dap",
        "evaluate",
        *map(str, sets),
        *flags,
        "--workers",
        "2",
        "--out",
        str(sets[0].parent),
    ]
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any((path / "trials.jsonl").exists() for path in sets):
            time.sleep(0.02)
        from test_together import children

        os.kill(children(process.pid)[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert [results_of(path) for path in sets] == alone
    assert stdout.count("ConvNet-2") >= 1


def test_a_trial_is_recorded_once_and_after_half_a_line(tmp_path):
    trial = Trial("p", "n", 0, 1, 2, 3, 0.5, 0.5, "last", ((1, 0.5),), 0.5, 1.0, "cpu", "2")
    key = {"judged": "a", "tested": "b", "by": "c"}
    RecordedTrials(tmp_path).add(trial, key, {"name": "p"})
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"protocol": "p", "netw')  # another process was killed
    RecordedTrials(tmp_path).add(trial, key, {"name": "p"})
    other = RecordedTrials(tmp_path)
    other.add(Trial("p", "n", 1, 1, 2, 3, 0.25, 0.5, "last", ((1, 0.5),), 0.5, 1.0, "cpu", "2"), key, {"name": "p"})
    assert [json.loads(line)["seed"] for line in other.path.read_text().splitlines()] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["trials.jsonl"]


def test_what_cannot_be_shared_is_a_sentence(sets, colours, tmp_path, monkeypatch):
    with pytest.raises(DapError, match="give folders or names"):
        evaluate([distill(out=sets[0], data=str(colours), method="random", ipc=2)], engine=Engine(workers=2))
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(DapError, match="needs Ray, which is not installed"):
        evaluate(sets, engine=Engine(engine="ray"))
    with pytest.raises(DapError, match="needs Ray, which is not installed"):
        compare({"data": {"path": str(colours)}}, ["random"], [1], 1, tmp_path, engine=Engine(engine="ray"))


def test_shards_share_the_cells_of_a_grid(colours, tmp_path):
    base = {"data": {"path": str(colours)}}
    for shard in ("2/2", "1/2"):
        found = compare(base, ["random"], [1], 2, tmp_path, judging=FAST, engine=Engine(shard=shard))
        assert len(found.sets) == 2 and all(len(trials) == 4 for trials in found.trials.values())
