"""What processes that were killed in the middle of a write leave behind, and who removes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dap.base import disk
from dap.base.disk import OLD, aside_of
from dap.base.files import write_atomically

WRITES = """
import sys, time, pathlib
from dap.base.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(disk, "_swept", set())  # as in a new process


def half_written(path):
    process = subprocess.Popen([sys.executable, "-P", "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_the_file_of_a_killed_process_goes_at_the_next_write_there_and_that_of_a_living_one_stays(tmp_path):
    path = tmp_path / "page.html"
    killed, living = half_written(path), half_written(path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert len(list(tmp_path.iterdir())) == 2 and not path.exists()
        write_atomically(tmp_path / "other", b"x")
        names = {file.name for file in tmp_path.iterdir()}
        assert len(names) == 2 and any(f"-{living.pid}-" in name for name in names), names
    finally:
        living.kill()
        living.communicate()


def test_only_files_of_our_names_go_and_those_of_other_machines_by_age(tmp_path):
    ours = aside_of(tmp_path / "x").name
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    of_dead = ours.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = ".tmp-0badcafe-" + of_dead.split("-", 2)[2]
    others = [".tmp-mine", ".tmpfile", "tmp-1-0a0b0c0d", f"{of_dead}.png", ".hidden.tmp", ".tmp-12345678-x-12345678"]
    before = [
        ".tmp-4194304-0a0b0c0d",
        ".report.html.4194304.tmp",
    ]  # of earlier versions, which did not name the machine
    (tmp_path / f".tmp-12345678-{dead.pid}-0a0b0c0d.d").mkdir()
    for name in (ours, of_dead, elsewhere, *others, *before):
        (tmp_path / name).write_bytes(b"x")
    disk.sweep(tmp_path)
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {ours, elsewhere, *others, *before}
    old = time.time() - OLD - 60
    for file in tmp_path.iterdir():
        os.utime(file, (old, old))
    disk.sweep(tmp_path)
    assert (tmp_path / elsewhere).exists(), "a folder is looked at once"
    disk._swept.clear()
    disk.sweep(tmp_path)
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {ours, *others}, (
        "the owner lives, however old its file is"
    )


def test_a_folder_that_is_used_for_days_is_not_taken_for_a_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "OLD", 0.24)  # its time is renewed every hundredth of a second
    with disk.passing_folder(tmp_path) as folder:
        os.utime(folder, (0, 0))
        deadline = time.monotonic() + 20
        while folder.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not folder.exists()


@pytest.mark.parametrize("verb", ["report", "export"])
def test_a_killed_verb_leaves_nothing_after_it_ran_again(verb, colours, tmp_path):
    """`dap report` and `dap export --layout fkd`, killed while a file of theirs is half-written."""
    from dap.cli.main import main

    made, out, teacher = tmp_path / "set", tmp_path / "out", tmp_path / "teacher.safetensors"
    assert main(["distill", "--method", "random", "--data", str(colours), "--ipc", "2", "--out", str(made)]) == 0
    small = ["--set", "size=8", "--set", "width=4", "--epochs", "1"]
    assert main(["train-teacher", "--data", str(colours), "--network", "convnet2", *small, "--out", str(teacher)]) == 0
    fkd = ["export", str(made), "--layout", "fkd", "--teacher", str(teacher), *small[2:], "--set", "size=16"]
    words = [*fkd, "--out", str(out)] if verb == "export" else ["report", str(made), "--out", str(out)]
    stop = (
        "import os, sys, signal\nfrom dap.cli.main import main\nfsync = os.fsync\ncount = 0\n"
        "def kills(handle):\n    global count\n    count += 1\n    fsync(handle)\n"
        "    if count == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = kills\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", stop, *words])
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.glob(".tmp-*"))) == 1
    assert main(words) == 0
    assert not list(out.glob(".tmp-*"))
