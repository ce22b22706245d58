"""The benchmarks run, and the field's training loop written for one of them is what it says it is."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

EVALUATION = Path(__file__).parents[1] / "benchmarks" / "evaluation.py"


def test_a_tiny_comparison_of_training_loops(monkeypatch, capsys):
    flags = "--network convnet1 --size 16 --ipc 1 --test-per-class 2 --epochs 4 --rounds 2 --workers 0 --device cpu"
    monkeypatch.setattr(sys, "argv", [EVALUATION.name, *flags.split()])
    with torch.random.fork_rng():
        runpy.run_path(str(EVALUATION), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    rounds = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(r["round"], r["way"]) for r in rounds] == [(0, "plain"), (0, "dap"), (1, "plain"), (1, "dap")]
    assert {r["way"]: (len(r["train"]), len(r["test"])) for r in rounds} == {"plain": (4, 2), "dap": (2, 2)}
    assert all(0 <= r["last"][0] <= r["best"][0] <= 1 and min(r["train"]) > 0 for r in rounds)
    header, row = (next(line for line in lines if line.startswith(start)) for start in ("| network", "| convnet1"))
    assert "3000 epochs, 100 looks" in header and header.count("|") == row.count("|")


def test_training_and_testing_must_be_told_apart(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [EVALUATION.name, "--epochs", "2"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EVALUATION), run_name="__main__")
    assert "two epochs without a look are needed" in capsys.readouterr().err


def test_cutmix_of_the_plain_loop_knows_the_area_it_kept():
    cut_mixed = runpy.run_path(str(EVALUATION))["cut_mixed"]
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 12, 9)
    random.seed(0)
    torch.manual_seed(0)
    for _ in range(20):
        mixed, others, own = cut_mixed(images, torch.arange(5))
        for label, (image, other) in enumerate(zip(mixed, others.tolist(), strict=True)):
            assert set(image.unique().tolist()) <= {label, other}
            if label != other:
                assert (image == label).float().mean().item() == pytest.approx(own, abs=1e-6)
