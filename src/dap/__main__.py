"""`python -m dap` is the command `dap`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """Run the command line of this process and end it with the command's exit status."""
    from dap.cli import signals

    signals.at_start()
    from dap.cli.main import main

    status = main()
    if status > 128:  # interrupted
        sys.stdout.flush()
        sys.stderr.flush()
        signals.leave(status - 128)
    signals.at_end()
    sys.exit(status)


if __name__ == "__main__":
    # Python puts the current folder first. A file queue.py or torch.py there must not stand in for a module, as under `dap`.
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    entry()
