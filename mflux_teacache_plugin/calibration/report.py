"""What one looks at after a calibration: a plot, and a page of HTML that needs nothing else.

Imported where something is drawn: matplotlib takes its time.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from mflux_teacache_plugin.calibration import fit
from mflux_teacache_plugin.calibration.analysis import PUBLISHED, Analysis
from mflux_teacache_plugin.calibration.sweep import Choice, Summary
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.variants import Variant

plt.switch_backend("Agg")  # files only: needs no display

#: Longest side of a picture in the page, in pixels.
LONGEST = 512


@dataclass(frozen=True, eq=False)
class Contents:
    """What a report shows. `summaries` and `choice` are empty where nothing was swept, `pictures` are (caption, file)."""

    variant: Variant
    analysis: Analysis
    traces: Sequence[Trace]
    existing: Variant | None
    text: str
    command: str = ""
    summaries: Sequence[Summary] = ()
    choice: Choice | None = None
    target: float = 0.0
    pictures: Sequence[tuple[str, Sequence[tuple[str, Path]]]] = ()


def plot(contents: Contents) -> bytes:
    """A PNG: the changes step by step, the signal against the output, the profile, and the sweep."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _steps(axes[0][0], contents)
    _profile(axes[0][1], contents)
    _signal(axes[1][0], contents)
    _sweep(axes[1][1], contents)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    plt.close(figure)
    return data.getvalue()


def _steps(axis: Any, contents: Contents) -> None:
    for trace in contents.traces:
        axis.plot(_sigma(trace)[1:], trace.moved, color="tab:blue", alpha=0.3, linewidth=1)
    sigma = _sigma(max(contents.traces, key=lambda trace: len(trace.output)))
    axis.plot(sigma[1:], contents.analysis.profile(sigma), color="black", label="profile")
    axis.invert_xaxis()
    axis.set(
        title="Change of the prediction, step by step",
        xlabel="σ (noise → picture)",
        ylabel="relative L1 change",
        ylim=0,
    )
    axis.legend(fontsize=8)


def _signal(axis: Any, contents: Contents) -> None:
    seen = [(trace, trace.signal) for trace in contents.traces if trace.signal is not None]
    axis.set(
        title="What the signal says of the output", xlabel="relative L1 change of the signal", ylabel="of the output"
    )
    if not seen:
        axis.text(0.5, 0.5, "no signal was recorded", ha="center", transform=axis.transAxes)
        return
    signal = np.concatenate([signal[:-1] for _, signal in seen])
    output = np.concatenate([trace.output[:-1] for trace, _ in seen])
    sigma = np.concatenate([_sigma(trace)[1:-1] for trace, _ in seen])
    points = axis.scatter(signal, output, c=sigma, s=9, cmap="viridis")
    axis.figure.colorbar(points, ax=axis, label="σ")
    at = np.linspace(signal.min(), signal.max(), 200)
    if contents.analysis.polynomial is not None:
        axis.plot(at, contents.analysis.polynomial(at), color="tab:red", label="own polynomial")
    if (
        PUBLISHED in contents.analysis.scores
        and contents.existing is not None
        and contents.existing.polynomial is not None
    ):
        published = fit.foretell(contents.existing.polynomial, contents.existing.range, at)
        axis.plot(at, published, color="tab:orange", linestyle="--", label="polynomial there was")
    axis.set_ylim(0, 1.1 * output.max())
    axis.legend(fontsize=8)


def _profile(axis: Any, contents: Contents) -> None:
    profile = contents.analysis.profile
    axis.plot(profile.sigma, profile.change, "k.-", markersize=4)
    axis.invert_xaxis()
    axis.set(
        title="Profile: the change adds up", xlabel="σ (noise → picture)", ylabel="accumulated relative change", ylim=0
    )


def _sweep(axis: Any, contents: Contents) -> None:
    summaries = contents.summaries
    axis.set(title="Settings on unseen prompts", xlabel="steps computed", ylabel="PSNR against all steps, dB")
    if not summaries:
        axis.text(0.5, 0.5, "none were tried", ha="center", transform=axis.transAxes)
        return
    for name, color, label in (("fewer_psnr", "tab:orange", "plain, as many steps"), ("psnr", "tab:blue", "setting")):
        line = "o-" if name == "fewer_psnr" else "D"
        axis.plot(
            [s.computed for s in summaries], [getattr(s, name) for s in summaries], line, color=color, label=label
        )
    for summary in summaries:
        at = (summary.computed, summary.psnr)
        axis.annotate(summary.setting, at, (4, 4), textcoords="offset points", fontsize=7)
    if contents.choice is not None and (chosen := contents.choice.summary) is not None:
        axis.plot(
            [chosen.computed], [chosen.psnr], "o", markersize=14, fillstyle="none", color="tab:red", label="chosen"
        )
    axis.margins(0.12)
    axis.legend(fontsize=8)


def html(contents: Contents, chart: bytes) -> str:
    """The page's text; `chart` is what `plot` made."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    pictures = [
        (heading, [(caption, _inlined(file)) for caption, file in line if file.exists()])
        for heading, line in contents.pictures
    ]
    chart_data = f"data:image/png;base64,{base64.b64encode(chart).decode()}"
    return template.render(contents=contents, chart=chart_data, pictures=pictures)


def _inlined(file: Path) -> str:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
        small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _sigma(trace: Trace) -> np.ndarray:
    assert trace.sigma is not None
    return trace.sigma
