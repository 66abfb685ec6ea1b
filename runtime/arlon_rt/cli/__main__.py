"""``python -m arlon_rt.cli``."""

import sys

from arlon_rt.cli.main import main

sys.exit(main())
