"""Where each family of mflux makes its predictions, and how to stand there: a table of adapters, and `intercept`.

An adapter knows where things are and nothing of the algorithm. A plugin contributes more through `mflux_adapters`.
"""

from mflux_teacache_plugin.adapters.adapter import Adapter, Registry
from mflux_teacache_plugin.adapters.families import BUILT_IN, REFUSED

__all__ = ["BUILT_IN", "REFUSED", "Adapter", "Registry"]
