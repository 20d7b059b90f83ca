"""Step caching's own hooks, in addition to the host's (`host.specs`): what other plugins can bring for it.

docs/hooks.md is checked against this file.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mflux_teacache_plugin.host.specs import hookspec

if TYPE_CHECKING:
    from mflux_teacache_plugin.adapters.adapter import Adapter
    from mflux_teacache_plugin.methods.method import Parser
    from mflux_teacache_plugin.variants import Variant


@hookspec
def mflux_adapters() -> "Iterable[Adapter]":
    """Adapters for families of transformers; one with the id of a built-in adapter replaces it."""


@hookspec
def mflux_variants() -> "Iterable[Variant | Path]":
    """Coefficient files or variants. A user's own files win over them, they win over the shipped ones."""


@hookspec
def mflux_methods() -> "Mapping[str, Parser]":
    """Methods, by the name before the colon in `--teacache NAME:SETTING`; each makes one of the setting."""
