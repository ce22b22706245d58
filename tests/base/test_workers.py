"""The processes that share a grid: what they import, and where their lines go."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from dap.base import workers
from dap.base.errors import DapError
from dap.base.workers import AGAIN, run_workers


def test_a_file_of_the_current_folder_stands_in_for_no_module(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("import pathlib\npathlib.Path('imported').touch()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    run_workers(["verify", "--help"], 2)
    assert not (tmp_path / "imported").exists()


def test_lines_of_workers_are_told(tmp_path):
    lines = []
    with pytest.raises(DapError, match="Worker 0, 1 of 2 stopped early. The last that was said there: .*nowhere"):
        run_workers(["verify", str(tmp_path / "nowhere")], 2, tell=lines.append)
    assert len(lines) == 2 and all(line.startswith("dap: error: ") and not line.endswith("\n") for line in lines)


@pytest.fixture
def as_dap(tmp_path, monkeypatch):
    """Lets workers run a script in place of `dap`. The script knows how often its worker was started."""

    def use(script: str):
        code = (
            f"#!{sys.executable}\n"
            "import os, pathlib, signal, sys, time\n"
            "number = os.environ['DAP_WORKER'].partition('/')[0]\n"
            f"starts = pathlib.Path({str(tmp_path)!r}) / ('starts-' + number)\n"
            "start = len(starts.read_text()) if starts.exists() else 0\n"
            "starts.write_text('x' * (start + 1))\n"
            "beat = pathlib.Path(os.environ['DAP_BEAT'])\n"
            "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        file = tmp_path / "worker"
        file.write_text(code + script)
        file.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(file))
        return lambda: {name.name[7:]: len(name.read_text()) for name in sorted(tmp_path.glob("starts-*"))}

    return use


@pytest.mark.parametrize("script", ["start < 2 and die()", "start < 2 and sys.exit(130)"])
def test_a_worker_that_is_killed_is_started_again(as_dap, script):
    starts, lines = as_dap(f"time.sleep(0.2 if start else 0); {script}"), []
    run_workers([], 1, tell=lines.append)
    assert starts() == {"1": 3}
    assert [line for line in lines if "it is started again" in line][1].endswith("started again (2 of at most 3).")


def test_a_worker_is_not_started_again_without_end(as_dap):
    starts = as_dap("die()")
    began = time.monotonic()
    with pytest.raises(DapError, match="Worker 0, 1 of 2 stopped early. Each was killed 4 times"):
        run_workers([], 2, tell=lambda line: None)
    assert starts() == {"1": AGAIN + 1, "2": AGAIN + 1} and time.monotonic() - began < 60


def test_work_that_others_have_finished_is_done(as_dap):
    """A worker that ends well has seen that all pieces are done. So one that was killed is not missed."""
    starts = as_dap("number == '1' and (time.sleep(3), die()); time.sleep(0.1)")
    run_workers([], 2, tell=lambda line: None)
    assert starts() == {"1": 1, "2": 1}


def test_a_mistake_ends_the_run_though_others_were_killed(as_dap):
    starts = as_dap("number == '1' and die()\nsys.stderr.write('dap: error: No such data.\\n')\nsys.exit(1)")
    with pytest.raises(
        DapError, match="^Worker 1 of 2 stopped early. The last that was said there: No such data. What"
    ):
        run_workers([], 2, tell=lambda line: None)
    assert starts()["2"] == 1, "a mistake stays one"


def test_a_worker_that_stalls_is_started_again(as_dap, monkeypatch):
    """Stopped by SIGSTOP, it gives no sign of life. Before its first sign it is not missed, as imports take their time."""
    monkeypatch.setattr(workers, "STALLED", 1.0)
    starts = as_dap("time.sleep(1.5); beat.touch(); start or os.kill(os.getpid(), signal.SIGSTOP)")
    lines = []
    run_workers([], 1, tell=lines.append)
    assert starts() == {"1": 2}
    assert "Worker 0 gave no sign of life for 1 s and is ended." in lines


def test_a_process_gives_signs_of_life(tmp_path):
    beat = tmp_path / "beat"
    code = "import time; from dap.base.workers import end_with_parent; end_with_parent(); time.sleep(60)"
    run = [sys.executable, "-c", code]
    with subprocess.Popen(run, stdin=subprocess.PIPE, env={**os.environ, "DAP_BEAT": str(beat)}) as process:
        while not beat.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
