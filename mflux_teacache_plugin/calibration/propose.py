"""From recorded generations to a variant, to schedules and settings to try, and to what their pictures speak for."""

import datetime
import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.calibration import fit, schedules
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.checks import parse_steps
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import results
from mflux_teacache_plugin.measure.metrics import Summary
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.methods import published, speedup
from mflux_teacache_plugin.methods.steps import as_text
from mflux_teacache_plugin.variants import Provenance, Variant
from mflux_teacache_plugin.variants.variant import StepList

#: What is said of a threshold that follows from the traces alone.
UNSEEN = "The threshold skips about a third of the steps of these traces; no picture was looked at."

#: Begins the source of a variant that keeps a published polynomial.
KEPT = "polynomial and threshold: "

#: The speed-ups that schedules are sought for, and the shares of the steps that further thresholds should skip.
SPEED_UPS, TRIED_SHARES = ("1.33x", "1.5x", "2x", "3x", "4x"), (0.25, 0.5)

#: How many ways to each speed-up are tried on the first prompts, and how many of them on the others: the first pair that the
#: time suffices for.
DEPTHS = ((10, 3), (6, 3), (4, 2), (2, 2), (1, 1))

#: Names what is in the file already; it is tried on every prompt.
EARLIER = "earlier"

#: Names what the pictures themselves led to.
CLIMBED = "moved"

#: A schedule replaces the one that follows from the profile where its pictures are so many dB nearer.
WORTH = 1.0


def variant_of(facts: Mapping[str, Any], traces: Sequence[Trace], existing: Variant | None) -> Variant:
    """The variant that the traces give; nobody has looked at a picture yet.

    `facts` are the keys of a coefficient file besides numbers and provenance, `existing` is what served this model up to now.
    """
    source = f"mflux-teacache-plugin {version('mflux-teacache-plugin')}, mflux-teacache calibrate"
    recipe = f"{len(traces)} prompts, {traces[0].recipe}, mflux {traces[0].mflux}"
    published = "" if existing is None else existing.provenance.source.removeprefix(KEPT).partition("; profile: ")[0]
    earlier, said = tuple[StepList, ...](), list[str]()
    if existing is not None and published.startswith("mflux-teacache-plugin "):
        # an earlier calibration's: its lists stay, and its numbers where more steps told them; else these are fitted again
        earlier = tuple(each for each in existing.step_lists if each.guidance is not None)
        theirs = existing.provenance
        if existing.id == facts["id"] and existing.profile and len(existing.profile.sigma) >= len(traces[0].sigma):
            recipe = "; then ".join(dict.fromkeys([*(theirs.recipe or "unknown").split("; then "), recipe]))
            said = [line for line in (theirs.notes or "").splitlines() if line.startswith("At ")]
            if len(existing.profile.sigma) > len(traces[0].sigma):
                return existing.replace(provenance=replace(theirs, recipe=recipe))
        existing = None
    keys, scores = fit.numbers(traces, existing)
    growths = [trace.growth for trace in traces if trace.growth]
    if len(growths) == len(traces):
        keys["mag_ratios"] = (1.0, *np.array(growths).mean(axis=0).round(5).tolist())
    told = ", ".join(f"{name} {score.r2:.3f}" for name, score in scores.items())
    notes, judged = [f"R2 of the output's change, of prompts left out: {told}."], fit.PROFILE
    if existing is not None and "polynomial" in keys and keys["polynomial"] == existing.polynomial:
        source, judged = f"{KEPT}{published}; profile: {source}", fit.PUBLISHED
    elif "polynomial" in keys:
        judged, notes = fit.OWN, [*notes, UNSEEN]
    provenance = Provenance(
        source=source,
        recipe=recipe,
        date=datetime.date.today().isoformat(),
        r2=round(scores[judged].r2, 4),
        fitted=True,
        notes="\n".join([*notes, *said]),
    )
    return Variant(**facts, **keys, step_lists=earlier, provenance=provenance)


