"""`python -m dap` is the command `dap`."""

import sys

from dap.cli import main

sys.exit(main())
