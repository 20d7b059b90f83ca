"""From recorded generations to a variant, to settings that suit it, and to the one that their pictures speak for."""

import datetime
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from mflux_teacache_plugin.calibration import fit
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure import results
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.methods.method import to_float
from mflux_teacache_plugin.variants import Provenance, Variant

#: What is said of a threshold that follows from the traces alone.
UNSEEN = "The threshold skips about a third of the steps of these traces; no picture was looked at."

#: Begins the source of a variant that keeps a published polynomial.
KEPT = "polynomial and threshold: "

#: The speed-ups that are tried beside thresholds, and the shares of the steps that further thresholds should skip.
SPEED_UPS, TRIED_SHARES = ("1.5x", "2x", "3x"), (0.25, 0.5)


def variant_of(facts: Mapping[str, Any], traces: Sequence[Trace], existing: Variant | None) -> Variant:
    """The variant that the traces give; nobody has looked at a picture yet.

    `facts` are the keys of a coefficient file besides numbers and provenance, `existing` is what served this model up to now.
    """
    source = f"mflux-teacache-plugin {version('mflux-teacache-plugin')}, mflux-teacache calibrate"
    published = "" if existing is None else existing.provenance.source.removeprefix(KEPT).partition("; profile: ")[0]
    if published.startswith("mflux-teacache-plugin "):
        existing = None  # an earlier calibration's: nothing is lost where it is fitted again
    keys, scores = fit.numbers(traces, existing)
    told = ", ".join(f"{name} {score.r2:.3f}" for name, score in scores.items())
    notes, judged = [f"R2 of the output's change, of prompts left out: {told}."], fit.PROFILE
    if existing is not None and "polynomial" in keys and keys["polynomial"] == existing.polynomial:
        source, judged = f"{KEPT}{published}; profile: {source}", fit.PUBLISHED
    elif "polynomial" in keys:
        judged, notes = fit.OWN, [*notes, UNSEEN]
    provenance = Provenance(
        source=source,
        recipe=f"{len(traces)} prompts, {traces[0].recipe}, mflux {traces[0].mflux}",
        date=datetime.date.today().isoformat(),
        r2=round(scores[judged].r2, 4),
        fitted=True,
        notes="\n".join(notes),
    )
    return Variant(**facts, **keys, provenance=provenance)


def settings(variant: Variant, traces: Sequence[Trace]) -> list[str]:
    """What to try, as `--teacache` takes it: thresholds around the variant's own, and speed-ups."""
    thresholds = set() if variant.threshold is None else {variant.threshold}
    if variant.polynomial is not None and variant.range is not None and traces[0].signal is not None:
        thresholds |= {fit.threshold_for(variant.polynomial, variant.range, traces, each) for each in TRIED_SHARES}
    return [*(f"{threshold:g}" for threshold in sorted(thresholds)), *SPEED_UPS]


def recommending(variant: Variant, rows: Sequence[Row], more: Sequence[str]) -> Variant:
    """The variant with what its pictures speak for as its default, and the reasons, with `more`, in its provenance."""
    changes: dict[str, Any] = {}
    notes = (variant.provenance.notes or "").splitlines()
    best, threshold = results.best(rows), results.best([row for row in rows if is_threshold(row.setting)])
    if threshold is not None:
        changes["threshold"] = float(threshold.setting)
        notes = [line for line in notes if line != UNSEEN]
    if best is not None and best is not threshold:
        changes["recommended"] = best.setting
    told = {**as_table(variant.provenance), "notes": "\n".join([*notes, *more])}
    return variant.replace(**changes, provenance=Provenance(**told))


def is_threshold(setting: str) -> bool:
    """Whether this is a number, as TeaCache's threshold is given."""
    with suppress(ArgumentTypeError):
        return bool(to_float(setting))
    return False
