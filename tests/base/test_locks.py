"""One process writes a folder at a time, also where the file system has no locks of files."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time

import pytest
import torch

from dap.base import alone
from dap.base.alone import Busy, locked
from dap.base.store import Store
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet

fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")
NONE = ["ENOSYS", "ENOLCK", "EOPNOTSUPP"]
"""What Lustre without flock, NFS without its lock service, and other file systems answer."""

HOLD = (
    "import fcntl, pathlib, sys, time\n"
    "def none(*given): raise OSError(int(sys.argv[2]), 'no locks')\n"
    "fcntl.flock = none\n"
    "from dap.base import alone\n"
    "alone.LEASE = 1.0\n"
    "with alone.locked(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture(params=NONE)
def without(request, monkeypatch):
    """No file can be locked in this process; a lease holds for a second."""
    number = getattr(errno, request.param)

    def none(*given):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(alone, "LEASE", 1.0)
    return number


@pytest.fixture
def holder(without, tmp_path):
    """Another process that holds the folder."""
    run = [sys.executable, "-c", HOLD, str(tmp_path / "set"), str(without)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_without_locks_a_lease_is_held_and_given_back(without, tmp_path):
    for _ in range(2):
        with locked(tmp_path / "set"):
            assert names(tmp_path) == [".set.lease", "set"] and names(tmp_path / "set") == [".lock"]
        assert names(tmp_path) == ["set"]
    made = Store(tmp_path / "cache").get("x", {}, lambda: {"a": torch.ones(1)})
    assert made["a"] == 1 and not list((tmp_path / "cache").glob("*-lease"))


def test_another_holder_that_lives_is_said_and_a_killed_one_is_not_waited_for(holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(Busy, match="Another process is writing"), locked(tmp_path / "set"):
        pass
    assert time.monotonic() - began > 1  # it renews its lease meanwhile
    holder.kill()
    holder.wait()
    with locked(tmp_path / "set"):
        pass


@pytest.mark.parametrize("without", ["ENOSYS"], indirect=True)
def test_a_stopped_holder_loses_the_folder_after_the_lease(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with locked(tmp_path / "set", wait=20):
        pass


@pytest.mark.parametrize("without", ["ENOSYS"], indirect=True)
def test_a_process_that_was_killed_while_it_took_a_lease_blocks_no_folder_for_ever(without, tmp_path):
    """Between making the file and writing who holds it."""
    (tmp_path / ".set.lease").touch()
    with locked(tmp_path / "set"):
        assert (tmp_path / ".set.lease").read_text()
    assert names(tmp_path) == ["set"]


def test_a_set_is_made_and_judged_without_locks(without, colours, tmp_path, capfd):
    words = ["distill", "--method", "random", "--data", str(colours), "--out", str(tmp_path / "set"), "--ipc"]
    assert main([*words, "1"]) == 0 and main([*words, "2"]) == 0
    assert len(DistilledSet.open(tmp_path / "set")) == 6
    for _ in range(2):  # into a new folder, and once more
        assert main(["export", str(tmp_path / "set"), "--layout", "imagefolder", "--out", str(tmp_path / "out")]) == 0
    fast = ["--networks", "convnet1", "--epochs", "1", "--set", "width=4", "--set", "size=8"]
    assert main(["evaluate", str(tmp_path / "set"), *fast]) == 0
    assert "flock" not in capfd.readouterr().err and names(tmp_path) == ["out", "set"]


def test_an_error_of_the_disk_is_no_missing_lock(tmp_path, monkeypatch):
    def fails(*given):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="the disk is broken"), locked(tmp_path / "set"):
        pass
