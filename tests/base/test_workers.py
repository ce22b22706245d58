"""The processes that share a grid: what they import, and where their lines go."""

from __future__ import annotations

import pytest

from dap.base.errors import DapError
from dap.base.workers import run_workers


def test_a_file_of_the_current_folder_stands_in_for_no_module(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("import pathlib\npathlib.Path('imported').touch()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    run_workers(["verify", "--help"], 2)
    assert not (tmp_path / "imported").exists()


def test_lines_of_workers_are_told(tmp_path):
    lines = []
    with pytest.raises(DapError, match="Worker 0, 1 of 2 stopped early. The last that was said there: .*nowhere"):
        run_workers(["verify", str(tmp_path / "nowhere")], 2, tell=lines.append)
    assert len(lines) == 2 and all(line.startswith("dap: error: ") and not line.endswith("\n") for line in lines)
