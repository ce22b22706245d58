"""How the command ends when it is told to: its status, no trace, and that it does not wait for long work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from dap.cli import signals
from dap.data.sets.distilled import DistilledSet

LONG = 60.0
"""Seconds. Longer than every wait here, so that a slow machine fails no test; what is measured is in docs/reliability.md."""


def started(*words: object, before=None) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "dap", *map(str, words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=before
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it wrote to standard error. A process that does not end fails the test and is killed."""
    try:
        return process.communicate(timeout=LONG)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def plain(said: str) -> None:
    assert "Traceback" not in said and "Exception ignored" not in said and 'File "' not in said, said


@pytest.fixture(scope="module")
def flags(pipeline_folder, colours):
    return [
        "--method",
        "dap",
        "--backbone",
        pipeline_folder,
        "--data",
        colours,
        "--steps",
        900,
        "--ipc",
        20,
        "--reals",
        4,
    ]


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])  # SIGTERM is below
def test_a_signal_ends_the_work_with_its_own_status_and_the_work_goes_on_later(name, flags, tmp_path):
    number, out = getattr(signal, name), tmp_path / "set"
    process = started("distill", *flags, "--block", 1, "--steps", 30, "--out", out)
    deadline = time.monotonic() + 200
    while not (out / "manifest.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.01)
    process.send_signal(number)
    said = ended(process)
    assert process.returncode == 128 + number
    assert said.endswith("dap: interrupted. What was made is kept; run the same command to go on.\n")
    plain(said)
    assert 0 < len(DistilledSet.open(out)) < 60
    assert not list(out.rglob(".tmp-*"))


def test_a_signal_during_the_start_leaves_no_trace(flags, tmp_path):
    """At six moments of the first seconds, two for each signal, while Python imports torch and diffusers."""
    draw = random.Random(0)
    for k in range(6):
        number = getattr(signal, signals.NAMES[k % 3])
        process = started("distill", *flags, "--out", tmp_path / str(k))
        time.sleep(0.15 + draw.random() * 2.5)
        process.send_signal(number)
        said = ended(process)
        # Before the first line of `dap` has run, the signal has its default effect, or Python's own.
        assert process.returncode in (128 + number, -number), said
        if "dap:" in said:
            plain(said)
        else:
            assert "/dap/cli/" not in said, said


def test_nohup_stays_nohup(flags, tmp_path):
    process = started(
        "distill", *flags, "--out", tmp_path / "set", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "set" / "recipe.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.5 * signals.PATIENCE)
    assert process.poll() is None, "it goes on"
    process.terminate()
    ended(process)
    assert process.returncode == 128 + signal.SIGTERM


STUCK = """
import sys, time
from dap.cli import signals, main
import dap.verbs.report

def stuck(*_, **__):
    print("working", flush=True)
    {how}

dap.verbs.report.found_sets = stuck
sys.argv = ["dap", "report", "x", "--out", "y"]
from dap.__main__ import entry
entry()
"""


@pytest.mark.parametrize(
    "how",
    [
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",  # a long call into C
        "\n    while True:\n        try:\n            time.sleep(1)\n        except KeyboardInterrupt:\n            pass",
    ],
    ids=["in C", "swallows it"],
)
def test_what_does_not_listen_is_ended(how, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", STUCK.replace("{how}", how)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    process.terminate()
    said = ended(process)
    assert process.returncode == 128 + signal.SIGTERM and "dap: interrupted. What was made is kept" in said
    plain(said)


def test_workers_end_with_the_command(flags, tmp_path):
    out = tmp_path / "grid"
    words = ["compare", "--methods", "vanilla,dap", *flags[2:], "--workers", 2, "--sets", 1, "--networks", "convnet1"]
    process = started(*words, "--out", out)
    deadline = time.monotonic() + 200
    while not list(out.glob("**/recipe.json")):
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.05)
    process.terminate()
    said = ended(process)
    assert process.returncode == 128 + signal.SIGTERM, said
    plain(said)
    deadline = time.monotonic() + LONG
    while any(str(out) in line for line in _processes()):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)


def _processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout.splitlines()
