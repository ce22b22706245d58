"""Code of a user that is given by a name counts with the modules of the user that it imports."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from dap.base.describing import helpers
from dap.base.permission import allow_code
from dap.base.registry import code_of, hash_of_code
from dap.cli.main import main

IMPORTS = {
    "a module": "import helper",
    "a value": "from helper import K",
    "everything": "from helper import *",
    "under another name": "import helper as h",
    "in a function": "def f():\n    from helper import K\n    return K",
    "one of a helper": "import between",
    "a module of a package": "from package import inner",
    "a deep module": "import package.inner",
    "a relative import in a package": "import package.neighbour",
    "a package without __init__": "from bare import inner",
    "where it may be absent": "try:\n    import helper\nexcept ImportError:\n    pass",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "helper.py": "",
        "between.py": "import helper",
        "package/__init__.py": "",
        "package/inner.py": "",
        "package/neighbour.py": "from . import inner",
        "bare/inner.py": "",
        "alone.py": "raise SystemExit('nobody imports this')",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\nK = 1\n")
    return tmp_path


@pytest.fixture(autouse=True)
def as_in_a_new_process(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(helpers, "_SEEN", {})
    importlib.invalidate_caches()
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or getattr(module, "__path__", "")).find(str(folder)) >= 0:
            del sys.modules[name]


def told(folder: Path) -> tuple[dict[str, str], str]:
    """The code behind mine.py:Name, and one hash of it."""
    helpers._SEEN.clear()
    with allow_code():
        return code_of("mine.py:Name"), hash_of_code("mine.py:Name")


@pytest.mark.parametrize("how", IMPORTS)
def test_a_changed_helper_is_other_code(how, folder):
    libraries = "import json, numpy, torch.nn, pytest, dap.kernels"
    (folder / "mine.py").write_text(f"{IMPORTS[how]}\n{libraries}\nclass Name: pass\n")
    found, before = told(folder)
    assert found.keys() > {"mine.py"} and all(key.endswith("mine.py") for key in found)
    assert not [key for key in found if key.startswith(("numpy", "json", "torch", "pytest", "dap", "alone"))]
    inner = "bare/inner.py" if "bare" in IMPORTS[how] else "package/inner.py"
    changed = folder / ("helper.py" if "package" not in IMPORTS[how] and "bare" not in IMPORTS[how] else inner)
    changed.write_text("K = 2\n")
    assert told(folder)[1] != before
    changed.write_text("\nK = 1\n")
    assert told(folder)[1] == before
    (folder / "alone.py").write_text("K = 3\n")
    assert told(folder)[1] == before


def test_code_without_helpers_keeps_the_hash_of_its_file(folder):
    (folder / "mine.py").write_text("import json\nfrom torch import nn\nclass Name: pass\n")
    found, one = told(folder)
    assert found == {"mine.py": one} and one == hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest()


def test_a_helper_that_changes_while_python_runs_is_told(folder, caplog):
    (folder / "mine.py").write_text("import helper\nclass Name: pass\n")
    before = told(folder)[0]
    (folder / "helper.py").write_text("K = 2\n")
    with allow_code():
        assert code_of("mine.py:Name") == before == code_of("mine.py:Name")
    assert caplog.text.count("helper.py has changed since Python loaded it") == 1


GUIDANCE = """
import torch
from dap.guidance.base import Guidance
from helper import K

class Push(Guidance):
    def __call__(self, step):
        return torch.full_like(step.x, K)
"""


def test_a_set_does_not_go_on_with_another_helper(folder, colours, pipeline_folder, capsys):
    """The reviewer's case: the file of the guidance is the same, and the module that it imports has other numbers."""
    (folder / "mine.py").write_text(GUIDANCE)
    words = ["distill", "--method", "vanilla", "--guidance", "mine.py:Push", "--ipc", "1", "--steps", "2", "--out", "a"]
    words += ["--data", str(colours), "--backbone", str(pipeline_folder)]
    assert main(words) == 0
    next((folder / "a" / "images").rglob("*.png")).unlink()
    (folder / "helper.py").write_text("K = -9\n")
    helpers._SEEN.clear()
    assert main(words) == 1
    assert "helper of mine.py" in capsys.readouterr().err
