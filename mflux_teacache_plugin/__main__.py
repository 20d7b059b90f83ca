"""`python -m mflux_teacache_plugin` is `mflux-teacache`."""

import sys

from mflux_teacache_plugin.cli import main

sys.exit(main())
