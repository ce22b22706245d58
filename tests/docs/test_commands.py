"""Every command line of `dap` in the README and in docs/ can be read: its verb and its flags exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dap.cli.main import build_app
from dap.cli.recipe import recipe_values, varied
from dap.cli.verbs import VERBS
from dap.methods import find
from dap.shipped import names
from dap.verbs.compare import comparison, grid, users

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Each command line that begins with `dap` in the shell blocks of a page, and in blocks that are indented."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"^ {4}dap .*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split(" && ") if re.match(r"dap [a-z]", part.strip())]


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_line_can_be_read(page, line):
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in VERBS, page
    # "$X" and "…" stand for the value of the flag before them; else "$X" is more flags, and "…" all that a command needs.
    for i in [i for i, word in enumerate(words) if word[0] in "$…"][::-1]:
        words[i : i + 1] = ["x"] if words[i - 1].startswith("--") else ["--out", "x"] if words[i] == "…" else []
    command, bound, _ = build_app().parse_args(words, print_error=False, exit_on_error=False)
    assert callable(command) and (bound.arguments or len(words) == 1)


MAKING = [(page, line) for page, line in LINES if line.split()[1] in ("distill", "sweep", "compare")]


@pytest.mark.parametrize(("page", "line"), MAKING)
def test_every_method_uses_what_the_line_gives_it(page, line):
    """`dap sweep --vary scale=…` without a method was on a page: it stopped at once, for `auto` has no scale."""
    words = ["0" if word == "S" else word for word in shlex.split(line, comments=True)[1:] if word[0] not in "$…"]
    _, bound, _ = build_app().parse_args([*words, "--out", "x"] if "--out" not in words else words, exit_on_error=False)
    given = bound.arguments
    if given.get("recipe") not in (None, *names()):
        return  # a recipe of the reader's own
    values, methods = recipe_values(given.get("recipe"), given.get("flags") or {}), given.get("methods") or ()
    methods = [method for method in methods if ":" not in method]
    if words[0] == "compare":
        recipes = [recipe for _, recipe in comparison(values, methods, (), 1)] if methods else []
    else:
        recipes = [recipe for _, recipe in grid(values, varied(given.get("vary") or []), 1)]
    for recipe in recipes:
        if ":" not in recipe.method:
            # A list of methods shares its backbone: it gives sets of real images their size.
            idle = {section for section, used in users(find(recipe.method)).items() if not used} - {"backbone"}
            assert not idle & recipe.model_dump(exclude_unset=True, exclude_none=True).keys(), recipe.method


def test_the_pages_have_command_lines():
    assert len(LINES) > 60 and {page for page, _ in LINES} > {"README.md", "docs/commands.md", "docs/own-folder.md"}
