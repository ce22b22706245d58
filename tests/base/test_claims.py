"""Leases on pieces of work."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest

from dap.base import alone
from dap.base.alone import Busy
from dap.base.claims import Claims, share
from dap.base.errors import DapError

HOLD = (
    "import sys, time, pathlib\n"
    "from dap.base import alone, claims\n"
    "alone.LEASE = 1.0\n"
    "with claims.Claims(pathlib.Path(sys.argv[1])).take('a') as mine:\n"
    "    print(mine, flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds the piece `a`."""
    monkeypatch.setattr(alone, "LEASE", 1.0)
    run = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def taken(of: Claims, name: str = "a") -> bool:
    with of.take(name) as mine:
        return mine


def test_one_process_holds_a_piece(holder, tmp_path):
    mine = Claims(tmp_path)
    end = time.monotonic() + 3  # three times the lease: the holder renews it
    while time.monotonic() < end:
        assert not taken(mine) and mine.held() == ["a"] and mine.held("b") == []
        time.sleep(0.1)
    assert taken(mine, "b")


def test_a_killed_process_loses_its_piece_at_once(holder, tmp_path):
    holder.kill()
    holder.wait()
    mine = Claims(tmp_path)
    assert taken(mine) and mine.held() == [] and not list(tmp_path.glob("*.lock"))


def test_a_lease_of_another_machine_that_is_gone_expires_for_who_looks_long_enough(holder, tmp_path):
    mine, began = Claims(tmp_path), time.monotonic()
    assert mine.held(look=60) == ["a"] and time.monotonic() - began < 30, "who lives on this machine is known at once"
    holder.kill()
    holder.wait()
    lease = tmp_path / "a.lock"
    lease.write_text(re.sub("(?m)^host=.*$", "host=elsewhere", lease.read_text()))
    assert mine.held() == Claims(tmp_path).held() == ["a"]
    began = time.monotonic()
    assert Claims(tmp_path).held(look=60) == [] and 0.9 <= time.monotonic() - began < 30


def test_a_stopped_process_loses_its_piece_after_the_lease(holder, tmp_path):
    mine = Claims(tmp_path)
    holder.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    while not taken(mine):
        assert time.monotonic() - began < 30
        time.sleep(0.1)
    assert time.monotonic() - began >= 0.9
    holder.send_signal(signal.SIGCONT)


def test_a_process_does_not_count_its_own_pieces(tmp_path):
    mine = Claims(tmp_path / "new")
    with mine.take("a/b") as first, Claims(tmp_path / "new").take("a/b") as second:
        assert first and not second and mine.held() == []


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path):
    import shutil

    mine = Claims(tmp_path / "new")
    with mine.take("a") as first:
        shutil.rmtree(tmp_path / "new")
        assert first
    assert taken(mine)


def test_a_piece_whose_folder_is_held_is_tried_again(tmp_path, monkeypatch):
    """A process that was stopped has lost its lease, but still holds the folder of its set."""
    tries = []

    def busy():
        tries.append(1)
        if len(tries) < 3:
            raise Busy("Another process is writing.")

    share([("a", busy)], tmp_path, wait=0.01)
    assert len(tries) == 3
    monkeypatch.setattr(alone, "LEASE", 0.05)

    def always():
        raise Busy("Another process is writing.")

    with pytest.raises(DapError, match="Another process is writing"):
        share([("a", always)], tmp_path, wait=0.01)


def test_a_process_that_was_killed_while_it_took_a_lease_blocks_nobody_for_ever(tmp_path, monkeypatch):
    """Between making the file and writing who holds it. The file is empty then, and filelock itself never frees it."""
    monkeypatch.setattr(alone, "LEASE", 0.5)
    (tmp_path / "unit.lock").touch()
    mine = Claims(tmp_path)
    with mine.take("unit") as held:
        assert not held
    began = time.monotonic()
    with mine.wait("unit"):
        assert time.monotonic() - began >= 0.4
        assert (tmp_path / "unit.lock").read_text()
        with Claims(tmp_path).take("unit") as held:
            assert not held
