"""Without the package of the starters: what needs it says so in one sentence, and one's own folder needs it not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from dap import starter
from dap.base.errors import DapError
from dap.cli.main import main

HIDDEN = """
import json, sys
sys.modules["dap_starters"] = None
from dap.cli.main import main
sys.exit(next((status for words in json.loads(sys.argv[1]) if (status := main(words))), 0))
"""


def run(*commands: list[object]) -> subprocess.CompletedProcess[str]:
    """Commands, until one fails, in a process that does not find the package, as in an environment without it."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run([sys.executable, "-c", HIDDEN, words], capture_output=True, text=True, timeout=200)


def test_the_first_command_says_how_to_install_them(tmp_path):
    made = run(["distill", "--ipc", "1", "--out", tmp_path / "out"])
    assert made.returncode == 1 and "Traceback" not in made.stderr, made.stderr
    assert "'diffusion-as-priors[starters]'" in " ".join(made.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--method", "random", "--ipc", "1", "--out", "OUT"],
        ["distill", "--method", "vanilla", "--data", "COLOURS", "--backbone", "starter", "--ipc", "1", "--out", "OUT"],
        ["compare", "--methods", "random,vanilla", "--ipc", "1", "--out", "OUT"],
        ["demo", "--out", "OUT"],
        ["look", "fashion-mnist"],
        ["train-backbone", "--data", "NOISE", "--out", "OUT", "--minutes", "1"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_what_needs_them_says_how_to_install_them(words, colours, tmp_path, monkeypatch, capsys):
    for label in "ab":  # of a size that a backbone can be trained on
        (tmp_path / "noise" / label).mkdir(parents=True)
        for i in range(20):
            Image.effect_noise((16, 16), 50 + i).save(tmp_path / "noise" / label / f"{i}.png")
    monkeypatch.setitem(sys.modules, "dap_starters", None)
    places = {"NOISE": tmp_path / "noise", "OUT": tmp_path / "out", "COLOURS": colours}
    assert main([str(places.get(word, word)) for word in words]) in (1, 2)
    assert "'diffusion-as-priors[starters]'" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "out").rglob("*.png"))


def test_one_s_own_folder_needs_none(colours, tmp_path):
    set_ = tmp_path / "set"
    fast = ["--networks", "convnet1", "--epochs", "1", "--set", "width=4", "--set", "size=8"]
    made = run(
        ["distill", "--data", colours, "--ipc", 2, "--out", set_, "--budget", "5s"],
        ["evaluate", set_, *fast],
        ["methods"],
        ["--help"],
    )
    assert made.returncode == 0, made.stderr
    assert json.loads((set_ / "recipe.json").read_text())["data"]["path"] == str(colours)
    assert (set_ / "report.html").is_file()


def test_in_the_library_the_paths_raise_and_other_names_are_none(monkeypatch):
    assert starter.installed() and starter.DATA.is_dir()
    monkeypatch.setitem(sys.modules, "dap_starters", None)
    assert not starter.installed()
    for name in starter.PLACES:
        with pytest.raises(DapError, match=r"pip install '?diffusion-as-priors\[starters\]|pip install"):
            getattr(starter, name)
    with pytest.raises(DapError, match="not installed"):
        starter.verify_data()
    assert not hasattr(starter, "NOTHING")
