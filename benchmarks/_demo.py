"""The demo model in this process, as the benchmarks use it."""

from typing import Any

import numpy as np

SIDE = 128


def generate(model: Any, prompt: dict[str, Any], steps: int, guidance: float) -> tuple[np.ndarray, float]:
    """The picture, (SIDE, SIDE, 3) bytes, and the seconds of mflux's denoising loop."""
    image = model.generate_image(**prompt, num_inference_steps=steps, guidance=guidance, width=SIDE, height=SIDE)
    return np.asarray(image.image.convert("RGB")), float(image.generation_time)
