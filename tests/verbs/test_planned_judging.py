"""`dap evaluate --dry-run` sees what the run with the same flags does."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from dap.base.errors import DapError
from dap.cli.main import main
from dap.verbs.judges import judging_plan
from dap.verbs.options import Judging, Machine

QUICK = ["--networks", "convnet1", "--set", "width=2", "--set", "size=8", "--epochs", "1", "--trials", "2"]


@pytest.fixture
def photos(colours, tmp_path, monkeypatch) -> Path:
    """Real images under names that are no words for splits, one of which is broken, and a set whose folders have no names."""
    monkeypatch.chdir(tmp_path)
    for split, name in (("train", "fold1"), ("test", "fold2")):
        shutil.copytree(colours / split, tmp_path / "photos" / name)
    (next((tmp_path / "photos" / "fold1" / "red").iterdir())).write_bytes(b"no image")
    for label, name in enumerate(("blue", "green", "red")):
        (tmp_path / "theirs" / str(label)).mkdir(parents=True)
        for file in sorted((colours / "train" / name).iterdir())[:2]:
            shutil.copy(file, tmp_path / "theirs" / str(label))
    return tmp_path


def call(capsys, *words: object) -> tuple[int, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_takes_the_flags_of_the_run_and_counts_its_trials(photos, capsys):
    data = ["--data", "photos", "--split", "train=fold1,test=fold2", "--max-bad-fraction", "0.5"]
    run = ["evaluate", "theirs", *data, "--classes", "blue", "green", "red", *QUICK, "--out", "out"]
    assert call(capsys, *run[: run.index("--classes")], *QUICK, "--dry-run")[0] == 1, "its folders are only numbered"
    before = files(photos)
    status, said = call(capsys, *run, "--dry-run")
    assert status == 0 and "theirs: 2 trainings; " in said, said
    assert files(photos) == before and not Path("out").exists()
    status, said = call(capsys, *run)
    assert status == 0, said
    before = files(photos)
    status, said = call(capsys, *run, "--dry-run")
    assert status == 0 and "theirs: 2 trainings, 2 of them there already" in said, said
    assert files(photos) == before
    status, said = call(capsys, *[word if word != "out" else "elsewhere" for word in run], "--dry-run")
    assert "theirs: 2 trainings; " in said, said
    (photos / "theirs" / "0" / "0.png").unlink()
    shutil.copy(next((photos / "photos" / "fold2" / "red").iterdir()), photos / "theirs" / "0" / "0.png")
    status, said = call(capsys, *run, "--dry-run")
    assert status == 0 and "theirs: 2 trainings; " in said, "those of other images do not count"


def test_trainings_on_held_out_images_are_told_from_tests(colours, tmp_path, capsys):
    out = tmp_path / "set"
    distil = ["distill", "--method", "random", "--data", colours, "--ipc", 2, "--held-out", 0.25, "--out", out]
    assert call(capsys, *distil)[0] == 0
    run = ["evaluate", out, *QUICK]
    assert call(capsys, *run, "--on", "validation")[0] == 0
    assert json.loads((out / "trials.jsonl").read_text().splitlines()[0])["protocol"].endswith(" on validation")
    assert "set: 2 trainings, 2 of them there already" in call(capsys, *run, "--on", "validation", "--dry-run")[1]
    assert "set: 2 trainings; " in call(capsys, *run, "--dry-run")[1]
    kept = [*run, "--on", "validation", "--out", tmp_path / "apart", "--dry-run"]
    assert "set: 2 trainings, 2 of them there already" in call(capsys, *kept)[1], (
        "what lies beside the set counts there"
    )


def test_a_width_that_no_network_has_is_refused():
    judging = Judging(networks=("resnet18",), changes={"width": 16})
    with pytest.raises(
        DapError, match="A width does nothing in resnet18. Leave it out, or take a network that has one"
    ):
        judging_plan(judging, Machine(device="cpu"))
    both = dataclasses.replace(judging, networks=("resnet18", "convnet3"))
    assert judging_plan(both, Machine(device="cpu")).protocol.width == 16
