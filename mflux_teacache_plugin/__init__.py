"""TeaCache for mflux: skip the denoising steps that barely change the picture.

```python
from mflux_teacache_plugin import apply_teacache

with apply_teacache(flux, threshold=0.2) as handle:
    flux.generate_image(...)
print(handle.stats.skipped)
```
"""

TYPE_CHECKING = False  # typing's own: importing it would cost more than the rest of the start-up
if TYPE_CHECKING:
    from typing import Any

    from mflux_teacache_plugin.apply import Handle, apply_teacache
    from mflux_teacache_plugin.errors import TeaCacheError
    from mflux_teacache_plugin.host.specs import hookimpl
    from mflux_teacache_plugin.variants import Variant, read_variant

__all__ = ["Handle", "TeaCacheError", "Variant", "__version__", "apply_teacache", "hookimpl", "read_variant"]

# Importing this package must stay cheap: the start-up file does it in every Python process.
_HOMES = {"Handle": "apply", "apply_teacache": "apply", "TeaCacheError": "errors", "hookimpl": "host.specs"}
_HOMES |= {"Variant": "variants", "read_variant": "variants"}


def load_ipython_extension(ipython: "Any") -> None:
    """`%load_ext mflux_teacache_plugin`: connect the plugin, so that MFLUX_TEACACHE counts whenever a model is built."""
    from mflux_teacache_plugin import _startup

    _startup.activate("a notebook asked for it")


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib.metadata import version

        return version("mflux-teacache-plugin")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
