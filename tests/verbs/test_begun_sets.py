"""Flags that contradict the set which is in the folder already are told before the data are read or anything is loaded."""

from __future__ import annotations

import re
import shlex

import pytest

import dap
from dap.cli.main import main
from dap.workshop import Workshop

RANDOM = "--method random --ipc 2 --seed 1 --size 8 --classes red blue"
DAP = "--backbone starter --data fashion-mnist --classes Trouser Dress --method dap --ipc 1 --steps 2 --scale 0.1 --reals 4"


@pytest.fixture(scope="module")
def made(colours, tmp_path_factory):
    """A folder with a set of `RANDOM` and one of `DAP`."""
    folder = tmp_path_factory.mktemp("begun")
    assert main(shlex.split(f"distill --data {colours} {RANDOM} --out {folder}/random")) == 0
    assert main(shlex.split(f"distill {DAP} --out {folder}/dap")) == 0
    return folder


def read_nothing(monkeypatch):
    for name in ("whole", "source", "backbone", "task"):
        monkeypatch.setattr(Workshop, name, lambda *a, **k: pytest.fail("something is read"))


@pytest.mark.parametrize(
    ("name", "base", "changed", "says"),
    [
        ("random", RANDOM, "--method herding", 'method: "random" -> "herding"'),
        ("random", RANDOM, "--seed 2", "seed: 1 -> 2"),
        ("random", RANDOM, "--size 16", "data.size: 8 -> 16"),
        ("random", RANDOM, "--classes red green", "data.classes"),
        ("random", RANDOM, "--held-out 0.25", "data.held_out: 0.0 -> 0.25"),
        ("random", RANDOM, "--data elsewhere", "data.path"),
        ("random", RANDOM, "--ipc 1", "a set of 2 images per class, and a set does not shrink"),
        ("random", "--backbone starter --ipc 2 --seed 1 --classes red blue", "", 'method: "random" -> "auto"'),
        ("dap", DAP, "--backbone starter-unet", 'backbone.path: "starter" -> "starter-unet"'),
        ("dap", DAP, "--dtype bfloat16", "backbone.dtype"),
        ("dap", DAP, "--steps 3", "sampling.steps: 2 -> 3"),
        ("dap", DAP, "--scale 0.2", "guidance.scale: 0.1 -> 0.2"),
        ("dap", DAP, "--scale 0.2 --layer auto", "guidance.scale: 0.1 -> 0.2"),
    ],
)
def test_what_contradicts_is_told_at_once_and_its_advice_works(
    name, base, changed, says, made, colours, tmp_path, capsys, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    data = "" if "--data" in base + changed else f"--data {colours}"
    for dry in ("", "--dry-run"):
        with monkeypatch.context() as patched:
            read_nothing(patched)
            assert main(shlex.split(f"distill {data} {base} {changed} --out {made / name} {dry}")) == 1
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
    advice = re.search(r"as dap (.*) does", said) or re.search(r"dap (import .* DIR)", said)
    assert advice is not None
    assert main(shlex.split(advice[1].replace("DIR", "new"))) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("random", RANDOM),
        ("random", f"{RANDOM} --backbone starter"),  # random has no use for it, so its recipe does not say it
        ("random", f"{RANDOM} --max-bad-fraction 0.01 --held-out 0"),
        ("dap", DAP),
    ],
)
def test_a_set_goes_on_with_what_it_was_begun_with(name, flags, made, colours):
    data = "" if "--data" in flags else f"--data {colours}"
    before = {file: file.read_bytes() for file in (made / name / "images").rglob("*.png")}
    next(iter(before)).unlink()
    assert main(shlex.split(f"distill {data} {flags} --out {made / name}")) == 0
    assert {file: file.read_bytes() for file in before} == before


def test_a_set_grows_and_a_cell_of_a_grid_is_compared_too(made, colours, tmp_path, capsys, monkeypatch):
    assert dap.distill(out=tmp_path / "a", source=str(colours), method="random", ipc=1, size=8).missing() == []
    assert len(dap.distill(out=tmp_path / "a", source=str(colours), method="random", ipc=2, size=8)) == 6
    grid = f"compare --methods random --data {colours} --ipc 1 --sets 1 --epochs 1 --networks convnet1 --out {tmp_path}/grid"
    assert main(shlex.split(f"{grid} --size 8")) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        read_nothing(patched)
        assert main(shlex.split(f"{grid} --size 16")) == 1
    assert "data.size: 8 -> 16" in capsys.readouterr().err
