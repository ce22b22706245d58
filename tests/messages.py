"""What a command says on standard error."""

from __future__ import annotations


def apart_from_data(err: str) -> list[str]:
    """The lines of standard error without those that tell what was understood of the data."""
    return [line for line in err.splitlines() if not line.startswith(("train: ", "test: "))]
