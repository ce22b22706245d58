"""A table as HTML: the part of the report's page that shows it, and that part with a style of its own for a notebook."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from dap.evaluation.report.cells import Block


@functools.cache
def templates() -> Any:
    """The environment of all templates of the report; every value that they show is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("dap.evaluation.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def part(title: str, blocks: Sequence[Block], note: str = "") -> str:
    """The blocks as HTML that takes its looks from the page around it; the title names what scrolls."""
    return str(_macros().blocks_of(title, blocks, note)).strip()


def alone(title: str, blocks: Sequence[Block], note: str = "") -> str:
    """The blocks with a style of their own, which needs nothing from elsewhere and changes nothing around it."""
    return str(_macros().alone(title, blocks, note, source("notebook.css"))).strip()


def _macros() -> Any:
    return templates().get_template("parts.html.j2").module


def source(name: str) -> str:
    """A file of the folder of templates, as text that is not escaped."""
    from markupsafe import Markup

    return Markup(templates().loader.get_source(templates(), name)[0])
