"""Where each family of mflux makes its predictions, and how to stand there: tables of adapters, and `intercept`.

An adapter knows where things are and nothing of the algorithm. A plugin contributes more through `mflux_adapters`.
"""

from mflux_teacache_plugin.adapters import tapped, untapped
from mflux_teacache_plugin.adapters.adapter import Adapter, Registry

#: What this package brings along.
BUILT_IN = (*tapped.TAPPED, *untapped.UNTAPPED)

#: Pipelines that cannot be cached, and why.
REFUSED = {**tapped.REFUSED, **untapped.REFUSED}

__all__ = ["BUILT_IN", "REFUSED", "Adapter", "Registry"]
