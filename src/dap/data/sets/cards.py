"""Dataset cards. A card is a README.md that begins with fields in YAML (its front matter), which the hub reads."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from dap.base.documents import fitted, read_bytes
from dap.base.errors import DapError
from dap.base.files import inside
from dap.base.parsing import Damaged, parse_yaml

LARGEST = 2**22
"""How many bytes a card may have."""
FRONT = TypeAdapter(dict[str, Any])
"""The fields of a card's front matter. The hub says which there are; the card of an export keeps all of them."""


def size_category(n: int) -> str:
    """The hub's name for the size of a data set of n images, such as "1K<n<10K"."""
    return "n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K" if n < 100_000 else "100K<n<1M"


def cell(text: object) -> str:
    """Any text for one cell of a Markdown table: on one line, and escaped, so that no part of the text becomes a
    tag."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def code(text: object) -> str:
    """Any text as inline code of Markdown, on one line."""
    shown = " ".join(str(text).split())
    return f"<code>{html.escape(shown, quote=False).replace('|', '&#124;')}</code>"


def card(front: dict[str, Any], body: str) -> str:
    """The text of a card that has this front matter and this body."""
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the body of the README.md in a folder. The front matter is empty where it is no plain YAML. Both
    are empty where there is no README.md, where it leads out of the folder, and where it is larger than 4 MiB."""
    try:
        data = read_bytes(inside(folder, "README.md"), LARGEST)
    except DapError:
        return {}, ""  # a card is for people, and nothing is decided by it
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    head, closed, body = text.removeprefix("---\n").partition("\n---\n")
    if not (text.startswith("---\n") and closed):
        return {}, text.strip()
    try:
        front = fitted(parse_yaml(head, folder / "README.md"), FRONT, folder / "README.md")
    except Damaged:
        front = {}
    return front, body.strip()


def deeper(body: str) -> str:
    """The body of a card with every heading one level lower, so that the body can stand inside another card."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in body.splitlines())
