"""What the user reads after each image, and what the image's metadata records."""

from collections.abc import Sequence
from typing import Any

from mflux_teacache_plugin import settings
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.methods import DualCache, Method, Placed, TeaCache
from mflux_teacache_plugin.variants import Variant

PERCENTILES = (("min", 0.0), ("25 %", 0.25), ("50 %", 0.5), ("75 %", 0.75), ("max", 1.0))


def summary(generation: Generation, method: Method, variant: Variant | None) -> str:
    """One line, `skipped 6 of 25 steps (threshold 0.2, flux1-dev)`; more where nothing was skipped."""
    what = f"threshold {method}" if isinstance(method, TeaCache) else str(method)
    named = f"{what}, {variant.id}" if variant is not None else what
    line = f"skipped {_steps(generation.skipped)} of {generation.steps} steps ({named})"
    if generation.fault is not None:
        return f"{line}; it stood aside after step {generation.taken}, and mflux went on alone: {generation.fault}"
    if generation.skipped == 0:
        return f"{line}: {why_nothing_was_skipped(generation, method, variant)}"
    if isinstance(method, DualCache):
        return f"{line}; {hits(generation)}"
    return line


def hits(generation: Generation) -> str:
    """How often DualCache's lists of blocks were skipped, and the spread of the changes that it read."""
    cached = sum(decision.skipped for decision in generation.decisions)
    line = f"hit rate {cached / len(generation.decisions):.0%}"
    if changes := sorted(generation.changes):
        line += ", changes " + ", ".join(f"{name} {_quantile(changes, share):.3g}" for name, share in PERCENTILES)
    return line


def why_nothing_was_skipped(generation: Generation, method: Method, variant: Variant | None) -> str:
    """The reason, and what would help."""
    if isinstance(method, Placed):
        return "the speed-up leaves no step out; ask for a higher one"
    if isinstance(method, DualCache):
        return f"no list of blocks changed by less than {method.settings.rdt:g}; a higher rdt skips"
    if isinstance(method, TeaCache) and variant is not None:
        first, last = variant.guard.first, variant.guard.last
        if generation.steps <= first + last:
            return f"all of them are first or last steps, which always compute; take more than {first + last}"
    asked = [decision for decision in generation.decisions if decision.change is not None]
    if not asked:
        return "no step's signal could be compared with the step before"
    if variant is not None and variant.distilled:
        return "a distilled model takes few, large steps; use a base model to gain from skipping"
    if all(decision.reason == "above the fitted range" for decision in asked) and variant and variant.range:
        smallest = min(generation.changes)
        return (
            f"every step changed by {smallest:.3g} or more, above the range that {variant.id} was fitted on "
            f"({variant.range[1]:.3g}); more --steps make smaller changes"
        )
    smallest = min(decision.accumulated for decision in asked if decision.accumulated is not None)
    return f"no step was estimated to change the output by less than {smallest:.3g}; a higher threshold skips"


def metadata(
    generation: Generation, method: Method, variant: Variant | None, coefficients: str | None
) -> dict[str, Any]:
    """Flat keys for EXIF and sidecar; those that `settings` names repeat the run under `-C`."""
    keys: dict[str, Any] = {
        settings.METHOD_KEY: str(method),
        settings.VARIANT_KEY: "" if variant is None else variant.id,
        settings.NUMBERS_KEY: "" if variant is None else variant.digest,
        "teacache_skipped": generation.skipped,
        "teacache_computed": generation.computed,
    }
    if coefficients is not None:
        keys[settings.COEFFICIENTS_KEY] = coefficients
    return keys


def _steps(count: float) -> str:
    return str(count) if isinstance(count, int) else f"{count:.1f}"


def _quantile(ordered: Sequence[float], share: float) -> float:
    """By linear interpolation between the two nearest values."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
