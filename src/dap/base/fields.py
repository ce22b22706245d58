"""Types of fields for what is read from files: each says its bounds once, so that no model forgets one."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


class FromFile(BaseModel, frozen=True):
    """A closed model of what a file may hold: no unknown key, no value of another type, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _writable(text: str) -> str:
    """Refuse text that UTF-8 cannot hold or that ends early in a C string."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("this text holds a NUL or half of a character")
    return text


def _inside(path: str) -> str:
    """Refuse a path that leads out of the folder it is in."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ".." in parts or any(len(p.encode()) > 255 for p in parts):
        raise ValueError("this path must lead to a file inside the folder, as images/cat/00000.png does")
    return path


Text = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_writable)]
"""Text of at most 10,000 characters that can be written to a file."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_writable)]
"""A name of at most 1,000 characters, such as that of a class."""
Inside = Annotated[
    str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_writable), AfterValidator(_inside)
]
"""A relative path that stays inside the folder of the file that names it. A symbolic link can still lead out: see
`files.inside`."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""The sha256 of a file, as 64 hex digits."""
Count = Annotated[int, Field(ge=0, le=10**9)]
"""A whole number from 0 to 10**9."""
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
"""A seed: a whole number from 0 to 2**64 - 1."""
