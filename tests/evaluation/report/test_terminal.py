"""The accuracy table in terminals of several widths."""

from __future__ import annotations

import json
import re

import pytest

from dap.cli.results import shown
from dap.evaluation.report.expected import Claims
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import accuracy_table
from dap.evaluation.report.text import accuracy, figure, interval, signed, times, trainings
from dap.verbs.report import Results, write_page
from reported import make_set, recipe, sweep, trial

LONG = "folder/of/somebody/with_a_method.py:WithALongName"


@pytest.fixture
def compared(tmp_path):
    """Methods that need nothing, a backbone, and all there is, with two sets of two trainings on two networks."""
    paths = []
    for m, method in enumerate(("random", "vanilla", "dap", LONG)):
        for seed in (0, 1):
            trials = [
                trial(0.6 + 0.03 * m + 0.02 * seed + 0.01 * k, k, network=f"convnet{n}") for k in (0, 1) for n in (2, 3)
            ]
            path = make_set(tmp_path / f"{m}-{seed}", recipe(method, seed), trials)
            cost = json.loads((path / "cost.json").read_text())
            needs = ["backbone", "captions", "classifier", "training"] if method == LONG else []
            (path / "cost.json").write_text(json.dumps({**cost, "seconds": 8 + m, "needs": needs}))
            paths.append(path)
    return paths


@pytest.mark.parametrize("width", [80, 100, 120, 160, 250])
def test_it_fits_and_says_what_counts(compared, width):
    rows = summarise(load(compared))
    text = accuracy_table(rows, Claims()).terminal(width, colour=False)
    titles = {f"ConvNet-{n}, small-hard, 300 epochs, 10,000 test images" for n in (2, 3)}
    lines = text.split("\n")
    assert titles <= set(lines) and max(len(line) for line in lines) <= width
    for row in rows:
        assert row.difference is None or row.difference.paired
        wanted = [accuracy(row.score), trainings(row.score), times(row)]
        wanted += [signed(row.difference.value), interval(row.difference)] if row.difference else []
        assert any(all(part in line for part in wanted) for line in lines), wanted
        # The cost stands in the same line, or in that of a table below.
        costs = [figure(row.seconds), figure(row.memory), *([", ".join(row.group.needs)] if row.group.needs else [])]
        assert any(all(part in line for part in costs) for line in lines), costs
    shown = "representa-" in text
    assert shown or "in the report: representativeness, diversity, coverage" in " ".join(lines)
    assert shown or width < 200


def test_points_of_a_sweep_stay_apart(tmp_path):
    rows = summarise(load(sweep(tmp_path, "scale", [0.1, 0.2, 0.3])))
    text = accuracy_table(rows, Claims()).terminal(80, colour=False)
    assert all(f"{scale} step" in text for scale in (0.1, 0.2, 0.3))


def test_sets_without_a_trial_are_shown(tmp_path):
    text = accuracy_table(summarise(load([make_set(tmp_path / "a", recipe("random", 0))])), Claims()).terminal(
        80, colour=False
    )
    assert text.startswith("no trials here\n")


def test_a_pipe_gets_markdown_and_a_terminal_does_not(compared, tmp_path, monkeypatch):
    assert "| method " in shown(Results(tuple(compared), write_page(compared, tmp_path / "out", "A title"))).text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("NO_COLOR", "1")
    told = shown(Results(tuple(compared), write_page(compared, tmp_path / "out", "A title"))).text
    assert "|" not in told and max(map(len, told.partition("\nReport: ")[0].split("\n"))) <= 90


def test_styles_are_for_terminals_alone_and_change_no_text(compared, monkeypatch):
    table = accuracy_table(summarise(load(compared)))
    plain, styled = (table.terminal(100, colour=colour) for colour in (False, True))
    marks = re.compile("\x1b\\[[0-9;]*m")
    assert marks.search(styled) and not marks.search(plain)
    assert [line.rstrip() for line in marks.sub("", styled).split("\n")] == plain.split("\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert table.terminal(100) == plain
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert table.terminal(100) == styled
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert table.terminal(100) == plain


def test_a_name_cannot_write_elsewhere_on_the_terminal(tmp_path):
    hostile = recipe("dap\x1b[2J\r[bold]x[/bold]", 0)
    text = accuracy_table(summarise(load([make_set(tmp_path / "a", hostile, [trial(0.5)])]))).terminal(
        100, colour=False
    )
    assert "\x1b" not in text and "\r" not in text and "[bold]x[/bold]" in text
