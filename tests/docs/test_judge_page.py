"""docs/judge.md, "Against your own sets": its commands, one after the other as they stand there, on small images."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

from dap.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "judge.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Against your own sets\n")[2].partition("\n## ")[0]
SMALL = "--set size=16 --epochs 1"
SMALLER = {"~/imagenet": "photos", "--classes imagewoof": "--classes blue green red", "--ipc 10": "--ipc 2"}
SMALLER |= {"--size 256": "--size 8", "--set size=224": SMALL, "--trials 3": f"--trials 2 {SMALL}"}
NAME = "minimax-hard+epochs=1+size=16"
"""The name of the protocol with these fields."""


def test_the_commands_rank_a_set_of_others_and_one_s_own(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colours, "photos")
    distil = ["distill", "--method", "random", "--data", "photos", "--classes", "blue", "green", "red", "--ipc", "2"]
    assert main([*distil, "--size", "8", "--seed", "1", "--out", "runs/mine"]) == 0
    recipe = Path("runs/mine/recipe.json")
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "method": "mine"}))
    for folder in Path("photos/train").iterdir():
        (Path("theirs") / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:2]:
            shutil.copy(file, Path("theirs") / folder.name)
    assert main(["import", "theirs", "--classes", "sorted", "--out", "runs/theirs"]) == 0
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTION, re.M | re.S)
    run = []
    for line in block.splitlines():
        for words, smaller in SMALLER.items():
            line = line.replace(words, smaller)
        if line.startswith("dap rank"):
            line = line.replace("minimax-hard", NAME)
        words = shlex.split(line)[1:]
        assert main(words) == 0, (line, capsys.readouterr().err)
        run.append(words[0])
    assert run == ["distill", "train-teacher", "evaluate", "rank"]
    for name in ("theirs", "mine"):
        found = json.loads((Path("runs/against/judged") / name / "ranking.json").read_text())
        assert {"hlr", "ior", "lrs"} <= set(found) and found["network"] == "resnetap10", name
        assert not (Path("runs") / name / "trials.jsonl").exists()


def test_what_is_made_smaller_stands_in_the_section():
    """Else the test would run something in full, for days."""
    assert not [words for words in SMALLER if words not in SECTION]
