"""The images below a folder, by the ways in which a table may name them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dap.base.parsing import shown
from dap.data.real.finding.walking import images_below


class Named:
    """The images below a folder.

    Args:
        root: the folder.
        before: what may stand before a path that is relative to the folder, such as "images/" in a table above images/.

    Raises:
        DapError: a folder cannot be read.
    """

    def __init__(self, root: Path, before: Sequence[str] = ()) -> None:
        self._before = before
        self._paths = set(images_below(root))
        self._short: dict[str, str | tuple[str, str]] = {}
        for path in self._paths:  # there may be a million
            name = path.rpartition("/")[2]
            ending = len(os.path.splitext(name)[1])
            for short in {name, path[:-ending], name[:-ending]}:
                if short != path:
                    known = self._short.setdefault(short, path)
                    if known is not path:
                        first, last = (known, known) if isinstance(known, str) else known
                        self._short[short] = (min(first, path), max(last, path))
        self.count = len(self._paths)

    def find(self, name: Any) -> str | None:
        """The image that a table names: by its path, by its file name, or by either without its ending. None where there is
        none, and where there are several."""
        found = self._found(name)
        return found if isinstance(found, str) else None

    def ends(self, name: Any) -> bool:
        """Whether a table names an image with its ending: a number may be that of a row, and "0.png" is none."""
        found = self.find(name)
        return found is not None and found.endswith(_text(name).rpartition("/")[2])

    def several(self, name: Any) -> str | None:
        """A clause that names two of several images that have the name; None where there is one at most."""
        found = self._found(name)
        if found is None or isinstance(found, str):
            return None
        one, another = map(shown, found)
        return f"several images have the name {shown(_text(name))!r}, such as {one} and {another}"

    def _found(self, name: Any) -> str | tuple[str, str] | None:
        text = _text(name)
        if not text or text.startswith("/") or ".." in text.split("/"):
            return None
        for start in ("", *self._before):
            if text.startswith(start):
                short = text.removeprefix(start)
                if found := short if short in self._paths else self._short.get(short):
                    return found
        return None


def _text(name: Any) -> str:
    return str(name).strip().replace("\\", "/").removeprefix("./") if isinstance(name, (str, int)) else ""
