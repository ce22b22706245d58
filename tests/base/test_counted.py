"""A number and its noun agree, whatever the number is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dap
from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.cli.main import main
from dap.data.sets.imports import import_set
from dap.testing import Finding, summary
from dap.verbs.distill import distill

NOUNS = (
    "image",
    "class",
    "clip",
    "warning",
    "finding",
    "row",
    "copy",
    "key",
    "box",
    "batch",
    "real image",
    "near-copy",
)


@pytest.mark.parametrize("noun", NOUNS)
def test_a_number_and_its_noun_agree(noun: str) -> None:
    assert counted(1, noun) == f"1 {noun}"
    for n in (0, 2, 60_000):
        number, _, plural = counted(n, noun).partition(" ")
        assert number == f"{n:,}" and plural.endswith("s") and plural.startswith(noun[:-1]) and plural != noun
    wanted = ("classes", "copies", "keys", "boxes", "batches", "near-copies")
    assert tuple(counted(2, one)[2:] for one in ("class", "copy", "key", "box", "batch", "near-copy")) == wanted


def test_a_set_of_one_image_is_told_as_such(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They said "1 images per class", "all 1 images a class" and "1 warnings"."""
    made = distill(out=tmp_path / "one", data=str(colours), method="random", ipc=1, classes=["red"])
    assert main(["import", str(made.path), "--out", str(tmp_path / "back")]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "all 1 image a class" in said and f"1 image in {tmp_path}" in said
    assert "1 image of 1 class" in repr(import_set(made.path, tmp_path / "back"))
    two = distill(out=tmp_path / "two", data=str(colours), method="dm", ipc=1, options={"iterations": 1}).path
    with pytest.raises(DapError, match="holds a set of 1 image per class"):
        distill(out=two, data=str(colours), method="dm", ipc=2, options={"iterations": 1})
    for level, words in (("warn", "1 warning, 1 finding."), ("ok", "0 warnings, 1 finding.")):
        assert summary("x", "method", [Finding("a", level, "b")]).endswith(words)


COUNTS = re.compile(r"^(len\(.*\)|sum\(.*\))$")
MANY = re.compile(
    r" (images|classes|clips|warnings|findings|epochs|trainings|sets|rows|files)( per class| a class|\.|,|;|$)"
)
DONE = ("cli", "testing", "methods", "engines", "data/sets")
"""Rooms whose messages were looked through. A count of one image does not happen everywhere."""


@pytest.mark.parametrize("room", DONE)
def test_no_count_stands_before_a_plural(room: str) -> None:
    """A number that is `len(...)` or `sum(...)` can be one, so `counted` has to write the noun. "3 of 1 images" is left out."""
    found = list[str]()
    for file in (Path(dap.__file__).parent / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for before, value, after in zip([None, *node.values], node.values, node.values[1:], strict=False):
                text = after.value if isinstance(after, ast.Constant) else ""
                lead = before.value if isinstance(before, ast.Constant) else ""
                if not isinstance(value, ast.FormattedValue) or str(lead).endswith(" of ") or not MANY.match(str(text)):
                    continue
                if "save the one you mean" in str(text):  # there are several
                    continue
                if COUNTS.match(ast.unparse(value.value)):
                    found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not found
