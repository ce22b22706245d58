"""The data that a set was made of stay what its recipe says of them, however their path is spelt."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dap.base.files import same_place
from dap.cli.main import main
from dap.data.real.sources import EMBEDDED
from dap.data.sets.distilled import DistilledSet
from dap.recipe import BackboneChoice
from dap.verbs.labelling.by_backbone import BackboneLabeller
from dap.verbs.recorded import data_of, of_others
from dap.workshop import Workshop

QUICK = ["--networks", "convnet1", "--set", "width=2", "--set", "size=8", "--epochs", "1"]


@pytest.fixture
def folds(colours, tmp_path, monkeypatch) -> Path:
    """The current folder has the folder `data`, and a set of it whose recipe says where its splits lie."""
    monkeypatch.chdir(tmp_path)
    for split, name in (("train", "fold1"), ("test", "fold2")):
        shutil.copytree(colours / split, tmp_path / "data" / name)
    shutil.copytree(colours / "test", tmp_path / "data" / "test")
    (next((tmp_path / "data" / "fold2" / "red").iterdir())).unlink()  # so the two parts do not have as many images
    distil = ["distill", "--method", "random", "--data", "data", "--ipc", "2", "--held-out", "0.25", "--out", "set"]
    assert main([*distil, "--split", "train=fold1,test=fold2"]) == 0
    return tmp_path


def test_another_spelling_of_the_folder_is_the_same_data(folds):
    made = DistilledSet.open("set")
    for path in (None, "data", "./data", "data/", str(folds / "data"), "set/../data"):
        said = data_of(made, path)
        assert not of_others(made, path) and said.held_out == 0.25 and said.split is not None, path
        assert said.split.given() == {"train": "fold1", "test": "fold2"}
    shutil.copytree("data", "other")
    os.symlink("data", "linked")
    assert of_others(made, "other") and data_of(made, "other").held_out == 0 and data_of(made, "other").split is None
    assert data_of(made, "linked").held_out == 0.25


def test_evaluate_and_look_take_the_recorded_splits(folds, capsys):
    assert main(["evaluate", "set", "--data", "./data", *QUICK]) == 0
    (line,) = Path("set/trials.jsonl").read_text().splitlines()
    assert json.loads(line)["n_test"] == 17
    assert main(["evaluate", "set", "--data", str(folds / "data"), *QUICK, "--on", "validation"]) == 0
    assert len(Path("set/trials.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert main(["look", "set", "--data", "./data"]) == 0
    assert "real test images: 17 images" in capsys.readouterr().out


def test_the_name_of_the_embedded_data_is_no_folder(folds):
    Path(EMBEDDED).mkdir()
    made = DistilledSet.open("set")
    made.recipe = {"data": {"path": EMBEDDED}}
    assert not of_others(made, EMBEDDED) and of_others(made, f"./{EMBEDDED}")


def test_a_backbone_that_made_the_set_is_loaded_as_then_however_it_is_spelt(folds):
    Path("weights").mkdir()
    made = DistilledSet.open("set")
    made.recipe = {"backbone": {"path": "weights", "dtype": "bfloat16"}}
    for name in ("weights", "./weights", str(folds / "weights")):
        chosen = BackboneLabeller(f"backbone:{name}", Workshop()).choice(made)
        assert chosen == BackboneChoice(path=name, dtype="bfloat16")
    assert BackboneLabeller("backbone:other", Workshop()).choice(made).dtype != "bfloat16"


def test_names_of_things_that_are_not_there_are_compared_as_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert same_place("org/model", "org/model") and not same_place("org/model", "./org/model")


NEED_REAL = [
    ["evaluate", "SET", *QUICK],
    ["classify", "SET", "--backbone", "starter"],
    ["export", "SET", "--layout", "fkd", "--teacher", "backbone:starter", "--out", "labels"],
    ["look", "SET"],
]


@pytest.mark.parametrize("words", NEED_REAL, ids=lambda words: words[0])
def test_from_another_folder_the_sentence_says_how_a_relative_path_was_meant(
    words, folds, tmp_path, monkeypatch, capsys
):
    (folds / "elsewhere").mkdir()
    monkeypatch.chdir(folds / "elsewhere")
    capsys.readouterr()
    code = main([word.replace("SET", "../set") for word in words])
    printed = capsys.readouterr()
    said = printed.out if words[0] == "look" else printed.err
    assert code == (0 if words[0] == "look" else 1)
    assert "its recipe says that they lie in data, relative to the folder in which ../set was made" in said
    assert "Give --data FOLDER" in said and "fashion-mnist" not in said


def test_the_advice_for_a_relative_path_works(folds, monkeypatch):
    (folds / "elsewhere").mkdir()
    monkeypatch.chdir(folds / "elsewhere")
    assert main(["evaluate", "../set", "--data", "../data", "--split", "train=fold1,test=fold2", *QUICK]) == 0
