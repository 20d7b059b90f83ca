"""Pictures of a comparison. Imported where one is drawn: matplotlib takes its time."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

plt.switch_backend("Agg")  # files only: needs no display

DIFFERENCE_GAIN = 4  #: differences are shown so many times as strong


def comparison(runs: list[Any], file: Path) -> None:
    """A row per prompt: plain, TeaCache, its difference, plain with fewer steps, its difference. `runs` come in threes."""
    rows = [runs[i : i + 3] for i in range(0, len(runs), 3)]
    figure, axes = plt.subplots(len(rows), 5, figsize=(11, 2.5 * len(rows)), squeeze=False, layout="constrained")
    for line, (plain, *others) in zip(axes, rows, strict=True):
        reference = _pixels(plain.file)
        line[0].imshow(reference)
        line[0].set_ylabel(_wrap(plain.prompt), fontsize=8)
        line[0].set_title(f"{plain.computed} steps, {plain.seconds:.1f} s", fontsize=8)
        for column, run in zip((1, 3), others, strict=True):
            pixels = _pixels(run.file)
            line[column].imshow(pixels)
            line[column].set_title(f"{run.way}\n{run.computed} computed, {run.seconds:.1f} s", fontsize=8)
            difference = np.abs(pixels.astype(int) - reference) * DIFFERENCE_GAIN
            line[column + 1].imshow(np.clip(difference, 0, 255).astype(np.uint8))
            line[column + 1].set_title(
                f"difference x{DIFFERENCE_GAIN}\nSSIM {run.ssim:.3f}, {run.psnr:.1f} dB", fontsize=8
            )
    _save(figure, axes, file)


def quality(runs: list[Any], file: Path) -> None:
    """PSNR per prompt: TeaCache against plain mflux with as many computed steps. `runs` come in threes."""
    cached, fewer = runs[1::3], runs[2::3]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.5 * len(cached)), layout="constrained")
    places = np.arange(len(cached))
    for shift, of_way in ((-0.2, cached), (0.2, fewer)):
        heights = [min(run.psnr, 99.0) for run in of_way]
        axis.barh(places + shift, heights, height=0.38, label=of_way[0].way)
    axis.set_yticks(places, [f"{_wrap(run.prompt)}\n{run.computed} computed" for run in cached], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("PSNR against all steps, dB (higher is nearer)")
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def _wrap(prompt: str) -> str:
    words = prompt.split()
    return " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :])


def _save(figure: Any, axes: np.ndarray, file: Path) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(file, dpi=110)
    plt.close(figure)
