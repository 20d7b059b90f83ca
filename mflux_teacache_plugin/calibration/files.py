"""From an analysis to a coefficient file, written as one would write it by hand."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.calibration.analysis import OWN, PUBLISHED, Analysis
from mflux_teacache_plugin.calibration.traces import Trace, write_text
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.teacache import TeaCacheGate
from mflux_teacache_plugin.variants.variant import SCHEMA, Profile, Variant

#: Without pictures to judge by, a threshold is one that skips about this share of the steps.
SKIPPED_SHARE = 1 / 3


#: Long arrays of numbers are folded at this width.
WIDTH = 110

#: What is said of a threshold that follows from the traces alone.
UNSEEN = "The threshold skips about a third of the steps of these traces; no picture was looked at."


def numbers(analysis: Analysis, traces: Sequence[Trace], published: Variant | None) -> dict[str, Any]:
    """The keys `polynomial`, `range`, `threshold` and `profile` of a coefficient file.

    The published polynomial stays, with the threshold that was chosen for it, where it foretells no worse than ours.
    """
    profile = analysis.profile
    keys: dict[str, Any] = {
        "profile": Profile(
            sigma=tuple(round(float(sigma), 5) for sigma in profile.sigma),
            change=tuple(round(float(change), 4) for change in profile.change),
        )
    }
    if published is not None and analysis.keeps_published:
        kept = ("polynomial", "range", "threshold")
        return {**{key: getattr(published, key) for key in kept if getattr(published, key) is not None}, **keys}
    if analysis.polynomial is None:
        return keys
    polynomial, span = analysis.polynomial.coefficients, analysis.polynomial.span
    threshold = threshold_for(polynomial, span, traces)
    return {"polynomial": polynomial, "range": span, "threshold": threshold, **keys}


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


def verdict(analysis: Analysis) -> str:
    """In one sentence, what foretells the output's change better, and how it was judged."""
    told = ", ".join(f"{name} {score.r2:.3f} ({score.rmse:.3f})" for name, score in analysis.scores.items())
    own = "" if PUBLISHED not in analysis.scores else "; the published polynomial as it is"
    few = (
        ""
        if OWN in analysis.scores or analysis.polynomial is None
        else "; two prompts are too few to judge a polynomial"
    )
    return (
        f"The {analysis.best} foretells the change of the output best. R2 (root mean square error) on {analysis.pairs} "
        f"steps of {analysis.prompts} prompts, each left out of its fit{own}{few}: {told}."
    )


def write(variant: Variant, folder: Path, comment: str, force: bool = False) -> Path:
    """Write `<id>.toml` into `folder`.

    Raises:
        SettingsError: the file is there already, and `force` was not given.
        TraceError: it cannot be written.
    """
    path = check_free(folder, variant.id, force)
    write_text(path, render(variant, comment))
    return path


def check_free(folder: Path, id: str, force: bool) -> Path:
    """Where a variant's file goes. Raises SettingsError if one is there and `force` was not given."""
    path = folder / f"{id}.toml"
    if path.exists() and not force:
        raise SettingsError(
            f"{path} is there already", hint="--force overwrites it, --output FOLDER or --id NAME writes another"
        )
    return path


def render(variant: Variant, comment: str) -> str:
    """A coefficient file's text; `comment` goes on top."""
    table = as_table(variant)
    tables = {key: table.pop(key) for key in ("profile", "provenance") if table.get(key) is not None}
    lists = table.pop("step_lists", ())
    lines = [*(f"# {line}".rstrip() for line in comment.splitlines()), "", f"schema = {SCHEMA}"]
    plain = {key: value for key, value in table.items() if value not in ((), False) and not _is_default(variant, key)}
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        lines += ["", f"[{key}]", *(f"{name} = {_toml(each)}" for name, each in as_table(value).items())]
    for published in lists:
        lines += ["", "[[step_lists]]", *(f"{name} = {_toml(each)}" for name, each in as_table(published).items())]
    return "\n".join(lines) + "\n"


def _is_default(variant: Variant, key: str) -> bool:
    return key == "guard" and variant.guard == type(variant.guard)()


def _toml(value: Any) -> str:
    """A value in TOML. Strings are JSON's, which TOML reads, but for a text of several lines."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return '"""\n' + quoted[1:-1].replace("\\n", "\n") + '"""' if "\n" in value and '\\"' not in quoted else quoted
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_toml(each) for each in value)
        if len(inside) > WIDTH and all(isinstance(each, (int, float)) for each in value):
            return f"[\n{textwrap.indent(textwrap.fill(inside, WIDTH), '    ')},\n]"
        return f"[{inside}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    return repr(value) if isinstance(value, (int, float)) else _toml(as_table(value))