def settings(variant: Variant, traces: Sequence[Trace], schedules: bool) -> list[str]:
    """What to try, as `--teacache` takes it: thresholds around the variant's own and, unless `schedules` are sought for them,
    speed-ups.
    """
    found = set() if variant.threshold is None else {variant.threshold}
    if variant.polynomial is not None and variant.range is not None and traces[0].signal is not None:
        found |= {fit.threshold_for(variant.polynomial, variant.range, traces, each) for each in TRIED_SHARES}
    return [*(f"{threshold:g}" for threshold in sorted(found)), *(() if schedules else SPEED_UPS)]


def ways(variant: Variant, existing: Variant | None, traces: Sequence[Trace], guidance: float) -> dict[str, Any]:
    """Ways to each speed-up at this guidance, `{"2x": {"2x profile linear": "steps:0-3,5", ...}}`: a name for each setting.

    The first is what the profile alone gives, then comes what an earlier calibration chose, at any guidance; the others come in
    the order of the error that the recorded predictions let expect, as it is and as pictures amplify it. `existing` may have lists
    that others published for the model, and an earlier calibration's.
    """
    there = existing.step_lists if existing else ()
    lists = [each for each in there if each.guidance is None]
    variant = variant.replace(step_lists=())
    sigma, steps, found = traces[0].sigma, len(traces[0].sigma), {}
    facts = Facts(sigma, guidance=guidance)
    grams = [schedules.gram_at(trace, guidance) for trace in traces if trace.gram is not None]
    weightings = {"optimum": np.ones(steps), "weighted optimum": schedules.amplification(steps)} if grams else {}
    costs = {
        (told, forecast): schedules.errors(sum(grams[1:], grams[0]), sigma, ORDERS[forecast], weights)
        for told, weights in weightings.items()
        for forecast in ("linear", "reuse")
    }
    for setting in SPEED_UPS:
        known: dict[str, tuple[float, str]] = {}  # by what --teacache takes: the expected error, and its name
        with suppress(SettingsError):  # the run is too short for it
            for forecast in ("linear", "reuse"):
                method = speedup.parse(setting).with_forecast(forecast)
                method.check_steps(steps)
                count = method.count(facts)
                placed = {"profile": method.schedule(variant, facts)}
                for each in there:  # before what may be the same list, for these are tried on every prompt
                    if each.guidance and (each.steps, each.forecast, len(each.computed)) == (steps, forecast, count):
                        placed[f"{EARLIER} at guidance {each.guidance:g}"] = each.computed
                placed |= {told: schedules.optimum(costs[told, forecast], count) for told in weightings}
                placed["published"] = published.schedule(lists, facts, count)
                placed["even"] = published.nearest(range(steps), np.arange(steps), count)
                for told, computed in placed.items():
                    errors = [schedules.error_of(costs[each, forecast], computed) for each in weightings]
                    text = str(methods.parse(f"steps:{as_text(computed)}+{forecast}"))
                    known.setdefault(text, (float(np.log(errors).sum()), f"{setting} {told} {forecast}"))
        if known:
            usual, *others = known
            ranked = (usual, *sorted(others, key=lambda text: (EARLIER not in known[text][1], known[text][0])))
            found[setting] = {known[text][1]: text for text in ranked}
    return found


