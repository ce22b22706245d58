"""benchmarks/layers.py: sets are taken up once, and criteria are compared with accuracies by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "layers.py"))


def test_trials_are_taken_up_once(tmp_path):
    for layer, last in (("0", 0.7), ("mid", 0.75)):
        folder = tmp_path / f"layers={layer}" / "seed0"
        folder.mkdir(parents=True)
        recipe = {"backbone": {"path": "x"}, "method": "auto", "ipc": 1, "seed": 0, "refine": {"layers": [layer]}}
        (folder / "recipe.json").write_text(json.dumps(recipe))
        trial = {"protocol": "p on validation", "network": "convnet3", "seed": 0, "n_test": 30, "last": last}
        (folder / "trials.jsonl").write_text(json.dumps(trial) + "\n")
    for _ in range(2):
        BENCHMARK["add"]([tmp_path], tmp_path / "ledger.csv")
    lines = BENCHMARK["read"](tmp_path / "ledger.csv")
    assert len(lines) == 2
    assert BENCHMARK["accuracies"](lines, "x") == {"0": 70.0, "mid": 75.0}
    assert BENCHMARK["accuracies"](lines, "y") == {}


def test_agreement_by_hand():
    truth = {"a": 70.0, "b": 72.0, "c": 75.0}
    scores = {"a": 0.1, "b": 0.3, "c": 0.2, "unknown": 0.9}
    rank, chosen, loss = BENCHMARK["agreement"](scores, truth)
    assert (rank, chosen, loss) == (pytest.approx(0.5), "b", 3.0)  # 1 - 6 (0 + 1 + 1) / (3 * 8)
    text = BENCHMARK["table"]({"probe": scores}, truth)
    assert "| `unknown` | – | 0.900 |" in text and "| +0.50 |" in text and "`b`, 3.0" in text


def test_the_ledger_has_trials_on_validation_alone():
    lines = BENCHMARK["read"](BENCHMARK["LEDGER"])
    assert lines and all(line["protocol"].endswith("on validation") for line in lines)
