"""docs/extending.md: its methods run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dap.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    method, mine, notebook, guided, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "medoids.py").write_text(method)
    (folder / "mine.py").write_text(mine)
    (folder / "notebook.py").write_text(notebook)
    (folder / "guided.py").write_text(guided)
    return folder


def test_the_method_is_short(blocks):
    lines = [line for line in (blocks / "medoids.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_method_keeps_its_contract_and_is_compared(blocks, colours, pipeline_folder, tmp_path, capsys):
    name = f"{blocks}/medoids.py:Medoids"
    assert main(["methods", name]) == 0
    assert "pool = 200" in capsys.readouterr().out
    assert main(["check", name]) == 0, capsys.readouterr().out
    data = ["--data", str(colours), "--backbone", str(pipeline_folder), "--ipc", "2", "--steps", "2"]
    common = [*data, "--sets", "1", "--set", "epochs=1", "--set", "width=4", "--set", "size=16"]
    run = [
        "compare",
        "--methods",
        f"vanilla,{name}",
        "--option",
        f"{name}.pool=10",
        *common,
        "--out",
        str(tmp_path / "c"),
    ]
    assert main(run) == 0, capsys.readouterr().err
    lines = next((tmp_path / "c").glob("*Medoids*/seed0/manifest.jsonl")).read_text().splitlines()
    assert len({json.loads(line)["real"] for line in lines}) == 6
    capsys.readouterr()
    assert main(["distill", "--method", name, *data, "--option", "pool=1", "--out", str(tmp_path / "d")]) == 1
    assert "cannot be chosen from a pool of 1" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_the_guided_method_adds_to_another(blocks, tmp_path):
    data = ["--classes", "Trouser", "Bag", "--ipc", "1", "--steps", "6"]
    for method in (f"{blocks}/guided.py:Both", "mgd3"):
        out = tmp_path / method.rpartition(":")[2]
        assert main(["distill", "--method", method, *data, "--option", "reals=10", "--out", str(out)]) == 0
    both, alone = (
        [json.loads(line)["sha256"] for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()]
        for name in ("Both", "mgd3")
    )
    assert both != alone


def test_a_guidance_of_one_s_own_needs_no_method(blocks, colours, pipeline_folder, tmp_path, capsys):
    data = ["--data", str(colours), "--backbone", str(pipeline_folder), "--ipc", "1", "--steps", "4"]
    made = {}
    for name, words in {
        "plain": ["--method", "vanilla"],
        "inward": ["--method", "vanilla", "--guidance", f"{blocks}/mine.py:Inward"],
        "dap": ["--method", "dap", "--reals", "2"],
        "smooth": [
            "--method",
            "dap",
            "--reals",
            "2",
            "--guidance",
            f"{blocks}/mine.py:Smooth",
            "--guidance-scale",
            "0.1",
        ],
    }.items():
        assert main(["distill", *words, *data, "--out", str(tmp_path / name)]) == 0, capsys.readouterr().err
        lines = (tmp_path / name / "manifest.jsonl").read_text().splitlines()
        made[name] = tuple(json.loads(line)["sha256"] for line in lines)
    assert len(set(made.values())) == 4
    for name in ("Inward", "Smooth"):
        assert main(["check", f"{blocks}/mine.py:{name}"]) == 0, capsys.readouterr().out


def test_the_notebook_s_lines_run(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(blocks))
    found: dict[str, Any] = {}
    exec((blocks / "notebook.py").read_text(), found)
    assert found["images"].shape == (2, 3, 32, 32)
