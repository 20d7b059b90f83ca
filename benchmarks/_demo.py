"""The demo model in this process, as the benchmarks use it."""

import os
import platform
import tomllib
from importlib.metadata import version
from typing import Any

import numpy as np

from mflux_teacache_plugin import demo_model
from mflux_teacache_plugin.host import bridge

SIDE = 128


def load() -> Any:
    """mflux's own Flux2Klein with the demo model."""
    import mflux

    bridge.install()
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.flux2.variants import Flux2Klein

    del mflux
    return Flux2Klein(model_config=ModelConfig.from_name(demo_model.NAME))


def prompts(kind: str) -> list[dict[str, Any]]:
    """The prompts with their seeds: `demo`, `benchmark` or `calibration`."""
    folder = demo_model.folder()
    if folder is None:
        raise SystemExit("there is no demo model; set MFLUX_TEACACHE_DEMO")
    return tomllib.loads((folder / "prompts.toml").read_text())[kind]


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
