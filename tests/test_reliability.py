"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    for file, function in named:
        text = (Path(__file__).parent / file.removeprefix("tests/")).read_text(encoding="utf-8")
        assert f"def {function}" in text, (file, function)
