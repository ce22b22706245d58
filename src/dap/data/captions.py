"""Captions of real images: JSON lines of path and caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dap.data.sources import Source
from dap.errors import DapError


def read_captions(path: str | Path, source: Source) -> Mapping[str, str]:
    """Caption of each real image by its key (`Source.keys`).

    Args:
        path: a file with one JSON object a line, {"path": key, "caption": text}.
        source: whose images they are of.

    Raises:
        DapError: no such file, a line that is not one, or a class without any captioned image.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DapError(f"There is no file of captions {path}; dap caption writes one.")
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            said = json.loads(line)
            found[str(said["path"])] = str(said["caption"])
        except (ValueError, TypeError, KeyError) as error:
            raise DapError(
                f'{path}, line {number}: {{"path": ..., "caption": ...}} is needed, not {line[:80]!r}.'
            ) from error
    for label, name in enumerate(source.class_names):
        if not any(key in found for key in source.keys(label, range(source.count(label)))):
            raise DapError(f"{path} has no caption of any image of class {name!r} of {source.name}.")
    return found
