"""What was recorded and what was fitted to it, as one picture. Imported where it is drawn: matplotlib takes its time."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from mflux_teacache_plugin.calibration import fit
from mflux_teacache_plugin.calibration.analysis import PUBLISHED, Analysis
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.measure import files
from mflux_teacache_plugin.variants import Variant

plt.switch_backend("Agg")  # files only: needs no display

SIGMA = "σ (noise → picture)"


def draw(analysis: Analysis, traces: Sequence[Trace], existing: Variant | None, file: Path) -> None:
    """Write a PNG: the changes step by step, the profile, the signal against the output."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    _steps(axes[0], analysis, traces)
    axes[1].plot(analysis.profile.sigma, analysis.profile.change, "k.-", markersize=4)
    axes[1].set(title="Profile: the change adds up", xlabel=SIGMA, ylabel="accumulated relative change", ylim=0)
    for axis in axes[:2]:
        axis.invert_xaxis()
    _signal(axes[2], analysis, traces, existing)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    plt.close(figure)
    files.write(file, data.getvalue())


def _steps(axis: Any, analysis: Analysis, traces: Sequence[Trace]) -> None:
    for trace in traces:
        axis.plot(trace.sigma[1:], trace.moved, color="tab:blue", alpha=0.3, linewidth=1)
    sigma = max(traces, key=lambda trace: len(trace.output)).sigma
    axis.plot(sigma[1:], fit.changes_at(analysis.profile, sigma), color="black", label="profile")
    axis.set(title="Change of the prediction, step by step", xlabel=SIGMA, ylabel="relative L1 change", ylim=0)
    axis.legend(fontsize=8)


def _signal(axis: Any, analysis: Analysis, traces: Sequence[Trace], existing: Variant | None) -> None:
    axis.set(
        title="What the signal says of the output", xlabel="relative L1 change of the signal", ylabel="of the output"
    )
    seen = [(trace.signal[:-1], trace.output[:-1], trace.sigma[1:-1]) for trace in traces if trace.signal is not None]
    if not seen:
        axis.text(0.5, 0.5, "no signal was recorded", ha="center", transform=axis.transAxes)
        return
    signal, output, sigma = (np.concatenate(each) for each in zip(*seen, strict=True))
    points = axis.scatter(signal, output, c=sigma, s=9, cmap="viridis")
    axis.figure.colorbar(points, ax=axis, label="σ")
    at = np.linspace(signal.min(), signal.max(), 200)
    if analysis.polynomial is not None:
        axis.plot(at, analysis.polynomial(at), color="tab:red", label="own polynomial")
    if PUBLISHED in analysis.scores and existing is not None and existing.polynomial is not None:
        published = fit.predict(existing.polynomial, existing.range, at)
        axis.plot(at, published, color="tab:orange", linestyle="--", label="polynomial there was")
    axis.set_ylim(0, 1.1 * output.max())
    axis.legend(fontsize=8)
