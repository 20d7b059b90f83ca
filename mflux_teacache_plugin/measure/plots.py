"""What one looks at: grids of pictures with their differences, bar charts, the frontier of speed and quality.

Imported where something is drawn: matplotlib takes its time.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from mflux_teacache_plugin.measure.files import write
from mflux_teacache_plugin.measure.metrics import SAME_PSNR, Similarity, pixels
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.methods import OFF

plt.switch_backend("Agg")  # files only: needs no display

#: Differences are shown on a scale that ends here, in grey levels of 255; larger ones look the same.
STRONGEST = 64

CACHED, PLAIN = "tab:blue", "tab:orange"  # of every chart


@dataclass(frozen=True)
class Tile:
    """A picture in a grid: how it was made, and how near it is to the first of its line (None for that one)."""

    title: str
    file: Path
    computed: float
    seconds: float
    near: Similarity | None

    @property
    def cost(self) -> str:
        return f"{self.computed:.4g} steps computed, {self.seconds:.1f} s"

    @property
    def psnr(self) -> float:
        return np.inf if self.near is None else self.near.psnr

    @property
    def nearness(self) -> str:
        if self.near is None:
            return ""
        psnr = "the same" if np.isinf(self.psnr) else f"PSNR {self.psnr:.1f} dB"
        return f"SSIM {self.near.ssim:.3f}, {psnr}"

    @property
    def figures(self) -> str:
        return "; ".join(filter(None, (self.cost, self.nearness)))


def grid(lines: Sequence[tuple[str, Sequence[Tile]]], file: Path) -> None:
    """A line for each label: its first picture, then each other one with a heat map of its difference from the first."""
    columns = max(2 * len(tiles) - 1 for _, tiles in lines)
    figure, axes = plt.subplots(
        len(lines), columns, figsize=(2.25 * columns + 0.3, 2.75 * len(lines)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    for line, (label, (first, *others)) in zip(axes, lines, strict=True):
        reference = pixels(first.file)
        line[0].set_ylabel(_wrapped(label, 30), fontsize=8)
        _show(line[0], reference, first.title, first.cost)
        for place, tile in enumerate(others):
            picture = pixels(tile.file)
            _show(line[2 * place + 1], picture, tile.title, tile.cost)
            difference = np.abs(picture.astype(int) - reference).mean(axis=2)
            heat = {"cmap": "inferno", "vmin": 0, "vmax": STRONGEST}
            _show(line[2 * place + 2], difference, "difference", tile.nearness, **heat)
    _save(figure, file)


def bars(rows: Sequence[Row], file: Path) -> None:
    """Seconds of each setting and of plain mflux with as many steps, a chart for each group."""
    groups = list(dict.fromkeys(row.group for row in rows))
    heights = [sum(row.group == group for row in rows) for group in groups]
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(8, 0.9 * len(groups) + 0.55 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        of_group = [row for row in rows if row.group == group]
        for place, row in enumerate(of_group):
            _bar(axis, place - 0.2 * (row.fewer is not None), row.cost.seconds, row.speedup, CACHED)
            if row.fewer is not None:
                speedup = of_group[0].cost.seconds / max(row.fewer.seconds, 1e-9)
                _bar(axis, place + 0.2, row.fewer.seconds, speedup, PLAIN)
        axis.set_yticks(range(len(of_group)), ["plain" if row.setting == OFF else row.setting for row in of_group])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(group, fontsize=9, loc="left")
        axis.set_xlabel("seconds of the denoising loop", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (CACHED, PLAIN)]
    figure.legend(handles, ["setting", "plain, as many steps"], fontsize=8, loc="outside upper right", ncols=2)
    _save(figure, file)


def frontier(rows: Sequence[Row], file: Path) -> None:
    """PSNR over steps computed and over seconds, a line for each group: settings beside plain mflux with fewer steps."""
    groups = list(dict.fromkeys(row.group for row in rows))
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(10, 3.4 * len(groups)), squeeze=False, sharey="row", layout="constrained"
    )
    for line, group in zip(axes, groups, strict=True):
        of_group = [row for row in rows if row.group == group]
        settings = [row for row in of_group if row.quality is not None]
        for axis, of in zip(line, ("computed", "seconds"), strict=True):
            fewer = sorted(
                {
                    (getattr(row.fewer, of), row.fewer_quality.psnr)
                    for row in settings
                    if row.fewer and row.fewer_quality
                }
            )
            axis.plot(*zip(*fewer, strict=True), "o-", color=PLAIN, label="plain, fewer steps")
            points = [(getattr(row.cost, of), row.quality.psnr, row.setting) for row in settings if row.quality]
            axis.plot(*zip(*(point[:2] for point in points), strict=True), "D", color=CACHED, label="settings")
            for x, y, name in points:
                axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=CACHED)
            axis.axvline(getattr(of_group[0].cost, of), color="grey", linestyle=":", label="plain, all steps")
            axis.grid(alpha=0.3)
            axis.margins(0.12)
        line[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        line[0].set(xlabel="steps computed", ylabel="PSNR against all steps, dB")
        line[1].set(xlabel="seconds of the denoising loop")
        line[0].set_title(group, fontsize=9, loc="left")
    axes[0][0].legend(fontsize=8, loc="lower right")
    _save(figure, file)


def sizes(rows: Sequence[Row], file: Path) -> None:
    """Quantizations of one model and their settings in one chart: PSNR against the plain pictures of the first of them."""
    models = list(dict.fromkeys(row.whole for row in rows if row.whole))
    figure, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 4), squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        of_model = [row for row in rows if model in (row.group, row.whole)]
        for group in dict.fromkeys(row.group for row in of_model):
            points = [(row, row.whole_quality if row.whole else row.quality) for row in of_model if row.group == group]
            known = [(row.cost.seconds, quality.psnr, row.setting) for row, quality in points if quality is not None]
            (dots,) = axis.plot(*zip(*(point[:2] for point in known), strict=True), "D", label=group)
            for x, y, setting in known:
                name = "plain" if setting == OFF else setting
                axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=dots.get_color())
        axis.set_title(f"against plain {model}", fontsize=8)
        axis.set(xlabel="seconds of the denoising loop", ylabel="PSNR, dB")
        axis.grid(alpha=0.3)
        axis.margins(0.15)
        axis.legend(fontsize=7)
    _save(figure, file)


def nearness(labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], file: Path) -> None:
    """PSNRs in dB: a group of bars for each label, one of each of `series` in it."""
    figure, axis = plt.subplots(figsize=(8, 1 + 0.5 * len(labels)), layout="constrained")
    places, width = np.arange(len(labels)), 0.8 / len(series)
    for index, (name, psnrs) in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * width
        axis.barh(places + shift, np.minimum(psnrs, SAME_PSNR), height=0.95 * width, label=name)
    axis.set_yticks(places, [_wrapped(label, 40) for label in labels], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("PSNR against all steps, dB (higher is nearer)")
    axis.legend(fontsize=8)
    _save(figure, file)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def _show(axis: Any, picture: np.ndarray, title: str, caption: str, **how: Any) -> None:
    axis.imshow(picture, **how)
    axis.set_title(title, fontsize=8)
    axis.set_xlabel(caption, fontsize=7.5)


def _bar(axis: Any, place: float, seconds: float, speedup: float, color: str) -> None:
    bar = axis.barh([place], [seconds], height=0.38, color=color)
    axis.bar_label(bar, [f"{seconds:.2f} s, {speedup:.2f}x"], padding=3, fontsize=7)


def _save(figure: Any, file: Path) -> None:
    """Aside, then renamed: `file` is whole or what it was."""
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    plt.close(figure)
    write(file, data.getvalue())
