"""Names of the real world on terminals of the real world: no verb ends in a stack trace because of a letter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TERMINALS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}


def dap(terminal: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHONIO", "PYTHONUTF8", "LANG"))
    }
    line = [sys.executable, "-m", "dap", *map(os.fsencode, map(str, words))]
    return subprocess.run(line, capture_output=True, env={**kept, **TERMINALS[terminal]}, timeout=120)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for place, name in enumerate(("狗", "café", os.fsdecode(b"th\xe9"))):
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4), (place, i, 0)).save(folder / f"{i}.png")
    return tmp_path / "d"


@pytest.mark.parametrize("terminal", ["cp1252", "C"])
def test_a_set_with_names_that_the_terminal_lacks(data: Path, terminal: str) -> None:
    """Cases H2 and A17: the set is made, and its names are printed somehow."""
    out = data.parent / "o"
    done = dap(terminal, "import", data, "--out", out)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert b"\\u72d7" in done.stdout
    assert json.loads((out / "classes.json").read_text(encoding="utf-8"))["names"] == ["café", "th\\xe9", "狗"]


@pytest.mark.parametrize("terminal", ["ascii"])
def test_json_is_json_on_every_terminal(data: Path, terminal: str) -> None:
    done = dap(terminal, "import", data, "--out", data.parent / "o", "--json")
    said = json.loads(done.stdout.decode({"C": "ascii"}.get(terminal, terminal)))
    assert done.returncode == 0 and any("狗" in note for note in said["notes"])
    done = dap(terminal, "import", data, "--out", data.parent / "p", "--classes", "猫", "--json")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert "猫" in json.loads(done.stdout.decode(terminal))["error"]


def test_a_misspelt_verb_and_a_latin_1_path(tmp_path: Path) -> None:
    done = dap("cp1252", "狗", "--json")
    assert done.returncode == 2 and b"Traceback" not in done.stderr and "狗" in json.loads(done.stdout)["error"]
    done = dap("ascii", "import", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"), "--out", tmp_path / "o")
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"There is no file or folder" in done.stderr


def test_bars_write_any_name() -> None:
    code = (
        "import sys\nfrom dap.cli.main import _write_anything\n_write_anything()\n"
        "from dap.cli.bars import Bars, Lines\n"
        "for made in (Bars(), Lines(0)):\n"
        "    for done in range(3): made.images('\\u72d7 \\udce9', done, 2, 'caf\\u00e9')\n"
        "    made.note('\\u72d7 \\udce9')\n"
        "    made.stop() if hasattr(made, 'stop') else None\n"
        "print('\\u72d7 \\udce9')\n"
    )
    for terminal, more in TERMINALS.items():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, **more}, timeout=60)
        assert done.returncode == 0, (terminal, done.stderr)
        assert b"\\udce9" in done.stdout


def test_a_shell_that_makes_names_look_broken_is_named(tmp_path: Path, monkeypatch) -> None:
    """And the advice of the sentence works: the class name is not taken for a broken one any more."""
    for split in ("train", "test"):
        (tmp_path / "d" / split / "café").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "d" / split / "café" / "0.png")
    words = ("look", tmp_path / "d")
    told = dap("C", *words)
    assert b"run export PYTHONUTF8=1 first" in told.stderr and b"Traceback" not in told.stderr
    monkeypatch.setitem(TERMINALS, "advice", {**TERMINALS["C"], "PYTHONUTF8": "1"})
    for terminal in ("advice", "utf-8"):
        done = dap(terminal, *words)
        assert done.returncode == 0 and b"PYTHONUTF8" not in done.stderr and "café".encode() in done.stdout
