"""`dap compare`: a grid of methods, each with its own options alone, shared by processes that may be killed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dap
from dap.base.claims import share
from dap.base.errors import DapError
from dap.base.workers import visible_gpus
from dap.cli.main import main
from dap.recipe import Recipe
from dap.verbs.compare import compared, comparison, grid, swept

FAST = ["--set", "epochs=2", "--set", "width=4", "--set", "size=16", "--networks", "convnet1"]


def test_each_method_gets_what_is_its_own():
    base = {
        "ipc": 4,
        "guidance": {"scale": 0.3},
        "classifier": "torchvision:resnet18",
        "backbone": {"dtype": "bfloat16"},
    }
    cells = dict(comparison(base, ["random", "vanilla@starter-unet", "dap", "herding"], [1, 2], 2))
    assert list(cells)[:3] == ["method=random_ipc=1/seed0", "method=random_ipc=1/seed1", "method=random_ipc=2/seed0"]
    assert len(cells) == 16 and cells["method=random_ipc=1/seed0"] == Recipe.parse({"method": "random", "ipc": 1})
    assert cells["method=herding_ipc=1/seed0"].classifier == "torchvision:resnet18"
    dap, vanilla = cells["method=dap_ipc=2/seed1"], cells["method=vanilla@starter-unet_ipc=2/seed1"]
    assert (dap.guidance.scale, dap.seed, dap.ipc, dap.classifier) == (0.3, 1, 2, None)
    assert vanilla.guidance is None and vanilla.method == "vanilla"
    assert (vanilla.backbone.path, vanilla.backbone.dtype) == ("starter-unet", "bfloat16")
    assert dict(comparison({}, ["random"], [], 1)) == {"method=random_ipc=10/seed0": Recipe.parse({"method": "random"})}


def test_arguments_that_take_several_values_take_any_kind_of_several():
    """A generator of methods made the sets of the first one alone, because the next one found no ipc left."""
    base = Recipe.parse({"seed": 3})
    expected = [f"method={method}_ipc={ipc}/seed3" for method in ("random", "herding") for ipc in (1, 2)]
    methods = ["random", "herding"]
    for given in (iter(methods), methods, (m for m in [*methods, "random"]), dict.fromkeys(methods)):
        for ipcs in (iter([1, 2]), np.array([1, 2]), range(1, 3), [1, 2, 1]):
            cells = compared(base, given, ipcs, np.int64(1), "out").cells
            assert [name for name, _ in cells] == expected
            given = methods
    assert [name for name, _ in compared({}, "random", 7, 1, "out").cells] == ["method=random_ipc=7/seed0"]
    cells = swept({}, {"method": iter(methods), "ipc": 2, "data.path": ["../a/b"]}, 1, "out").cells
    assert [name for name, _ in cells] == [f"method={m}_ipc=2_path=..%2Fa%2Fb/seed0" for m in methods]
    assert cells[0][1].data.path == "../a/b"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: compared(None, ["random"], 1, 1, "out"), "base is a mapping of recipe fields"),
        (lambda: swept(3, {}, 1, "out"), "base is a mapping of recipe fields"),
        (lambda: compared({}, [], 1, 1, "out"), "No method is given"),
        (lambda: compared({}, ["random"], 1, 0, "out"), "sets is how many .* not 0"),
        (lambda: swept({}, {}, 1.5, "out"), "sets is how many .* not 1.5"),
        (lambda: swept({}, {"ipc": iter([])}, 1, "out"), "No value is given for ipc"),
        (lambda: swept({}, ["ipc"], 1, "out"), "vary is a mapping"),
        (lambda: compared({}, ["random"], 5, 1, "out", subsample=0), "subsample takes whole numbers .* not 0"),
        (lambda: dap.compare({}, ["random"], 1, 1, "out", watcher=print), "watcher takes a dap.Watcher"),
        (lambda: dap.compare({}, ["random"], 1, 1, 3), "out takes the path of a folder, not 3"),
    ],
)
def test_arguments_of_a_wrong_kind_are_a_sentence(call, says):
    with pytest.raises(DapError, match=says):
        call()


@pytest.mark.parametrize(
    ("flags", "methods", "says"),
    [
        (["--steps", 20, "--cfg", 2], "random,herding", "Of random, herding none takes --steps, --cfg;"),
        (["--scale", 0.1], "vanilla,random", "none takes --scale"),
        (["--classifier", "x.safetensors"], "vanilla", "none takes --classifier"),
        (["--guidance", "mine.py:G", "--refine-steps", 2], "random", "none takes --guidance, --refine-steps"),
    ],
)
def test_a_flag_that_no_method_uses_is_refused(flags, methods, says, tmp_path, capsys):
    for words in (["compare", "--methods", methods], ["sweep", "--vary", f"method={methods}"]):
        assert main([str(word) for word in (*words, *flags, "--out", tmp_path / "out")]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_choice_goes_to_the_methods_that_use_it():
    """And a backbone that is named to all, as its size is that of sets of real images too."""
    base = {
        "sampling": {"steps": 20},
        "guidance": {"scale": 0.1},
        "classifier": "x.safetensors",
        "own_guidance": {"path": "mine.py:G"},
        "refine": {"steps": 2},
        "backbone": {"path": "starter"},
    }
    methods = {"random": set(), "herding": {"classifier"}, "vanilla": {"sampling", "own_guidance"}}
    methods |= {"dap": {"sampling", "own_guidance", "guidance"}, "random+refine": {"sampling", "refine"}}
    for cells in (comparison(base, list(methods), [1], 1), grid(base, {"method": list(methods)}, 1)):
        given = {recipe.method: recipe.model_fields_set & set(base) for _, recipe in cells}
        assert given == {name: {*sections, "backbone"} for name, sections in methods.items()}


@pytest.mark.parametrize(
    ("options", "base", "says"),
    [
        ({"scale": 1}, {}, "METHOD.NAME=VALUE here, with a method of random, dap; not 'scale'"),
        ({"mgd3.scale": 1}, {}, "not 'mgd3.scale'"),
        ({}, {"options": {"scale": 1}}, "belong to one method"),
    ],
)
def test_options_are_given_to_somebody(options, base, says):
    with pytest.raises(DapError, match=says):
        comparison(base, ["random", "dap"], [1], 1, options)


def test_a_failing_piece_stops_no_other(tmp_path):
    done = []

    def fail():
        raise DapError("the disk is full.")

    pieces = [("a", lambda: done.append("a")), ("b", fail), ("c", lambda: done.append("c"))]
    with pytest.raises(DapError, match="1 of 3 failed, the others are done. b: the disk is full."):
        share(pieces, tmp_path)
    assert done == ["a", "c"]


def test_a_piece_that_another_process_holds_is_waited_for(tmp_path):
    """A process that holds `a` is killed; `b` is done meanwhile, then `a`."""
    code = (
        "import sys, time, pathlib; from dap.base.claims import share\n"
        "def hold(): print('held', flush=True); time.sleep(600)\n"
        "share([('a', hold)], pathlib.Path(sys.argv[1]))"
    )
    done = []
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

        def b():
            done.append("b")
            holder.send_signal(signal.SIGKILL)
            holder.wait()

        share([("a", lambda: done.append("a")), ("b", b)], tmp_path, wait=0.05)
    assert done == ["b", "a"]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    """That one is killed with SIGKILL, so it cannot stop its worker; the worker has nothing to do and would sleep on."""
    worker, began = tmp_path / "worker", tmp_path / "began"
    code = (
        "import os, pathlib, sys, time\n"
        "from dap.base.workers import end_with_parent\n"
        "end_with_parent()\n"
        f"pathlib.Path({str(tmp_path / 'aside')!r}).write_text(str(os.getpid()))\n"
        f"os.replace({str(tmp_path / 'aside')!r}, {str(began)!r})\n"
        "time.sleep(600)\n"
    )
    worker.write_text(f"#!{sys.executable}\n{code}")
    worker.chmod(0o700)
    code = "import sys; from dap.base.workers import run_workers; sys.executable = sys.argv[1]; run_workers([], 1)"
    with subprocess.Popen([sys.executable, "-c", code, str(worker)]) as parent:
        while not began.exists():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    pid = began.read_text()
    for _ in range(600):
        stat = Path("/proc", pid, "stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(int(pid), signal.SIGKILL)
        pytest.fail("the worker went on")


@pytest.mark.parametrize(
    ("given", "found"), [(None, ["0", "1"]), ("2,5", ["2", "5"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])]
)
def test_workers_keep_to_the_gpus_that_are_given(given, found, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus(2) == found


@pytest.fixture
def command(colours, pipeline_folder, tmp_path):
    data = ["--data", str(colours), "--backbone", str(pipeline_folder), "--steps", "3"]
    methods = ["--methods", "random,vanilla,dap", "--ipc", "1,2", "--sets", "2", "--seeds", "2"]
    out = tmp_path / "out"
    return ["compare", *data, *methods, *FAST, "--reals", "2", "--out", str(out)], out


def children(pid):
    """The process ids of a process's children, of Linux's process table."""
    tables = [(int(entry.name), entry / "stat") for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    with contextlib.suppress(OSError):  # one that ended just now
        return [found for found, stat in tables if int(stat.read_text().rpartition(")")[2].split()[1]) == pid]
    return children(pid)


@pytest.mark.slow  # five processes; evaluations and sets have the same test among the quick ones
@pytest.mark.timeout(600)
def test_workers_share_the_cells_and_a_killed_one_is_made_up_for(command, tmp_path):
    arguments, out = command
    run = [sys.executable, "-m", "dap", *arguments, "--workers", "2"]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("*/*/trials.jsonl")):
        time.sleep(0.05)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert "was killed (signal 9); it is started again (1 of at most 3)." in stderr
    cells = sorted(str(p.parent.relative_to(out)) for p in out.glob("*/*/trials.jsonl"))
    assert len(cells) == 12, "the other worker took up what was left"
    lines = [(out / cell / "trials.jsonl").read_text().splitlines() for cell in cells]
    assert all(len(of_cell) == 2 for of_cell in lines)
    costs = [json.loads((out / cell / "cost.json").read_text()) for cell in cells]
    assert all(cost["seconds"] > 0 and cost["peak_memory_gb"] > 0 for cost in costs)
    assert {tuple(cost["needs"]) for cost in costs} == {(), ("backbone",)}
    alone = [part.replace(str(out), str(tmp_path / "alone")) for part in arguments]
    assert main(alone) == 0
    for cell in cells:
        manifest = (out / cell / "manifest.jsonl").read_bytes()
        assert manifest == (tmp_path / "alone" / cell / "manifest.jsonl").read_bytes()
    assert (out / "report.html").exists() and "vs vanilla" in stdout


def test_a_failing_cell_is_named_and_the_report_is_on_the_others(command, capsys, monkeypatch):
    arguments, out = command
    from dap.methods.selection.random import Random

    def prepare(self, task):
        def make(unit):
            raise DapError("no more images.")

        return make

    monkeypatch.setattr(Random, "prepare", prepare)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "4 of 12 failed, the others are done. method=random_ipc=1/seed0: no more images." in said.err
    assert (out / "report.html").exists() and "vanilla" in said.out


def test_the_methods_are_listed(capsys):
    from dap.methods import METHODS

    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in METHODS)
    for name, method in METHODS.items():
        assert main(["methods", name]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"{name}: ") and (method.reference or name == "random")
        assert all(f"  {option} = " in told for option in (method.Options.model_fields if method.Options else ()))
    assert main(["methods", "mgd"]) == 1


def test_a_baseline_never_sees_the_method_s_options(colours, pipeline_folder, tmp_path):
    """MGD3 beside DAP under two settings of DAP: its bytes are the same, DAP's are not."""
    made = {}
    for name, options in (("one", ["--scale", "0.01"]), ("two", ["--scale", "0.5", "--kernel", "rbf", "--layer", "2"])):
        common = [
            "--data",
            str(colours),
            "--backbone",
            str(pipeline_folder),
            "--steps",
            "4",
            "--ipc",
            "2",
            "--sets",
            "1",
        ]
        run = [
            "compare",
            "--methods",
            "mgd3,dap",
            *common,
            *options,
            "--reals",
            "2",
            *FAST,
            "--out",
            str(tmp_path / name),
        ]
        assert main([*run, "--option", "mgd3.scale=0.3"]) == 0
        for method in ("mgd3", "dap"):
            lines = (tmp_path / name / f"method={method}_ipc=2" / "seed0" / "manifest.jsonl").read_text().splitlines()
            made[name, method] = [json.loads(line)["sha256"] for line in lines]
        recipe = json.loads((tmp_path / name / "method=mgd3_ipc=2" / "seed0" / "recipe.json").read_text())
        assert recipe["guidance"] is None and recipe["options"]["scale"] == 0.3
    assert made["one", "mgd3"] == made["two", "mgd3"]
    assert made["one", "dap"] != made["two", "dap"]


