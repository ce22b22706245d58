"""`python -m dap` is the command `dap`."""

import os
import sys

# Python puts the current folder first. A file queue.py or torch.py there must not stand in for a module, as under `dap`.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from dap.cli.main import main

sys.exit(main())
