"""What `make docs` does beside mkdocs: pages of files that lie outside docs/, the notebook as a page, and their links.

The Markdown files are written for readers of the repository, where `../SECURITY.md` and `../src/dap/sampling.py` are files. The
site has a page for some of these files. A link to any other file of the repository becomes the path of the file, in letters. A
link to a file that does not exist stays as it is, and the strict build fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docs/notebook.ipynb": "notebook.md",
}
"""Files of the repository that are pages of the site under another name."""

FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[^\n]*$", re.M | re.S)
LINK = re.compile(r"\[((?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*)\]\(([^()\s]+)\)")
"""A Markdown link with its text, which may hold an image, and its target."""


def linked(text: str, folder: str, page: str) -> str:
    """The text of a page with links that the site has.

    Args:
        text: Markdown.
        folder: the folder of the file in the repository, from which its links start; "" is the root.
        page: the path of the page in the site, such as "api/dap.md".
    """

    def replaced(found: re.Match[str]) -> str:
        words, target = LINK.sub(replaced, found[1]), found[2]
        path, mark, anchor = target.partition("#")
        if "://" in target or target.startswith(("mailto:", "data:", "#")):
            return f"[{words}]({target})"
        place = posixpath.normpath(posixpath.join(folder, path))
        if place in PAGES or place.startswith("docs/"):
            inside = PAGES.get(place) or place.removeprefix("docs/")
            return f"[{words}]({posixpath.relpath(inside, posixpath.dirname(page) or '.')}{mark}{anchor})"
        if not (ROOT / place).exists():
            return f"[{words}]({target})"
        return words if place in words else f"{words} (`{place}`)"

    parts, last = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(replaced, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(replaced, text[last:])])


def notebook(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and what the code showed when the notebook was saved."""
    made = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            made.append(cell.source)
        elif cell.cell_type == "code":
            made += [
                f"```python\n{cell.source}\n```",
                *(shown for output in cell.outputs if (shown := _output(output))),
            ]
    return "\n\n".join(made) + "\n"


def _output(output: Any) -> str:
    """One output of a cell, in the richest form that Markdown has."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"![What the cell above shows](data:{kind};base64,{''.join(data[kind].split())})"
    if "text/markdown" in data:
        return data["text/markdown"]
    text = output.get("text") or data.get("text/plain") or ""
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files that lie outside docs/, and the notebook's."""
    for name, page in PAGES.items():
        path = ROOT / name
        text = notebook(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Gives a page the links of the site."""
    source = page.file.src_uri
    origin = next((name for name, target in PAGES.items() if target == source), f"docs/{source}")
    return linked(markdown, posixpath.dirname(origin), source)
