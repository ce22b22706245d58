"""Progress: bars in a terminal, and elsewhere now and then a plain line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dap.cli import bars
from dap.cli.bars import Bars, Lines, time_left

TRIAL = SimpleNamespace(network="convnet3", seed=1, accuracy=0.731, seconds=12.4)


@pytest.mark.parametrize(
    ("done", "left", "seconds", "says"),
    [
        (0, 4, 100, ""),
        (4, 0, 100, ""),
        (2, 2, 30, "about 30 s left"),
        (1, 3, 60, "about 3 min left"),
        (1, 10, 3600, "about 10.0 h left"),
    ],
)
def test_time_left(done, left, seconds, says):
    assert time_left(done, left, seconds) == says


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(bars.time, "monotonic", lambda: now.seconds)
    return now


def test_a_file_gets_a_line_every_few_seconds(clock, capsys):
    lines = Lines(every=5)
    for done in range(81):
        lines.images("set", done, 80, "Bag")
        clock.seconds += 0.25
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "set: 20 of 80 images, about 15 s left" and told[-1] == "set: 80 images"
    assert len(told) == 4


def test_short_work_is_no_news_but_every_result_is(clock, capsys):
    lines = Lines(every=5)
    clock.seconds += 60  # a backbone was loaded; an error before the first image must stand alone
    lines.images("set", 0, 10)
    assert capsys.readouterr().err == ""
    lines.images("set", 10, 10)
    lines.epoch(0, 1, 1)
    lines.trial("set", TRIAL)
    assert capsys.readouterr().err == "set: convnet3, seed 1: 73.1% (12 s)\n"


def test_lines_tell_when_all_cells_will_be_done(clock, capsys):
    lines = Lines(every=5)
    lines.cells(2, 12)  # two were made by an earlier run, which says nothing about the pace of this one
    clock.seconds += 60
    lines.cells(3, 12)
    assert capsys.readouterr().err == "3 of 12 cells, about 9 min left\n"
    lines.work("training", 0, 10)
    clock.seconds += 6
    lines.work("training", 1, 10)
    assert capsys.readouterr().err == "training: 1 of 10 done, about 54 s left, 3 of 12 cells, about 9 min left\n"


def test_one_of_several_processes_tells_results_alone(clock, capsys):
    lines = Lines(every=float("inf"))
    for done in range(4):
        clock.seconds += 100
        lines.images("a", done, 3)
        lines.cells(done, 3)
    lines.trial("a", TRIAL)
    assert capsys.readouterr().err == "a: convnet3, seed 1: 73.1% (12 s)\n"


def drawn(code: str, **settings: str) -> str:
    """What code writes to a terminal of 80 columns as its standard error."""
    pty = pytest.importorskip("pty")
    mine, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**kept, "TERM": "xterm-256color", "COLUMNS": "80", **settings}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                part = os.read(mine, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            told += part
        assert process.wait() == 0
    os.close(mine)
    return told.decode()


WORK = """
from types import SimpleNamespace
from dap.cli.bars import close, watcher
told = watcher()
told.cells(0, 2)
for done in range(5):
    told.images("set", done, 4, "[Bag]")
told.trial("set", SimpleNamespace(network="convnet3", seed=1, accuracy=0.731, seconds=12.4))
told.cells(1, 2)
close()
"""


def test_a_terminal_gets_bars_and_keeps_results_alone():
    told = drawn(WORK)
    assert "all cells" in told and "1/2" in told and "\x1b[" in told
    plain = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", told)
    assert "set: convnet3, seed 1: 73.1% (12 s)" in plain


def test_no_color_and_a_dumb_terminal():
    colours = "\x1b\\[(?!0m)[0-9;]+m"
    assert re.search(colours, drawn(WORK))
    quiet = re.findall(colours, drawn(WORK, NO_COLOR="1"))
    assert not [code for code in quiet if re.search("3[0-9]|38;", code)]
    assert "\x1b" not in drawn(WORK, TERM="dumb")


def test_closing_takes_bars_off(capsys):
    made = Bars()
    made.images("set", 1, 4)
    assert bars._open == [made]
    bars.close()
    assert bars._open == []
