"""``python -m msd`` is the ``msd`` command."""

import sys

from msd.cli.main import main

sys.exit(main())
