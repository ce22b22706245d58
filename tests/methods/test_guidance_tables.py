"""The tables over DAP's own choices in docs/results.md are made of the lines of docs/guidance.csv."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def guidance():
    spec = importlib.util.spec_from_file_location("guidance_tables", ROOT / "benchmarks" / "guidance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_lines(guidance):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, made in guidance.tables(guidance.read()).items():
        begin, end = guidance.BEGIN.format(name), guidance.END.format(name)
        assert text.count(begin) == text.count(end) == 1
        assert text.split(begin)[1].split(end)[0].strip() == made, name


def test_the_rows_have_the_means_of_their_sets():
    """Read again by hand, without the script: γ of Eq. 8 with the last push."""
    with (ROOT / "docs" / "guidance.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["unit"] == "paper" and line["last_step"] == "True"]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for scale in {line["scale"] for line in lines}:
        values = [float(line["last_percent"]) for line in lines if line["scale"] == scale]
        (row,) = re.findall(rf"^\| {float(scale):g} \| ([\d.]+)[^|]*\| (\d+) \|", text.split("eq8 made by")[1], re.M)[
            :1
        ]
        assert (float(row[0]), int(row[1])) == (pytest.approx(fmean(values), abs=0.051), len(values))
    assert {line["protocol"] for line in lines} == {"quick-hard on validation"} and all(
        line["n_test"] == "3000" for line in lines
    )
