"""The demo model in this process, as the benchmarks use it."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mflux_teacache_plugin.demo_model import prompts

SIDE = 128
PAIRS = 16
#: PSNR of a picture that is the same, dB: it has none, and a mean needs one.
SAME = 99.0


def pairs(count: int = PAIRS) -> list[dict[str, Any]]:
    """So many prompts with seeds that no calibration saw; further seeds where there are too few prompts."""
    listed = prompts("benchmark")
    return [
        {**listed[n % len(listed)], "seed": listed[n % len(listed)]["seed"] + 1000 * (n // len(listed))}
        for n in range(count)
    ]


def score(picture: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """PSNR in dB, SAME for a picture that is the same, and SSIM."""
    psnr = SAME if np.array_equal(picture, full) else float(peak_signal_noise_ratio(full, picture))
    return psnr, float(structural_similarity(full, picture, channel_axis=2))


def done(rows: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it is not there yet."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def generate(model: Any, prompt: dict[str, Any], steps: int, guidance: float) -> tuple[np.ndarray, float]:
    """The picture, (SIDE, SIDE, 3) bytes, and the seconds of mflux's denoising loop."""
    image = model.generate_image(**prompt, num_inference_steps=steps, guidance=guidance, width=SIDE, height=SIDE)
    return np.asarray(image.image.convert("RGB")), float(image.generation_time)


def machine() -> str:
    """A line that says where the figures were made."""
    blas = "OpenBLAS preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "MLX's default BLAS"
    versions = ", ".join(f"{name} {version(name)}" for name in ("mflux", "mlx", "mflux-teacache-plugin"))
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {blas}; {versions}; not measured on Metal"
    )
