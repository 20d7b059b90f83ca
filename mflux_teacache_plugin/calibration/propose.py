"""From recorded generations to what will be tried: the numbers of a variant, and settings that suit them."""

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, PUBLISHED, Analysis
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.methods.teacache import TeaCacheGate
from mflux_teacache_plugin.variants import Profile, Provenance, Variant

#: Without pictures to judge by, a threshold is one that skips about this share of the steps.
SKIPPED_SHARE = 1 / 3

#: What is said of a threshold that follows from the traces alone.
UNSEEN = "The threshold skips about a third of the steps of these traces; no picture was looked at."

#: The speed-ups that are tried beside thresholds.
SPEED_UPS = ("1.5x", "2x", "3x")

#: Shares of the steps that the thresholds which are tried should skip.
TRIED_SHARES = (0.25, 0.5)

#: Thresholds that are nearer to each other than this share are not both tried.
APART = 0.1


def variant_of(
    facts: Mapping[str, Any], analysis: Analysis, traces: Sequence[Trace], existing: Variant | None
) -> Variant:
    """The variant that the traces give.

    Args:
        facts: the keys of a coefficient file besides numbers and provenance.
        existing: the variant that served this model up to now, None if there is none.
    """
    keys = numbers(analysis, traces, existing)
    recipe = traces[0].recipe
    source, notes, judged = str(recipe["source"]), [analysis.verdict], PROFILE
    if existing is not None and analysis.keeps_published:
        source, judged = f"polynomial and threshold: {existing.provenance.source}; profile: {source}", PUBLISHED
    elif "polynomial" in keys:
        judged = OWN
        notes.append(UNSEEN)
    if analysis.guided:
        notes.append("The profile is of the guided prediction.")
    score = analysis.scores.get(judged)
    provenance = Provenance(
        source=source,
        recipe=recipe_text(recipe, analysis),
        date=datetime.date.today().isoformat(),
        r2=None if score is None else round(score.r2, 4),
        fitted=True,
        notes="\n".join(notes),
    )
    return Variant(**facts, **keys, provenance=provenance)


def numbers(analysis: Analysis, traces: Sequence[Trace], published: Variant | None) -> dict[str, Any]:
    """The keys `polynomial`, `range`, `threshold` and `profile` of a coefficient file.

    The published polynomial stays, with the threshold that was chosen for it, where it predicts no worse than ours.
    """
    keys: dict[str, Any] = {
        "profile": Profile(
            sigma=tuple(round(sigma, 5) for sigma in analysis.profile.sigma),
            change=tuple(round(change, 4) for change in analysis.profile.change),
        )
    }
    if published is not None and analysis.keeps_published:
        return {"polynomial": published.polynomial, "range": published.range, "threshold": published.threshold, **keys}
    if analysis.polynomial is None:
        return keys
    polynomial, span = analysis.polynomial.coefficients, analysis.polynomial.span
    threshold = threshold_for(polynomial, span, traces)
    return {"polynomial": polynomial, "range": span, "threshold": threshold, **keys}


def settings(variant: Variant, traces: Sequence[Trace]) -> list[str]:
    """What to try, as `--teacache` takes it: thresholds around the variant's own, and speed-ups."""
    thresholds = [] if variant.threshold is None else [variant.threshold]
    if variant.polynomial is not None and variant.range is not None and traces[0].signal is not None:
        for share in TRIED_SHARES:
            threshold = threshold_for(variant.polynomial, variant.range, traces, share)
            if all(abs(threshold / other - 1) > APART for other in thresholds):
                thresholds.append(threshold)
    return [*(f"{threshold:g}" for threshold in sorted(thresholds)), *SPEED_UPS]


def threshold_for(
    polynomial: Sequence[float], span: tuple[float, float], traces: Sequence[Trace], share: float = SKIPPED_SHARE
) -> float:
    """The threshold that skips about `share` of the steps, as the gate decides on the traces' own signal."""
    low, high = 0.005, 2.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if skipped_share(polynomial, span, middle, traces) < share else (low, middle)
    return float(f"{(low * high) ** 0.5:.2g}")


def skipped_share(
    polynomial: Sequence[float], span: tuple[float, float], threshold: float, traces: Sequence[Trace]
) -> float:
    """Which share of the steps TeaCache's gate would skip; the signal is that of a run in which nothing was skipped."""
    skipped = steps = 0
    for trace in traces:
        assert trace.signal is not None
        gate = TeaCacheGate(len(trace.signal) + 1, threshold, polynomial, span)
        changes = [0.0, *trace.signal.tolist()]
        skipped += sum(gate(step, partial(float, change)).skip for step, change in enumerate(changes))
        steps += len(changes)
    return skipped / steps


def recipe_text(recipe: Mapping[str, Any], analysis: Analysis) -> str:
    """`10 prompts, 50 steps, guidance 4, 512x512, q4, seed 42`, as far as the traces say so."""
    several = f", {analysis.generations} generations" if analysis.generations != analysis.prompts else ""
    told = [f"{analysis.prompts} prompts{several}", f"{recipe['steps']} steps"]
    told += [f"guidance {recipe['guidance']:g}"] if isinstance(recipe.get("guidance"), (int, float)) else []
    told += [f"{recipe['width']}x{recipe['height']}"]
    told += [f"q{recipe['quantize']}"] if recipe.get("quantize") else []
    told += [f"LoRA {', '.join(map(str, recipe['lora_paths']))}"] if recipe.get("lora_paths") else []
    return ", ".join([*told, f"seed {recipe['seed']}", f"mflux {version('mflux')}"])
