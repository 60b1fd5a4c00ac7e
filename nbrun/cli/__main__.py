"""`python -m nbrun.cli`: the same as `nbrun`."""

import sys

from nbrun.cli import main

sys.exit(main())
