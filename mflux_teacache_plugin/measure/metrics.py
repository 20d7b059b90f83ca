"""How near one picture is to another: SSIM, PSNR, and LPIPS where torch and lpips are installed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mflux_teacache_plugin.errors import SettingsError

#: What a picture that is the same counts in a mean of PSNRs, in dB: its own PSNR is infinite.
SAME_PSNR = 99.0


@dataclass(frozen=True)
class Similarity:
    """One picture against its reference: SSIM (1 is the same), PSNR in dB (infinite is the same), and the learned distance
    LPIPS (AlexNet; 0 is the same, None without torch)."""

    ssim: float
    psnr: float
    lpips: float | None = None


@dataclass(frozen=True)
class Summary:
    """Mean and worst of several similarities. A picture that is the same counts `SAME_PSNR` dB."""

    ssim: float
    ssim_worst: float
    psnr: float
    psnr_worst: float
    lpips: float | None


def require() -> None:
    """Raise SettingsError, with the command that installs it, if what measures and draws pictures is not installed."""
    missing = [name for name in ("matplotlib", "skimage") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)}, which measure and draw pictures, are not installed",
            hint='pip install "mflux-teacache-plugin[pictures]"',
        )


def pixels(picture: Path | np.ndarray) -> np.ndarray:
    """A picture file as (height, width, 3) bytes; an array stays what it is."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return picture
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def similarity(picture: Path | np.ndarray, reference: Path | np.ndarray) -> Similarity:
    """How near a picture comes to a reference of the same size; files, or arrays of (height, width, 3) bytes."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    made, other = pixels(picture), pixels(reference)
    if np.array_equal(made, other):
        return Similarity(1.0, math.inf, None if _lpips() is None else 0.0)
    # as Wang et al. and most tables have it: Gaussian weights, no sample covariance
    ssim = structural_similarity(
        other, made, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Similarity(float(ssim), float(peak_signal_noise_ratio(other, made)), _distance(made, other))


def summarize(similarities: Sequence[Similarity]) -> Summary:
    """Mean and worst over one or more pictures."""
    ssims = [each.ssim for each in similarities]
    psnrs = [min(each.psnr, SAME_PSNR) for each in similarities]
    distances = [each.lpips for each in similarities if each.lpips is not None]
    lpips = float(np.mean(distances)) if len(distances) == len(similarities) else None
    return Summary(float(np.mean(ssims)), min(ssims), float(np.mean(psnrs)), min(psnrs), lpips)


def _distance(picture: np.ndarray, reference: np.ndarray) -> float | None:
    network = _lpips()
    if network is None:
        return None
    import torch

    batch = [torch.tensor(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (picture, reference)]  # (1, 3, H, W)
    with torch.no_grad():
        return float(network(*batch))


@cache
def _lpips() -> Any | None:
    """The network, or None without torch and lpips or without its weights (which lpips may have to download)."""
    if find_spec("torch") is None or find_spec("lpips") is None:
        return None
    import lpips

    try:
        return lpips.LPIPS(net="alex", verbose=False)
    except Exception:  # noqa: BLE001 - whatever keeps the weights from loading, the other two figures stand
        return None
