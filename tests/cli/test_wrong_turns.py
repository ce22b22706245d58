"""What a user gets wrong is said in a sentence before anything is made, and where it can be before anything is loaded."""

from __future__ import annotations

import os
import re
import shlex
import shutil

import pytest

from dap import backbones
from dap.cli.main import main
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine
from messages import apart_from_data

FAST = ["--set", "epochs=1", "--set", "width=4", "--set", "size=16", "--sets", "1", "--ipc", "2"]


@pytest.mark.parametrize(
    ("methods", "given", "says"),
    [
        ("random,mgd3", ["--option", "mgd3.scal=1"], r"Unknown key 'scal'. Did you mean 'scale'"),
        ("mgd3,vlcp", [], r"'vlcp' needs captions of the real images: give --captions"),
        ("mgd3,vlcp", ["--captions", "nowhere.jsonl"], r"no file of captions nowhere.jsonl"),
        ("mgd3,herding", [], r"'herding' needs a network trained on the real data"),
        ("mgd3,rded", ["--classifier", "nowhere.safetensors"], r"No classifier nowhere.safetensors"),
        ("mgd3,random", ["--scale", "0.4"], r"Of mgd3, random none takes --scale"),
        ("mgd3,random", ["--classifier", "torchvision:resnet18"], r"none takes --classifier"),
        ("mgd3", ["--subsample", "1,2"], r"--subsample 2: no set has more than 2 images a class"),
        ("mgd3", ["--networks", "convnet1,convnet9"], r"Unknown network 'convnet9'. Did you mean"),
        ("mgd3", ["--protocol", "rded-soft", "--networks", "convnet1"], r"none of them"),
        ("mgd3", ["--protocol", "fkd-soft", "--networks", "convnet1"], r"labels, which are made of one finished set"),
        ("mgd3", ["--on", "validation"], r"give --held-out"),
    ],
)
def test_said_before_a_backbone_is_loaded(methods, given, says, colours, tmp_path, capsys, monkeypatch):
    def load(*args, **options):
        raise AssertionError("a backbone is loaded")

    monkeypatch.setattr(backbones, "load", load)
    out = tmp_path / "out"
    assert main(["compare", "--methods", methods, "--data", str(colours), *FAST, *given, "--out", str(out)]) == 1
    err = capsys.readouterr().err
    told = apart_from_data(err)
    assert told[0].startswith("dap: error: ") and len(told) == 1
    assert re.search(says, err), err
    assert not out.exists()


