"""What the user reads after each image, and what the image's metadata records."""

from typing import Any

from mflux_teacache_plugin import settings
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.variants import Variant


def summary(generation: Generation, method: Method, variant: Variant | None) -> str:
    """One line, `skipped 6 of 25 steps (threshold 0.2, flux1-dev)`; more where nothing was skipped."""
    named = f"{method.label}, {variant.id}" if variant is not None else method.label
    skipped = generation.skipped
    count = str(skipped) if isinstance(skipped, int) else f"{skipped:.1f}"
    line = f"skipped {count} of {generation.steps} steps ({named})"
    if generation.fault is not None:
        return f"{line}; it stood aside after step {generation.taken}, and mflux went on alone: {generation.fault}"
    if skipped == 0:
        return f"{line}: {method.why_nothing(generation, variant)}"
    details = method.details(generation)
    return f"{line}; {details}" if details else line


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
    if coefficients is not None:
        keys[settings.COEFFICIENTS_KEY] = coefficients
    return keys
