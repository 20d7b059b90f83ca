"""From trace files of one model to its variant: the fit, and the facts that make a coefficient file of it."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.calibration import files, schedule
from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, PUBLISHED, Analysis, analyse
from mflux_teacache_plugin.calibration.traces import Trace, TraceError, TraceFile
from mflux_teacache_plugin.variants import Provenance, Variant

UNKNOWN_LICENCE = "unknown; see the model's own page"


@dataclass(frozen=True, eq=False)
class Result:
    """A variant that can be written, and what it rests on. `traces` all have their σ."""

    variant: Variant
    analysis: Analysis
    traces: tuple[Trace, ...]
    existing: Variant | None


def conclude(group: Sequence[TraceFile], existing: Variant | None, facts: Mapping[str, Any]) -> Result:
    """Fit the traces of one model.

    Args:
        group: the model's trace files.
        existing: the variant that served this model up to now, whose polynomial competes; None if there is none.
        facts: `id`, `adapter`, `models` and so on, before what the traces and the existing variant say.

    Raises:
        TraceError: the traces do not suffice, or do not say which model they are of.
    """
    recipe = group[0].recipe
    told = _facts(recipe, existing, facts)
    traces, rebuilt = with_sigma(group, told["models"][0], told["adapter"])
    analysis = analyse(traces, existing)
    keys = files.numbers(analysis, traces, existing)
    notes = [f"{rebuilt[0].upper()}{rebuilt[1:]}."] if rebuilt else []
    if why := _no_polynomial(group, told["adapter"]):
        keys = {"profile": keys["profile"]}
        notes.insert(0, f"No polynomial: {why}.")
    provenance = _provenance(group, analysis, existing, keys, notes)
    return Result(Variant(**{**told, **keys, "provenance": provenance}), analysis, traces, existing)


def with_sigma(group: Sequence[TraceFile], model: str, adapter: str) -> tuple[tuple[Trace, ...], str]:
    """All traces with their σ, and how it was found where it was not recorded (empty if it was)."""
    traces: list[Trace] = []
    rebuilt = ""
    for file in group:
        missing = [trace for trace in file.traces if trace.sigma is None]
        if missing:
            width, height = file.recipe.get("width"), file.recipe.get("height")
            if not (isinstance(width, int) and isinstance(height, int)):
                hint = "record it again with mflux-teacache calibrate"
                raise TraceError(f"{file.path}: neither sigma nor width and height are there", hint=hint)
            sigma = schedule.sigmas(model, adapter, len(missing[0].output) + 1, width, height)
            rebuilt = f"sigma was not recorded: it is that of mflux {version('mflux')} for {model} at this size"
        traces += [trace if trace.sigma is not None else replace(trace, sigma=sigma) for trace in file.traces]
    return tuple(traces), rebuilt


def _no_polynomial(group: Sequence[TraceFile], adapter: str) -> str:
    """Why a polynomial that was fitted to these traces would be of no use; empty if it would."""
    if group[0].foreign:
        return f"these traces' signal is the {group[0].foreign}, which no gate here reads"
    known = choose.registry().adapters.get(adapter)
    return "this family's signal is not tapped yet" if known is not None and known.taps is None else ""


def _facts(recipe: Mapping[str, Any], existing: Variant | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says besides its numbers: from `facts`, else the traces, else the existing variant of that id."""
    told: dict[str, Any] = {"id": recipe["variant"]}
    same = existing if existing is not None and existing.id == (facts.get("id") or recipe["variant"]) else None
    for key in ("adapter", "models", "related", "distilled", "weights_licence", "guard"):
        sources = (facts.get(key), recipe.get(key), getattr(same, key, None))
        found = next((value for value in sources if value), None)
        if found is not None:
            told[key] = tuple(found) if isinstance(found, list) else found
    if facts.get("id"):
        told["id"] = facts["id"]
    for key, option in (("adapter", "--adapter ID"), ("models", "--model NAME")):
        if key not in told:
            raise TraceError(
                f"{recipe['variant']}: neither the traces nor a coefficient file of that id say {key}",
                hint=f"add {option}; mflux-teacache variants lists what there is",
            )
    if "weights_licence" not in told:
        told["weights_licence"] = existing.weights_licence if existing is not None else UNKNOWN_LICENCE
    return told


def _provenance(
    group: Sequence[TraceFile],
    analysis: Analysis,
    existing: Variant | None,
    keys: Mapping[str, Any],
    more: Sequence[str],
) -> Provenance:
    recipe = group[0].recipe
    source = str(recipe.get("source") or f"mflux-teacache fit {version('mflux-teacache-plugin')}")
    notes = [files.verdict(analysis)]
    judged = PROFILE
    if "polynomial" in keys:
        kept = existing is not None and keys["polynomial"] == existing.polynomial
        judged = PUBLISHED if kept else OWN
        if kept and existing is not None:
            source = f"polynomial and threshold: {existing.provenance.source}; profile: {source}"
        else:
            notes.append(files.UNSEEN)
    if analysis.guided:
        notes.append("The profile is of the guided prediction.")
    score = analysis.scores.get(judged)
    return Provenance(
        source=source,
        recipe=recipe_text(recipe, analysis),
        date=datetime.date.today().isoformat(),
        r2=None if score is None else round(score.r2, 4),
        fitted=True,
        notes="\n".join([*notes, *more]),
    )


def recipe_text(recipe: Mapping[str, Any], analysis: Analysis) -> str:
    """`10 prompts, 50 steps, guidance 4, 512x512, q4, seed 42`, as far as the traces say so."""
    told = [f"{analysis.prompts} prompts"]
    if analysis.generations != analysis.prompts:
        told[0] += f", {analysis.generations} generations"
    for key, text in (("steps", "{} steps"), ("guidance", "guidance {:g}")):
        if isinstance(recipe.get(key), (int, float)):
            told.append(text.format(recipe[key]))
    if recipe.get("width") and recipe.get("height"):
        told.append(f"{recipe['width']}x{recipe['height']}")
    if recipe.get("quantize"):
        told.append(f"q{recipe['quantize']}")
    told += [f"LoRA {', '.join(map(str, recipe['lora_paths']))}"] if recipe.get("lora_paths") else []
    told += [f"seed {recipe['seed']}"] if isinstance(recipe.get("seed"), int) else []
    told += [f"mflux {recipe['mflux']}"] if recipe.get("mflux") else []
    return ", ".join(told)
