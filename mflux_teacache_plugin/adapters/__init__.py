"""Where each family of mflux is tapped: a registry, and one small file per family.

An adapter knows where things are and nothing of the algorithm. A plugin contributes more through `mflux_adapters`.
"""

from mflux_teacache_plugin.adapters import flux1, placed
from mflux_teacache_plugin.adapters.adapter import Adapter, Registry
from mflux_teacache_plugin.adapters.ernie import ERNIE
from mflux_teacache_plugin.adapters.fibo import FIBO
from mflux_teacache_plugin.adapters.flux1 import FLUX1
from mflux_teacache_plugin.adapters.klein import KLEIN
from mflux_teacache_plugin.adapters.klein_base import KLEIN_BASE
from mflux_teacache_plugin.adapters.qwen import QWEN
from mflux_teacache_plugin.adapters.z_image import Z_IMAGE, Z_IMAGE_CONTROLNET

#: What this package brings along.
BUILT_IN = (FLUX1, KLEIN, KLEIN_BASE, QWEN, Z_IMAGE, Z_IMAGE_CONTROLNET, FIBO, ERNIE, *placed.PLACED)

#: Pipelines that cannot be cached, and why.
REFUSED = {**flux1.REFUSED, **placed.REFUSED}

__all__ = ["BUILT_IN", "FLUX1", "KLEIN", "KLEIN_BASE", "REFUSED", "Adapter", "Registry"]
