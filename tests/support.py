"""What several test modules need beside the tiny models."""

import sys
from typing import Any

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.variants import Provenance, Variant
from tests.tiny.cases import Case

#: Thresholds that skip nothing, and everything that may be skipped.
NEVER, ALWAYS = 1e-9, 2.0


def a_variant(case: Case, **changes: Any) -> Variant:
    """Numbers whose estimate is the signal's change itself, for a case's adapter."""
    values = {
        "id": "test",
        "adapter": "flux1" if case.family == "flux1" else "klein-base",
        "models": ("test",),
        "polynomial": (0, 0, 0, 1, 0),
        "threshold": 0.2,
        "weights_licence": "none",
        "provenance": Provenance(source="a test"),
    }
    return Variant(**{**values, **changes})


def deactivate() -> None:
    """Forget that the start-up file ran, and every module that is waited for. What the bridge has patched stays."""
    _startup._facts.update(calls=0, activated=False, why="deactivated")
    imports = sys.modules.get("mflux_teacache_plugin.host.imports")
    if imports is not None:
        imports._pending.clear()
        imports._tidy()