def lines_of(made):
    return (made / "manifest.jsonl").read_text().splitlines()


def test_draws_from_a_larger_set_are_judged_as_its_method_s(colours, pipeline_folder, tmp_path, capsys):
    common = ["--data", str(colours), "--backbone", str(pipeline_folder), "--steps", "3", "--ipc", "1,3", "--sets", "2"]
    run = [
        "compare",
        "--methods",
        "vanilla,dap",
        *common,
        "--reals",
        "2",
        *FAST,
        "--subsample",
        "1,2",
        "--out",
        str(tmp_path),
    ]
    for _ in range(2):  # the second time everything is there
        assert main(run) == 0, capsys.readouterr().err
        told = capsys.readouterr().out
    drawn = tmp_path / "method=dap_ipc=3_drawn=2" / "seed1"
    whole = {json.loads(line)["sha256"] for line in lines_of(drawn.parents[1] / "method=dap_ipc=3/seed1")}
    mine = {json.loads(line)["sha256"] for line in lines_of(drawn)}
    assert len(mine) == 6 and mine < whole
    assert len(list(tmp_path.glob("*/*/trials.jsonl"))) == 2 * 2 * 4
    assert not list(tmp_path.glob("*ipc=1_drawn*"))
    costs = [
        json.loads((folder / "cost.json").read_text()) for folder in (drawn, tmp_path / "method=dap_ipc=3" / "seed1")
    ]
    assert costs[0] == costs[1], "a draw costs what it was drawn from"
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = [(row["method"], row["ipc"], row["recipe.drawn_from"], row["paired"]) for row in csv.DictReader(file)]
    assert ("dap", "2", "3", "True") in rows and ("vanilla", "1", "3", "") in rows and ("dap", "1", "", "True") in rows
    assert "drawn from 3" in told and "drawn_from" not in told


def test_clips_are_not_subsampled(tmp_path, capsys):
    """Sets were made before the first draw failed."""
    how = ["--data", "films", "--frames", "4", "--methods", "random", "--ipc", "2", "--subsample", "1"]
    assert main(["compare", *how, "--out", str(tmp_path / "grid")]) == 1
    assert "--subsample draws images from a set and no clips" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()
