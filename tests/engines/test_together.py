"""Several processes make one set: the same bytes as from one process, whoever is killed, stopped or late."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dap.base import alone, files
from dap.base.claims import Claims
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.sets import distilled
from dap.data.sets.contents import PARTS, part_files
from dap.data.sets.distilled import DistilledSet
from dap.engines import making, on_ray
from dap.evaluation.report.records import load_set
from dap.verbs.distill import distill
from dap.verbs.options import Engine, Machine, kind_of

SHARD = Engine(shard="1/1")
OWN = {"command.txt", "cost.json", ".lock"}


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a set beside those that name the command or the seconds."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if name not in OWN}


@pytest.fixture
def recipe(colours):
    return {"data": {"path": str(colours)}, "method": "random", "ipc": 4, "block": 2}


@pytest.fixture
def whole(recipe, tmp_path):
    distill(recipe, tmp_path / "whole")
    return bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("method", ["random", "vanilla", "dap", "dm"])
def test_a_shard_makes_what_one_process_makes(method, colours, pipeline_folder, tmp_path):
    asked = {"data": str(colours), "method": method, "ipc": 3}
    if method in ("vanilla", "dap"):
        asked |= {"backbone": str(pipeline_folder), "steps": 3, "block": 2}
        asked |= {"reals": 2} if method == "dap" else {}
    if method == "dm":
        asked |= {"options": {"iterations": 2}}
    distill(out=tmp_path / "one", **asked)
    made = distill(out=tmp_path / "two", engine=Engine(shard="2/3"), **asked)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(made) == 9 and not (tmp_path / "two" / ".work").exists()
    assert distill(out=tmp_path / "two", engine=SHARD, **asked).records == made.records


def test_threads_share_the_units_and_make_each_once(recipe, whole, tmp_path, monkeypatch):
    made, write = list[str](), distilled.write_atomically

    def counted(path, data):
        if path.suffix == ".png":
            made.append(path.name + path.parent.name)
        time.sleep(0.01)
        write(path, data)

    monkeypatch.setattr(distilled, "write_atomically", counted)
    runs = [
        threading.Thread(target=distill, args=(recipe, tmp_path / "set"), kwargs={"engine": Engine(shard=f"{k}/3")})
        for k in (1, 2, 3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert bytes_of(tmp_path / "set") == whole
    assert len(made) == len(set(made)) == 12, "an image was made twice"
    cost = json.loads((tmp_path / "set" / "cost.json").read_text())
    assert cost["images"] == 12 and cost["seconds"] > 0 and cost["needs"] == []


class Killed(BaseException):
    """The process ends here. Nothing of it may tidy up."""


@pytest.mark.parametrize("mend", [Engine(), SHARD])
def test_a_shard_that_is_killed_at_any_write_loses_nothing(mend, recipe, whole, tmp_path, monkeypatch):
    """Every file is replaced by os.replace, so a kill before and after each of these calls is every kill that can be told."""
    replace, encode, moment = os.replace, distilled.encoded, 0
    while True:
        out, calls = tmp_path / str(moment), [0]

        def kill(source, target, calls=calls, moment=moment):
            if calls[0] == moment // 2 and moment % 2 == 0:
                raise Killed
            replace(source, target)
            calls[0] += 1
            if calls[0] == moment // 2 + 1 and moment % 2 == 1:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", kill)
            try:
                distill(recipe, out, engine=SHARD)
            except Killed:
                before = DistilledSet.open(out).records if (out / "classes.json").exists() else []
            else:
                break
        monkeypatch.setattr(files.os, "replace", replace)
        if before:
            assert len(load_set(out).images) == len(before), "a report sees the same images"
        made = list[int]()
        with monkeypatch.context() as patch:
            patch.setattr(distilled, "encoded", lambda pixels, made=made: made.append(1) or encode(pixels))
            distill(recipe, out, engine=mend)
        assert bytes_of(out) == whole, moment
        assert len(made) == 12 - len(before), "an image that was there is made again"
        shutil.rmtree(out)
        moment += 1
    assert moment > 40


def test_a_unit_that_another_process_has_made_is_not_made_again(recipe, whole, tmp_path):
    """A process that is killed after half of the units; the parts of the manifest are all that it leaves."""
    out = tmp_path / "set"
    shutil.copytree(tmp_path / "whole", out)
    lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / PARTS).mkdir(parents=True)
    (out / PARTS / "0-0.jsonl").write_text("".join(lines[:2]))
    (out / PARTS / "2-2.jsonl").write_text("".join(lines[10:]))
    (out / "manifest.jsonl").write_text("".join(lines[4:6]))
    for line in (json.loads(line) for line in [*lines[2:4], *lines[6:10]]):
        (out / line["path"]).unlink()
    times = {file: file.stat().st_mtime_ns for file in out.glob("images/*/*.png")}
    assert len(DistilledSet.open(out)) == 6 == len(times) and len(load_set(out).images) == 6
    distill(recipe, out, engine=SHARD)
    assert bytes_of(out) == whole
    assert all(file.stat().st_mtime_ns == when for file, when in times.items())


@pytest.mark.parametrize("mend", [Engine(), SHARD])
def test_a_damaged_image_of_a_part_is_made_again(mend, recipe, whole, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(tmp_path / "whole", out)
    (out / PARTS).mkdir(parents=True)
    (out / "manifest.jsonl").rename(out / PARTS / "0-0.jsonl")
    lines = (out / PARTS / "0-0.jsonl").read_text().splitlines(keepends=True)
    for label in range(3):
        for slot in (0, 2):
            at = 4 * label + slot
            (out / PARTS / f"{label}-{slot}.jsonl").write_text("".join(lines[at : at + 2]))
    (out / "manifest.jsonl").write_bytes(b'{"path": "imag')  # a killed writer of an earlier sitting
    damaged = out / json.loads(lines[0])["path"]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert len(DistilledSet.open(out)) == 11
    distill(recipe, out, engine=mend)
    assert bytes_of(out) == whole


def test_a_process_alone_says_what_to_do_while_others_work(recipe, whole, tmp_path):
    out = tmp_path / "whole"
    with Claims(out / making.CLAIMS).take(f"{making.HERE}other"):
        with pytest.raises(DapError, match=f"Another process is making {out} in shards.*--shard 1/1"):
            distill(recipe, out)
        assert len(distill(recipe, out, engine=SHARD)) == 12
        assert (out / ".work").exists(), "it is of use to the other process"
    distill(recipe, out)
    assert bytes_of(out) == whole


def test_a_unit_that_was_left_on_a_machine_that_is_gone_blocks_nobody_for_ever(recipe, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "LEASE", 1.0)
    out = tmp_path / "whole"
    lease = out / making.CLAIMS / f"{making.HERE}other.lock"
    with Claims(lease.parent).take(lease.stem):
        held = lease.read_text()
    lease.write_text(re.sub("(?m)^host=.*$", "host=elsewhere", held))
    distill(recipe, out)
    assert bytes_of(out) == whole


def test_shards_say_what_to_do_while_a_process_works_alone(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "PATIENCE", 0.1)
    with alone.locked(tmp_path), pytest.raises(DapError, match="Another process is writing"):
        distill(recipe, tmp_path, engine=SHARD)


def test_a_stopped_process_loses_its_unit_and_the_images_stay_the_same(recipe, whole, tmp_path, monkeypatch):
    """The other process holds a unit and is stopped by SIGSTOP. When it goes on, it writes the unit once more."""
    monkeypatch.setattr(alone, "LEASE", 1.0)
    out = tmp_path / "set"
    code = (
        "import sys, time\n"
        "import torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # env.json of both says it
        "from dap.base import alone\n"
        "from dap.verbs import distill\n"
        "alone.LEASE = 1.0\n"
        "from dap.methods.selection.random import Random\n"
        "prepare = Random.prepare\n"
        "def slow(self, task):\n"
        "    make = prepare(self, task)\n"
        "    def held(unit):\n"
        "        print('held', flush=True); time.sleep(1)\n"
        "        return make(unit)\n"
        "    return held\n"
        "Random.prepare = slow\n"
        "distill.distill({'data': {'path': sys.argv[1]}, 'method': 'random', 'ipc': 4, 'block': 2},\n"
        "                sys.argv[2], engine=distill.Engine(shard='1/1'))\n"
    )
    run = [sys.executable, "-c", code, recipe["data"]["path"], str(out)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert len(distill(recipe, out, engine=SHARD)) == 12
        assert time.monotonic() - began < 60
        assert bytes_of(out).keys() >= whole.keys()
        other.send_signal(signal.SIGCONT)
        assert other.wait(60) == 0
    assert bytes_of(out) == whole


def test_another_machine_is_told(recipe, tmp_path):
    distill(recipe, tmp_path)
    said = json.loads((tmp_path / "env.json").read_text())
    assert said["versions"]["threads"] == str(torch.get_num_threads()) and said["versions"]["instructions"]
    told = Told()
    distill(recipe, tmp_path, watcher=told)
    assert not any("Warning" in note for note in told.notes)
    said["versions"] |= {"threads": "64", "instructions": "Z80"}
    (tmp_path / "env.json").write_text(json.dumps(said))
    for engine in (Engine(), SHARD):
        told = Told()
        distill(recipe, tmp_path, watcher=told, engine=engine)
        (note,) = [note for note in told.notes if "Warning" in note]
        here = torch.get_num_threads()
        assert f"64 CPU threads, and here it has {here}; and Z80 instructions of the CPU" in note


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Engine(shard="2/1"), "--shard takes I/N"),
        (Engine(engine="shard"), "does not know which of the processes"),
        (Engine(shard="1/2", workers=2), "A shard is one process"),
        (Engine(address="auto"), "add --engine ray"),
        (Engine(engine="ray", shard="1/2"), "no use with --engine ray"),
    ],
)
def test_choices_that_contradict_each_other_are_a_sentence(engine, says, recipe, tmp_path, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DapError, match=says):
        distill(recipe, tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_without_ray_its_engine_is_a_sentence(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(DapError, match=r"not installed; run pip install 'diffusion-as-priors\[ray\]'"):
        distill(recipe, tmp_path / "out", engine=Engine(engine="ray"))
    assert not (tmp_path / "out").exists()


def test_several_processes_need_names(colours, tmp_path):
    from dap.methods.selection.random import Random

    with pytest.raises(DapError, match="Give names in place of objects"):
        distill(out=tmp_path / "out", data=str(colours), method=Random(), engine=Engine(workers=2))
    assert kind_of(Engine(workers=1)) == "alone" and kind_of(Engine(workers=2)) == "workers"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(parent) == pid and state != "Z":
            found.append(int(entry.name))
    return found


def test_workers_make_a_set_and_a_killed_one_is_started_again(colours, pipeline_folder, tmp_path):
    asked = {"data": str(colours), "method": "vanilla", "backbone": str(pipeline_folder), "steps": 10, "block": 1}
    distill(out=tmp_path / "one", ipc=6, machine=Machine(device="cpu"), **asked)
    flags = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    out = tmp_path / "set"
    run = [sys.executable, "-P", "-m", "dap", "distill", *flags, "--ipc", "6", "--out", str(out), "--workers", "2"]
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not part_files(out):
            time.sleep(0.02)
        workers = children(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert len(workers) == 2 and "18 images in" in stdout
    ours, theirs = bytes_of(out), bytes_of(tmp_path / "one")
    assert {name: ours.get(name) for name in theirs} == theirs
    assert not (out / ".work").exists()


class Told(Watcher):
    """Keeps what is said."""

    def __init__(self):
        self.notes = list[str]()

    def note(self, text):
        self.notes.append(text)