def test_out_is_a_file(colours, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for verb in (["compare", "--methods", "random"], ["distill", "--method", "random"]):
            assert main([*verb, "--data", str(colours), "--size", "8", "--out", str(out)]) == 1
            assert capsys.readouterr().err == f"dap: error: {tmp_path}/file is a file; give a folder with --out.\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_of_another_recipe_are_seen_before_the_first_cell(colours, tmp_path, capsys):
    common = ["--data", str(colours), "--size", "8", *FAST, "--out", str(tmp_path)]
    assert main(["compare", "--methods", "random", *common]) == 0
    assert main(["compare", "--methods", "random", "--classes", "red", "green", *common, "--ipc", "1,2"]) == 1
    assert "ipc=2/seed0 holds a set made by another recipe. What changed: data.classes" in capsys.readouterr().err
    assert not (tmp_path / "method=random_ipc=1").exists()


def test_a_wrong_flag_is_one_line(capsys):
    for wrong in (["--workers", "0"], ["--ipc", "1,,2"], ["--metods", "random"]):
        with pytest.raises(SystemExit, match="2"):
            main(["compare", "--out", "x", *wrong])
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "--help" in err


@pytest.fixture
def place(colours, tmp_path, monkeypatch):
    """A folder with data, a set drawn from them, and a pipe and a file that are no data."""
    shutil.copytree(colours, tmp_path / "data")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.parse({"method": "random", "ipc": 2, "data": {"path": "data", "size": 8}})
    distill(recipe, "set", machine=Machine(device="cpu"))
    return tmp_path


DRAW = "distill --method random --ipc 2 --size 8 "


@pytest.mark.parametrize(
    ("line", "says", "status"),
    [
        (DRAW + "--out o --data ~nosuchuser/x", "data path ~nosuchuser/x does not exist", 1),
        (DRAW + "--out o --data data --split train=~nosuchuser/x", "data path data/~nosuchuser/x does not exist", 1),
        ("convert ~nosuchuser/x --out o", "There is no backbone at '~nosuchuser/x'", 1),
        (DRAW + "--out o --data file", "^dap: error: file is a file, not a folder; give the folder that holds", 1),
        (DRAW + "--out o --data pipe", "^dap: error: pipe is a pipe, a socket or a device, not a folder", 1),
        (DRAW + "--out o --data http://a.test/b.zip", "no images from a link; download and unpack them", 1),
        (
            "compare --methods random --out o --data data/train",
            "beside it; give data as the data, or add --split test=../test",
            1,
        ),
        ("compare --methods random, herding --data data --out o", "write no blank after a comma, or put the whole", 1),
        (
            "distill --method random --data data --ipc ten --out o",
            r"ipc: the value should be a whole number \(given: 'ten'",
            1,
        ),
        ("distill --ipc 1", "^dap distill: error: --out is missing. dap distill --help", 2),
        ("distill --ipc 1 --out", "^dap distill: error: --out has no value. dap distill --help", 2),
        ("evaluate", "^dap evaluate: error: SETS is missing", 2),
        (DRAW + "--out o --data ''", "an empty word stands after --data; is a variable of the shell unset", 2),
        (DRAW + "--data data --out=", "an empty word stands after --out=", 2),
        ("verify ''", "an empty word stands after verify", 2),
        (DRAW + "--out o --data data --split train=train,train=test", "a split is said twice", 1),
        (DRAW + "--out o --data data --option =3", "--option takes NAME=VALUE", 1),
        (DRAW + "--data data --out data/train/new", "data/train/new lies in .* read as one of its classes", 1),
        (DRAW + "--data data --out data/test/red/new", "data/test/red/new lies in .* with the images of red", 1),
        (DRAW + "--data data --classes red --out data/train/new", "data/train/new lies in .* as one of its classes", 1),
        (DRAW + "--data data --out o --cache data/train", "data/train holds the folders of classes.* with --cache", 1),
        (
            DRAW + "--data data --out o --cache data/test/red",
            "data/test/red lies in .* images of red.* with --cache",
            1,
        ),
        (
            DRAW + "--data data --out set/images/red/new",
            "new lies in .*set/images, where it would be taken for a class",
            1,
        ),
        (DRAW + "--data data --out o --cache set/images/red", "lies in .*set/images, .*elsewhere with --cache", 1),
        (
            "evaluate set --networks convnet1 --out data/train/red",
            "data/train/red lies in .* with the images of red",
            1,
        ),
        ("evaluate set --networks convnet1 --out data/train", "data/train/judged lies in .* as one of its classes", 1),
        ("evaluate set --networks convnet1 --out set/images", "set/images lies in .*set/images, where it would be", 1),
        ("evaluate set --networks convnet1 --cache data/train/red", "lies in data/train, .* with --cache", 1),
        ("evaluate data/test --data data --networks convnet1 --out data/test/new", "lies in data/test, .* classes", 1),
        ("evaluate set --dry-run --out data/train/red", "data/train/red lies in .* with the images of red", 1),
        ("rank set --out data/train/new", "data/train/new/?.* lies in data/train", 1),
        ("report set --out data/test/red", "data/test/red lies in data/test, .* with the images of red", 1),
        ("report set --out set/images/red/p.html", "set/images/red lies in .*set/images, where it would be taken", 1),
        ("look data --out data/train/red/sheet.png", "data/train/red lies in .* with the images of red", 1),
        ("look set --out set/images/red/sheet.png", "set/images/red lies in .*set/images", 1),
        ("train-teacher --data data --out data/test/red/t", "data/test/red lies in .* with the images of red", 1),
        ("train-backbone --data data --out data/train/new", "data/train/new lies in .* as one of its classes", 1),
        ("caption --data data --out data/train/red/c.jsonl", "data/train/red lies in .* with the images of red", 1),
        ("compare --methods random --data data --out data/test/new", "data/test/new/.* lies in .*data/test", 1),
        ("sweep --method random --data data --out data/train/red", "data/train/red/.* lies in .* images of red", 1),
        ("export set --out data/train/new", "data/train/new lies in data/train, where it would be read as one", 1),
        (
            "export set --layout pt --out data/test/red",
            "data/test/red lies in data/test, where it would be read with",
            1,
        ),
        ("export set --layout labels --teacher torchvision:resnet18 --out data/train/new", "new lies in data/train", 1),
        ("import data/train --out set/images/new", "set/images/new lies in .*set/images, where it would be taken", 1),
        ("import data/train --out data/train/new", "data/train/new lies in data/train, where it would be read", 1),
        (
            "export set --out set/images/new",
            "set/images/new lies in set/images, where it would be taken for a class",
            1,
        ),
        ("import data/train --out o --pick random --ipc 1 --seed " + "9" * 23, "a seed is a whole number from 0", 2),
        ("train-teacher --data data --out o --seed " + "9" * 23, "a seed is a whole number from 0", 2),
        ("train-backbone --data data --out o --seed -1", "a seed is a whole number from 0", 2),
        ("train-teacher --data data --out file/x", "file is a file; give a folder with --out", 1),
        ("train-teacher --data data --out data", "data is there already", 1),
        ("caption --data data --out data", "data is a folder; give the name of a file with --out", 1),
        ("caption --data data --out pipe", "pipe is a pipe, a socket or a device; give the name of a file", 1),
        ("caption --data data --out file", "file is no file of captions; give another file", 1),
        ("report set nowhere --out o", "No distilled set in nowhere ", 1),
    ],
)
def test_an_odd_command_line_is_a_sentence_and_writes_nothing(line, says, status, place, capsys):
    before = sorted(place.rglob("*"))
    try:
        found = main(shlex.split(line))
    except SystemExit as error:
        found = error.code
    told = apart_from_data(capsys.readouterr().err)
    assert found == status and len(told) == 1 and re.search(says, told[0]), told
    assert sorted(place.rglob("*")) == before


def test_half_of_a_character_in_a_text_is_written_as_an_escape(place, capsys):
    assert main(["report", "set", "--out", "page", "--title", "caf\udce9"]) == 0
    assert "caf\\xe9" in (place / "page" / "report.html").read_text(encoding="utf-8")
    assert main(["import", "data/train", "--out", "mine", "--licence", "caf\udce9"]) == 0
    assert "caf\\xe9" in (place / "mine" / "README.md").read_text(encoding="utf-8")
    assert main([*shlex.split(DRAW), "--data", "data", "--out", "data/new"]) == 0, "beside the splits it harms nothing"


def test_the_training_folder_alone_is_led_to_its_data(place, capsys):
    """The advice of the message for --data data/train works, either way."""
    for data in (["data"], ["data/train", "--split", "test=../test"]):
        out = f"judged-{len(data)}"
        assert main(["distill", "--method", "random", "--data", *data, "--ipc", "1", "--out", out]) == 0
        assert (
            main(["evaluate", out, "--networks", "convnet1", "--set", "size=8", "--set", "width=2", "--epochs", "1"])
            == 0
        )
