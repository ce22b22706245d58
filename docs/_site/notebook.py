"""Runs docs/notebook.ipynb and saves it with what its cells show: `python docs/_site/notebook.py`, a few minutes.

Pictures are kept as JPEG alone. Streams, HTML and execution times are left out. So the file stays small, and two runs
differ only in their seconds.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "notebook.ipynb"


def main() -> None:
    book = nbformat.read(FILE, as_version=4)
    NotebookClient(book, timeout=1800, kernel_name="python3").execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop("text/html", None)
                if "image/jpeg" in data:
                    data.pop("image/png", None)
    book.metadata = {"kernelspec": book.metadata["kernelspec"], "language_info": {"name": "python"}}
    nbformat.write(book, FILE)


if __name__ == "__main__":
    main()
