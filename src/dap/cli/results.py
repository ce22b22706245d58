"""The text and the values that the command writes about judged sets."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from dap.cli.flags import Told

if TYPE_CHECKING:
    from dap.verbs.report import Results


def shown(results: Results, track: str | None = None) -> Told:
    """The table of accuracies, the place of the page and, if a tracker is asked for, the place of its log.

    A terminal gets a table as wide as the terminal. A file or a pipe gets the whole table as Markdown.

    Args:
        results: the judged sets.
        track: "tensorboard" or "wandb" to log the sets, or None.
    """
    from dap.verbs.report import log_for

    table = results.table
    terminal = sys.stdout.isatty()
    text = table.terminal(shutil.get_terminal_size().columns) if terminal else table.markdown()
    values: dict[str, Any] = {"sets": list(results.sets), "page": results.page, "trials": trials(results)}
    lines = [text.rstrip("\n"), "", f"Report: {results.page}"]
    if track is not None:
        where = log_for(track, results)
        lines.append(f"Logged for {track}: {where}")
        values["log"] = where
    return Told("\n".join(lines), values)


def trials(results: Results) -> list[dict[str, Any]]:
    """Every training of every set: the network, the seed and the accuracies, as fractions in [0, 1]."""
    names = ("protocol", "network", "seed", "last", "best", "accuracy", "epochs", "seconds", "n_test")
    found = []
    for path, of_set in results.trials.items():
        for trial in of_set:
            found.append({"set": path, **{name: getattr(trial, name) for name in names if hasattr(trial, name)}})
    return found
