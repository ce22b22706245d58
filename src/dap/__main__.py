"""`python -m dap` is the command `dap`."""

import sys

from dap.cli.main import main

sys.exit(main())
