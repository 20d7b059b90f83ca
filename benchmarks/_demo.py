"""The demo model in this process, as the benchmarks use it."""

import os
import platform
from importlib.metadata import version
from typing import Any

import numpy as np

SIDE = 128


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
