"""Completion of verbs, flags and values by the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dap.base.errors import DapError
from dap.cli.flags import Told


def install(
    *,
    shell: Literal["bash", "zsh", "fish"] | None = None,
    to: Annotated[Path | None, Parameter(name="--out", metavar="FILE")] = None,
) -> Told:
    """Install completion.

    Args:
        shell: The shell. Default: the one that this command was typed into.
        to: File to write the script to. Default: the place where the shell looks, and a line in its start-up file.
    """
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    from dap.cli.main import build_app

    try:
        chosen = shell or detect_shell()
    except ShellDetectionError as error:
        raise DapError("The shell cannot be told from here; give --shell bash, zsh or fish.") from error
    file = build_app().install_completion(shell=chosen, output=to, add_to_startup=to is None)
    return Told(f"Completion for {chosen} is in {file}. Open a new shell to use it.", {"shell": chosen, "file": file})