def first_round(pictures: int) -> int:
    """Of so many prompts these many, on which more ways are tried than on the others."""
    return max(1, pictures // 4)


def depth(sigma: Sequence[float], pictures: int, seconds: float, minutes: float) -> tuple[tuple[int, int], float]:
    """One of `DEPTHS`, for half of the time, and how many steps may be computed in what is left, for each speed-up; `seconds` are
    a step's.
    """
    counts, steps = [speedup.parse(each).count(Facts(tuple(sigma))) for each in SPEED_UPS], len(sigma)
    begin = first_round(pictures)
    for first, others in DEPTHS:
        work = pictures * (steps + sum(counts)) + (first * begin + others * (pictures - begin)) * sum(counts)
        if work * seconds <= 30 * minutes:
            break
    return (first, others), (60 * minutes / max(seconds, 1e-9) - work) / len(SPEED_UPS)


def nearest(rows: Sequence[Row], names: Container[str]) -> list[Row]:
    """The rows of these names, those with the nearest pictures first."""
    return sorted((row for row in rows if row.setting in names), key=lambda row: -nearness(row.quality))


def nearness(quality: Summary | None) -> float:
    """In dB, half for the mean and half for the worst picture."""
    return 0.0 if quality is None else (quality.psnr + quality.psnr_worst) / 2


def step_lists(
    rows: Sequence[Row], tried: Mapping[str, Mapping[str, str]], steps: int, guidance: float
) -> tuple[list[StepList], list[Row], bool]:
    """What the pictures chose for each speed-up at one guidance, in lists and rows, and whether the profile alone would not do as
    well.
    """
    found, chosen_rows, needed, most = [], [], False, max((row.pictures for row in rows if row.quality), default=0)
    for names in tried.values():
        best, *_ = ranked = nearest([row for row in rows if row.pictures == most], names)
        usual = next(row for row in ranked if row.setting == next(iter(names)))
        if nearness(best.quality) < nearness(usual.quality) + WORTH:
            best = usual
        plain = nearness(best.fewer_quality) >= nearness(best.quality)
        needed = needed or best is not usual or plain
        way, near, fewer = methods.parse(names[best.setting]), best.quality, best.fewer_quality
        assert not isinstance(way, str) and near is not None and fewer is not None
        computed = parse_steps(way.setting.partition(":")[2])
        told = f"{best.setting.partition(' ')[2]}: {near.psnr:.1f} ({near.psnr_worst:.1f}) dB on {most} picture{'s' * (most > 1)}, "
        told += f"plain with as many steps {fewer.psnr:.1f} ({fewer.psnr_worst:.1f})"
        chosen = StepList(steps=steps, computed=computed, guidance=guidance, forecast=way.forecast, source=told)
        found.append(replace(chosen, plain_is_nearer=plain))
        chosen_rows.append(best)
    return found, chosen_rows, needed


def recommending(
    variant: Variant,
    rows: Sequence[Row],
    more: Sequence[str],
    lists: Sequence[StepList] = (),
    tried: Container[tuple[int, float | None]] = (),
) -> Variant:
    """The variant with what its pictures speak for as its default, and the reasons, with `more`, in its provenance.

    The default is the fastest that is good in every group of `rows`. `lists` replace those that the variant has for the steps and
    guidance that were `tried`.
    """
    changes: dict[str, Any] = {
        "step_lists": (*(each for each in variant.step_lists if (each.steps, each.guidance) not in tried), *lists)
    }
    notes = (variant.provenance.notes or "").splitlines()
    groups = results.by_group(rows).values()
    # a name begins with what --teacache takes
    speeds = [{row.setting.partition(" ")[0]: row.speedup for row in results.good(of_group)} for of_group in groups]
    fastest = sorted(
        set.intersection(*map(set, speeds)) if speeds else (), key=lambda word: min(each[word] for each in speeds)
    )
    threshold = next((word for word in reversed(fastest) if re.fullmatch(r"[\d.e-]+", word)), None)
    if threshold is not None:
        changes["threshold"] = float(threshold)
        notes = [line for line in notes if line != UNSEEN]
    if fastest:
        changes["recommended"] = None if fastest[-1] == threshold else fastest[-1]
    again = tuple(f"{line.partition(':')[0]}:" for line in more)  # said anew of the same steps and guidance
    notes = [line for line in notes if not line.startswith(again)] if more else notes
    return variant.replace(**changes, provenance=replace(variant.provenance, notes="\n".join([*notes, *more])))
