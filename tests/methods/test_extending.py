"""docs/extending.md: its methods run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dap.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    method, guided, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "medoids.py").write_text(method)
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
