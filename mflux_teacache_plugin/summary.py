"""What the user reads after each image, and what the image's metadata records."""

import sys
from typing import Any

from mflux_teacache_plugin import settings
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.variants import Variant


def summary(generation: Generation, method: Method, variant: Variant | None) -> str:
    """One line, `skipped 6 of 25 steps (threshold 0.2, flux1-dev)`; more where nothing was skipped."""
    if not method.skips:
        return _left_out(generation) or "nothing left out: guidance needs all its predictions, or makes only one"
    further = _left_out(generation, "the other " if generation.skipped else "")
    guidance = generation.guidance
    if method.cfg_end is not None and generation.alone is None and guidance is not None and guidance <= 1:
        further = f"cfg_end did nothing at guidance {guidance:g}"
    line = _skipped(generation, method, variant)
    return f"{line}; {further}" if further else line


def _left_out(generation: Generation, of: str = "") -> str:
    """What was left out of the calls in computed steps; empty for nothing."""
    if not generation.left_out:
        return ""
    why = ", nothing changed (guidance 1)" if generation.idle else f" (no guidance from step {generation.alone} on)"
    return f"{generation.left_out} of {of}{generation.calls} transformer calls left out{why}"


def _skipped(generation: Generation, method: Method, variant: Variant | None) -> str:
    named = ", ".join(filter(None, (method.label, "" if variant is None else variant.id, generation.note)))
    skipped = generation.skipped
    count = str(skipped) if isinstance(skipped, int) else f"{skipped:.1f}"
    line = f"skipped {count} of {generation.steps} steps ({named})"
    if generation.fault is not None and generation.taken == generation.steps and skipped == 0:
        return f"{line}: {generation.fault}"
    if generation.fault is not None:
        return f"{line}; it stopped after step {generation.taken}, and mflux went on alone: {generation.fault}"
    if skipped == 0:
        return f"{line}: {method.why_nothing(generation, variant)}"
    details = method.details(generation)
    return f"{line}; {details}" if details else line


def say(text: str) -> None:
    """One line on stderr."""
    print(f"TeaCache: {text}", file=sys.stderr)


def metadata(
    generation: Generation, method: Method, variant: Variant | None, coefficients: str | None
) -> dict[str, Any]:
    """Flat keys for EXIF and sidecar; those that `settings` names repeat the run under `-C`."""
    keys: dict[str, Any] = {
        settings.METHOD_KEY: method.recorded(generation),
        settings.VARIANT_KEY: "" if variant is None else variant.id,
        settings.NUMBERS_KEY: "" if variant is None else variant.digest,
        "teacache_skipped": generation.skipped,
        "teacache_computed": generation.computed,
    }
    if generation.alone is not None:
        keys["teacache_left_out"] = generation.left_out
    if method.cfg_end is not None:
        keys[settings.CFG_END_KEY] = method.cfg_end
    if coefficients is not None:
        keys[settings.COEFFICIENTS_KEY] = coefficients
    return keys
