"""How near one picture is to another: SSIM and PSNR."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mflux_teacache_plugin.errors import SettingsError

#: What a picture that is the same counts in a mean of PSNRs, in dB: its own PSNR is infinite.
SAME_PSNR = 99.0


@dataclass(frozen=True)
class Similarity:
    """One picture against its reference: SSIM (1 is the same), and PSNR in dB (infinite is the same)."""

    ssim: float
    psnr: float


@dataclass(frozen=True)
class Summary:
    """Mean and worst of several similarities. A picture that is the same counts `SAME_PSNR` dB."""

    ssim: float
    ssim_worst: float
    psnr: float
    psnr_worst: float


def require() -> None:
    """Raise SettingsError, with the command that installs it, if what measures and draws pictures is not installed."""
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        error = f"{' and '.join(missing)}, which measure and draw pictures, are not installed"
        raise SettingsError(error, hint='pip install "mflux-teacache-plugin[pictures]"')


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
        return Similarity(1.0, math.inf)
    # as Wang et al. and most tables have it: Gaussian weights, no sample covariance
    ssim = structural_similarity(
        other, made, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Similarity(float(ssim), float(peak_signal_noise_ratio(other, made)))


def summarize(similarities: Sequence[Similarity]) -> Summary:
    """Mean and worst over one or more pictures."""
    ssims = [each.ssim for each in similarities]
    psnrs = [min(each.psnr, SAME_PSNR) for each in similarities]
    return Summary(float(np.mean(ssims)), min(ssims), float(np.mean(psnrs)), min(psnrs))
