"""What the user reads after each image, and what the image's metadata records."""

from typing import Any

from mflux_teacache_plugin import settings
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.variants import Variant


def summary(generation: Generation, threshold: float, variant: Variant) -> str:
    """One line, `skipped 6 of 25 steps (threshold 0.2, flux1-dev)`; more where nothing was skipped."""
    what = f"(threshold {threshold:g}, {variant.id})"
    line = f"skipped {generation.skipped} of {generation.steps} steps {what}"
    if generation.fault is not None:
        return f"{line}; it stood aside after step {len(generation.decisions)}, and mflux went on alone: {generation.fault}"
    if generation.skipped == 0:
        return f"{line}: {why_nothing_was_skipped(generation, threshold, variant)}"
    return line


def why_nothing_was_skipped(generation: Generation, threshold: float, variant: Variant) -> str:
    """The reason, and what would help."""
    first, last = variant.guard.first, variant.guard.last
    if generation.steps <= first + last:
        return f"all of them are first or last steps, which always compute; take more than {first + last}"
    asked = [decision for decision in generation.decisions if decision.change is not None]
    if not asked:
        return "no step's signal could be compared with the step before"
    if variant.distilled:
        return "a distilled model takes few, large steps; use a base model to gain from skipping"
    if all(decision.reason == "above the fitted range" for decision in asked) and variant.range is not None:
        smallest = min(decision.change or 0.0 for decision in asked)
        return (
            f"every step changed by {smallest:.3g} or more, above the range that {variant.id} was fitted on "
            f"({variant.range[1]:.3g}); more --steps make smaller changes"
        )
    smallest = min(decision.accumulated for decision in asked if decision.accumulated is not None)
    return f"no step was estimated to change the output by less than {smallest:.3g}; a higher --teacache skips"


def metadata(generation: Generation, threshold: float, variant: Variant, coefficients: str | None) -> dict[str, Any]:
    """Flat keys for EXIF and sidecar; those that `settings` names repeat the run under `-C`."""
    keys: dict[str, Any] = {
        settings.THRESHOLD_KEY: threshold,
        settings.VARIANT_KEY: variant.id,
        settings.NUMBERS_KEY: variant.digest,
        "teacache_skipped": generation.skipped,
        "teacache_computed": generation.computed,
    }
    if coefficients is not None:
        keys[settings.COEFFICIENTS_KEY] = coefficients
    return keys
