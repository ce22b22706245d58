"""What a user gets wrong is said in a sentence before anything is made, and where it can be before anything is loaded."""

from __future__ import annotations

import re

import pytest

from dap import backbones
from dap.cli.main import main
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
        ("mgd3", ["--protocol", "rded-soft"], r"none of them"),
        ("mgd3", ["--protocol", "fkd-soft"], r"labels, which are made of one finished set"),
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
