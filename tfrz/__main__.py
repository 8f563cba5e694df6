"""`python -m tfrz` is `tfrz`."""

import sys

from tfrz.cli.main import main

sys.exit(main())
