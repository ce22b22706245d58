"""`dap export --layout fkd` and `dap evaluate` with the same flags fit each other."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from dap.cli.main import main
from dap.evaluation.training.evaluate import _Ready

STORED = ["--set", "labels={kind: stored, temperature: 4}", "--set", "width=4", "--epochs", 2]
VALUES = ["--set", "mean=[0.5]", "--set", "std=[0.5]", "--set", "size=16"]


def call(capsys, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(a) for a in args])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def teacher(colours, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    small = ["--network", "convnet2", "--set", "size=8", "--set", "width=8", "--epochs", "1"]
    assert main(["train-teacher", "--data", str(colours), *small, "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def ours(colours, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ours") / "set"
    assert main(["distill", "--method", "random", "--data", str(colours), "--ipc", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture
def made(ours, tmp_path) -> Path:
    return shutil.copytree(ours, tmp_path / "set")


def trials(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("protocol", ["small-hard", "small-hard-dsa", "quick-hard"])
def test_stored_labels_have_an_epoch_for_each_epoch_of_the_training(protocol, made, teacher, tmp_path, capsys):
    """small-hard and small-hard-dsa train one epoch more than `epochs` says."""
    flags = ["--protocol", protocol, *STORED, *VALUES]
    labels = tmp_path / "labels"
    status, out, err = call(capsys, "export", made, "--layout", "fkd", "--teacher", teacher, *flags, "--out", labels)
    assert status == 0, err
    assert json.loads((labels / "index.json").read_text())["epochs"] == (2 if protocol == "quick-hard" else 3)
    status, _, err = call(capsys, *shlex.split(out.rpartition("Next: ")[2])[1:], "--networks", "convnet2")
    assert status == 0, err
    assert [trial["epochs"] for trial in trials(made)] == [2]


def test_labels_of_too_few_epochs_are_told_before_any_training(made, teacher, tmp_path, capsys, monkeypatch):
    """Also where the second network alone trains for more epochs."""
    (tmp_path / "mine.yaml").write_text(
        "extends: small-hard\nname: mine\nlabels: {kind: stored, temperature: 4}\nepochs: 1\nwidth: 4\nsize: 16\n"
        "cases: [{when: {networks: [resnet18]}, set: {epochs: 2}}]\n"
    )
    flags, labels = ["--protocol", tmp_path / "mine.yaml", *VALUES[:4]], tmp_path / "labels"
    status, _, err = call(capsys, "export", made, "--layout", "fkd", "--teacher", teacher, *flags, "--out", labels)
    assert status == 0, err
    monkeypatch.setattr(_Ready, "trial", lambda *a: pytest.fail("a network was trained"))
    told = [*flags, "--labels", labels, "--networks", "convnet2,resnet18"]
    status, _, err = call(capsys, "evaluate", made, *told)
    assert status == 1 and "has labels for 2 epochs, and 3 are wanted" in err


def test_labels_of_another_set_or_teacher_stay_in_their_folder(made, colours, teacher, tmp_path, capsys, monkeypatch):
    """Whoever would write over them is told before any image is labelled, and in a dry run."""
    other, labels = tmp_path / "other", tmp_path / "labels"
    distil = ["distill", "--method", "random", "--data", colours, "--ipc", 3, "--seed", 1, "--out", other]
    assert call(capsys, *distil)[0] == 0
    export = ["export", made, "--layout", "labels", "--teacher", teacher, "--out", labels]
    assert call(capsys, *export)[0] == 0
    held = {file.name: file.read_bytes() for file in labels.iterdir()}
    moved = shutil.copy(teacher, tmp_path / "moved.safetensors")
    for more in (["--dry-run"], []):
        status, _, err = call(capsys, *export, *more)
        assert status == 0, err
        status, _, err = call(capsys, *[moved if word is teacher else word for word in export], *more)
        assert status == 0, "the same weights in another file"
    assert labels.joinpath("labels.safetensors").read_bytes() == held["labels.safetensors"]
    held = {file.name: file.read_bytes() for file in labels.iterdir()}
    monkeypatch.setattr("dap.evaluation.labelling.labels_by", lambda *a: pytest.fail("images were labelled"))
    for more in (["--dry-run"], []):
        status, _, err = call(capsys, *[other if word is made else word for word in export], *more)
        assert status == 1 and f"{labels} holds other labels (images: 9 -> 9, " in err, err
    status, _, err = call(capsys, "export", made, "--layout", "fkd", "--teacher", teacher, *STORED, "--out", labels)
    assert status == 1 and {name: (labels / name).read_bytes() for name in held} == held


@pytest.mark.parametrize("flags", [[], ["--set", "size=16"]])
def test_labels_have_the_size_and_the_values_with_which_the_set_is_judged(flags, made, teacher, tmp_path, capsys):
    """small-hard takes its mean and standard deviation from the data, and its size from the set."""
    told = ["--protocol", "small-hard", *STORED, *flags]
    labels = tmp_path / "labels"
    status, out, err = call(capsys, "export", made, "--layout", "fkd", "--teacher", teacher, *told, "--out", labels)
    assert status == 0, err
    status, _, err = call(capsys, *shlex.split(out.rpartition("Next: ")[2])[1:], "--networks", "convnet2")
    assert status == 0, err
    [trial] = trials(made)
    said = json.loads((labels / "index.json").read_text())["protocol"]
    assert "+mean=" in trial["protocol"] and set(said.split("+")) <= set(trial["protocol"].split("+"))


def test_a_set_that_does_not_name_its_data_is_labelled_for_the_data_that_are_given(
    made, colours, teacher, tmp_path, capsys, caplog
):
    assert main(["import", str(made / "images"), "--classes", "sorted", "--out", str(tmp_path / "imported")]) == 0
    made = tmp_path / "imported"
    told = ["--protocol", "small-hard", *STORED, "--set", "size=16"]
    labels, export = tmp_path / "labels", ["export", made, "--layout", "fkd", "--teacher", teacher]
    status, out, err = call(capsys, *export, *told, "--data", colours, "--out", labels)
    assert status == 0, err
    again = shlex.split(out.rpartition("Next: ")[2])[1:]
    assert again[-2:] == ["--data", str(colours)]
    status, _, err = call(capsys, *again, "--networks", "convnet2")
    assert status == 0, err
    assert call(capsys, *export, *told, "--out", tmp_path / "others")[0] == 0
    assert "does not say what real images it will be tested on" in caplog.text
    again[again.index("--labels") + 1] = tmp_path / "others"
    status, _, err = call(capsys, *again, "--networks", "convnet2")
    assert status == 1 and f"--set size=16 --data {colours} --teacher NAME --out DIR" in err
