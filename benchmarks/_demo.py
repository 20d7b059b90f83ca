"""The demo model in this process, as the benchmarks use it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mflux_demo_model import prompts

from mflux_teacache_plugin.measure.metrics import SAME_PSNR, similarity

SIDE = 128
PAIRS = 16


def pairs(count: int = PAIRS) -> list[dict[str, Any]]:
    """So many prompts with seeds that no calibration saw; further seeds where there are too few prompts."""
    listed = prompts("benchmark")
    return [
        {**listed[n % len(listed)], "seed": listed[n % len(listed)]["seed"] + 1000 * (n // len(listed))}
        for n in range(count)
    ]


def score(picture: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """PSNR in dB, SAME_PSNR for a picture that is the same, and SSIM."""
    near = similarity(picture, full)
    return min(near.psnr, SAME_PSNR), near.ssim


def done(rows: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it is not there yet."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def generate(
    model: Any, prompt: dict[str, Any], steps: int, guidance: float, **further: Any
) -> tuple[np.ndarray, float]:
    """The picture, (SIDE, SIDE, 3) bytes, and the seconds of mflux's denoising loop."""
    options = {"num_inference_steps": steps, "guidance": guidance, "width": SIDE, "height": SIDE, **further}
    image = model.generate_image(**prompt, **options)
    return np.asarray(image.image.convert("RGB")), float(image.generation_time)
