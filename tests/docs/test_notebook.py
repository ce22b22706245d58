"""docs/notebook.ipynb runs from its first to its last cell, with few steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
SMALLER = {"IPC = 5 ": "IPC = 1 ", "STEPS = 50 ": "STEPS = 2 ", "EPOCHS = 50 ": "EPOCHS = 1 "}
FEW = "{'refine_steps': 1, 'refine_reals': 20, 'options': {'reals': 20}}"
SMALLER |= {
    '"Dress", "Bag", "Sandal"': '"Dress", "Bag"',
    '"auto": {}}': f'"auto": {FEW}}}',
}


# The kernel is another process, and both have the warnings of Jupyter's own libraries. So the client is a process too.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=250, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[1])
"""


def test_every_cell_runs(tmp_path):
    book = json.loads(FILE.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    text = json.dumps(book)
    for words, smaller in SMALLER.items():
        words, smaller = json.dumps(words)[1:-1], json.dumps(smaller)[1:-1]
        assert words in text, f"{words} does not stand in the notebook: the test would run it in full"
        text = text.replace(words, smaller)
    copy = tmp_path / "notebook.ipynb"
    copy.write_text(text, encoding="utf-8")
    own = {
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(copy), str(tmp_path)], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [
        cell["outputs"] for cell in json.loads(copy.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert len(shown) == len(code)
    table = next("".join(o["data"]["text/markdown"]) for o in shown[-1] if "text/markdown" in o.get("data", {}))
    names = [name.lower() for name in re.findall(r"^\| (\w+) +\|", table, re.M)]
    assert names[1:] == ["random", "vanilla", "auto"]
    assert sum("image/png" in output.get("data", {}) for outputs in shown for output in outputs) == 3


def test_the_saved_notebook_shows_its_results_and_no_path_of_a_machine():
    text = FILE.read_text(encoding="utf-8")
    assert "/tmp/" not in text and "/home/" not in text and len(text) < 100_000
    book = json.loads(text)
    assert all(cell["outputs"] for cell in book["cells"][2:] if cell["cell_type"] == "code")
