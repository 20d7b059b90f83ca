"""What one looks at: grids of pictures with their differences, the frontier of speed and quality.

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
from mflux_teacache_plugin.measure.metrics import Similarity, pixels
from mflux_teacache_plugin.measure.results import Row, by_group
from mflux_teacache_plugin.methods import OFF

plt.switch_backend("Agg")  # files only: needs no display

#: Differences are shown on a scale that ends here, in grey levels of 255; larger ones look the same.
STRONGEST = 64

CACHED, PLAIN = "tab:blue", "tab:orange"  # of every chart


@dataclass(frozen=True)
class Tile:
    """A picture in a line: how it was made, and how near it is to the first of its line (None for that one)."""

    title: str
    file: Path
    computed: float
    seconds: float
    near: Similarity | None

    @property
    def cost(self) -> str:
        return f"{self.computed:.4g} steps computed, {self.seconds:.1f} s"

    @property
    def nearness(self) -> str:
        if self.near is None:
            return ""
        psnr = "the same" if np.isinf(self.near.psnr) else f"PSNR {self.near.psnr:.1f} dB"
        return f"SSIM {self.near.ssim:.3f}, {psnr}"

    @property
    def figures(self) -> str:
        return "; ".join(filter(None, (self.cost, self.nearness)))


def grid(lines: Sequence[tuple[str, Sequence[Tile]]], file: Path) -> None:
    """A line for each label: its first picture, then each other one with a heat map of its difference from the first."""
    columns = max(2 * len(tiles) - 1 for _, tiles in lines)
    size = (2.25 * columns + 0.3, 2.75 * len(lines))
    figure, axes = plt.subplots(len(lines), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    for line, (label, (first, *others)) in zip(axes, lines, strict=True):
        reference = pixels(first.file)
        line[0].set_ylabel("\n".join(textwrap.fill(part, 30) for part in label.splitlines()), fontsize=8)
        _show(line[0], reference, first.title, first.cost)
        for place, tile in enumerate(others):
            picture = pixels(tile.file)
            _show(line[2 * place + 1], picture, tile.title, tile.cost)
            difference = np.abs(picture.astype(int) - reference).mean(axis=2)
            heat = {"cmap": "inferno", "vmin": 0, "vmax": STRONGEST}
            _show(line[2 * place + 2], difference, "difference", tile.nearness, **heat)
    _save(figure, file)


def frontier(rows: Sequence[Row], file: Path) -> None:
    """PSNR over steps computed and over seconds, a line for each group: settings beside plain mflux with fewer steps."""
    groups = by_group(rows)
    size = (10, 3.4 * len(groups))
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharey="row", layout="constrained")
    for line, (group, (plain, *settings)) in zip(axes, groups.items(), strict=True):
        for axis, of in zip(line, ("computed", "seconds"), strict=True):
            rivals = [(row.fewer, row.fewer_quality) for row in settings]
            fewer = sorted({(getattr(cost, of), near.psnr) for cost, near in rivals if cost and near})
            axis.plot(*zip(*fewer, strict=True), "o-", color=PLAIN, label="plain, fewer steps")
            points = [(getattr(row.cost, of), row.quality.psnr, _name(row)) for row in settings if row.quality]
            _points(axis, points, "settings", CACHED)
            axis.axvline(getattr(plain.cost, of), color="grey", linestyle=":", label="plain, all steps")
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
        for group, of_group in by_group([row for row in rows if model in (row.group, row.whole)]).items():
            nears = [(row, row.whole_quality if row.whole else row.quality) for row in of_group]
            _points(axis, [(row.cost.seconds, near.psnr, _name(row)) for row, near in nears if near is not None], group)
        axis.set_title(f"against plain {model}", fontsize=8)
        axis.set(xlabel="seconds of the denoising loop", ylabel="PSNR, dB")
        axis.legend(fontsize=7)
    _save(figure, file)


def _name(row: Row) -> str:
    return "plain" if row.setting == OFF else row.setting


def _points(axis: Any, points: Sequence[tuple[float, float, str]], label: str, color: str | None = None) -> None:
    """Named points."""
    (dots,) = axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "D", label=label, color=color)
    for x, y, name in points:
        axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=dots.get_color())
    axis.grid(alpha=0.3)
    axis.margins(0.14)


def _show(axis: Any, picture: np.ndarray, title: str, caption: str, **how: Any) -> None:
    axis.imshow(picture, **how)
    axis.set_title(title, fontsize=8)
    axis.set_xlabel(caption, fontsize=7.5)


def _save(figure: Any, file: Path) -> None:
    """Aside, then renamed: `file` is whole or what it was."""
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    plt.close(figure)
    write(file, data.getvalue())
