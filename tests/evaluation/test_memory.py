"""Judging and training teachers take no more memory than their budget: peaks do not grow with the number of images."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

from dap.cli.main import main
from dap.data.real.sources import FolderSource
from dap.data.real.stored.streams import Streamed
from dap.data.sets.distilled import DistilledSet
from dap.evaluation import judge as judging

ROOT = Path(__file__).parents[2]
FAST = ["--protocol", "small-hard", "--networks", "convnet1", "--epochs", "2", "--set", "width=4", "--set", "size=8"]
TINY = ["--memory", "0.000001"]


@pytest.fixture
def made(colours, tmp_path):
    out = tmp_path / "set"
    assert main(["distill", "--method", "random", "--data", str(colours), "--ipc", "3", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("more", [[], ["--disk", "0.0000001"]], ids=["in a file", "decoded in every pass"])
def test_results_are_the_same_to_the_last_bit_within_the_smallest_memory(made, tmp_path, more, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    assert main(["evaluate", str(made), *FAST, "--quiet"]) == 0
    streamed = []
    really = judging.evaluate
    monkeypatch.setattr(
        judging,
        "evaluate",
        lambda train, test, *a, **k: streamed.append((train[0], test[0])) or really(train, test, *a, **k),
    )
    assert main(["evaluate", str(other), *FAST, *TINY, *more, "--quiet"]) == 0
    assert all(isinstance(images, Streamed) for images in streamed[0])

    def told(folder):
        trial = json.loads((folder / "trials.jsonl").read_text())
        trial = {name: value for name, value in trial.items() if name not in ("seconds", "time")}
        return trial, *((folder / name).read_text() for name in ("measures.json", "images.json"))

    assert told(made) == told(other)
    assert sorted(f.name for f in (made / "neighbours").iterdir()) == sorted(
        f.name for f in (other / "neighbours").iterdir()
    )


def test_a_set_that_is_judged_already_loads_no_test_image(made, monkeypatch):
    assert main(["evaluate", str(made), *FAST, "--quiet"]) == 0
    before = {name: (made / name).read_bytes() for name in ("trials.jsonl", "measures.json", "images.json")}
    asked = []
    really = FolderSource._decode
    monkeypatch.setattr(
        FolderSource, "_decode", lambda self, label, index: asked.append(self._root.name) or really(self, label, index)
    )
    monkeypatch.setattr(DistilledSet, "tensors", lambda *a, **k: pytest.fail("the images of the set were loaded"))
    assert main(["evaluate", str(made), *FAST, "--quiet"]) == 0
    assert "test" not in asked, f"{len(asked)} images were decoded"
    assert {name: (made / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("flags", [["--memory", "0"], ["--disk", "-1"], ["--memory", "nan"]])
def test_a_budget_that_is_none_is_one_sentence(made, flags, capsys):
    assert main(["evaluate", str(made), *FAST, *flags]) == 1
    assert f"{flags[0]} takes a number of GiB above 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)  # four commands of their own, on a machine that may be busy
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """2,000 images more of 128 px, in a process each: 98 MB as bytes, and four times as much as floats."""
    bench = runpy.run_path(str(ROOT / "benchmarks" / "synthetic_imagenet.py"))
    small = ["--set", "size=128", "--set", "width=4", "--set", "mean=[0.5]", "--set", "std=[0.25]", *TINY]
    peaks: dict[str, list[float]] = {"judge": [], "train-teacher": []}
    for images in (40, 540):
        judged, taught = tmp_path / f"judged{images}", tmp_path / f"taught{images}"
        bench["make"](judged, classes=4, train=20, test=images, side=128)
        bench["make"](taught, classes=4, train=images, test=20, side=128)
        for folder in (judged / "train").iterdir():  # a set of two images a class
            (tmp_path / f"set{images}" / folder.name).mkdir(parents=True)
            for name in ("00000.png", "00001.png"):
                shutil.copy(folder / name, tmp_path / f"set{images}" / folder.name)
        teacher = tmp_path / f"teacher{images}"
        words = ["--data", taught, "--out", teacher, "--network", "convnet1", "--epochs", "1"]
        peaks["train-teacher"].append(bench["run"](["train-teacher", *words, *small]).peak_mb)
        # The features of the measures are the small teacher's: the usual network takes most of a minute for 1,000 images.
        words = ["--data", judged, "--out", tmp_path / f"out{images}", "--reference", teacher]
        judge = ["evaluate", tmp_path / f"set{images}", *words, *FAST[:6], *small, "--neighbours", "3"]
        peaks["judge"].append(bench["run"](judge).peak_mb)
    grown = {name: after - before for name, (before, after) in peaks.items()}
    assert all(more < 90 for more in grown.values()), grown
