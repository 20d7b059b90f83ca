"""Where figures were made: they mean nothing without it."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import mlx.core as mx

_PACKAGES = ("mflux", "mlx", "mflux-teacache-plugin")


def describe() -> dict[str, Any]:
    """System, processor, cores, BLAS, versions."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": _device(),
        "blas": "OpenBLAS preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "MLX's own",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def line() -> str:
    """The same in a line."""
    facts = describe()
    versions = ", ".join(f"{name} {facts[name]}" for name in _PACKAGES)
    blas = "" if facts["device"] != "CPU" else f" ({facts['blas']} BLAS; not Metal)"
    return f"{facts['processor']}, {facts['cores']} cores, {facts['device']}{blas}; {versions}"


def _device() -> str:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Metal"
    return f"CUDA on {mx.device_info()['device_name']}" if mx.cuda.is_available() else "CPU"


def _processor() -> str:
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or platform.machine()
    return f"{platform.system()} {platform.machine()}"
