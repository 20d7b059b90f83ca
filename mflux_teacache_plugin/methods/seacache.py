"""SeaCache: TeaCache's rule on what of a step's signal is picture rather than noise.

SeaCache (Chung et al., "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", CVPR 2026,
arXiv 2602.18993) accumulates the relative L1 change of the modulated input as TeaCache does, with two differences: there
is no polynomial, and each step's signal is filtered, at its own sigma, before it is compared with that of the step before.
The authors cap no run of skipped steps. They give thresholds of 0.3 and 0.6 for FLUX.1-dev at 50 steps.

diffusers 0.42.1 (Apache-2.0) has it with a linear forecast and at most two skips in a row: `seacache:0.25,diffusers`.
"""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from mflux_teacache_plugin.caching.gate import Facts, Gate
from mflux_teacache_plugin.methods.method import Method, Setup, number, plain
from mflux_teacache_plugin.methods.teacache import TeaCacheGate

#: The exponent of a picture's spectrum; the authors use 3 for video.
PICTURE_POWER = 2.0
#: sigma is kept this far from 0 and 1, where the response is not defined.
_MARGIN = 1e-6
#: Added to the spectrum's denominator and to the noise's power, as the authors do.
_SMALL = 1e-16


def response(length: int, sigma: float, power: float = PICTURE_POWER) -> np.ndarray:
    """The filter along one axis of so many tokens, (length,) float64 in the order of `numpy.fft.fftfreq`, of mean 1.

    The best linear estimate of x_0 from x_t = a x_0 + b noise, where a = 1 - sigma, b = sigma and the power of x_0 at
    frequency f, in cycles per token, is S(f) = 1 / |f|^power:

        g(f) = a S(f) / (a^2 S(f) + b^2),    divided by the mean of g over all frequencies
    """
    sigma = min(max(sigma, _MARGIN), 1 - _MARGIN)
    frequencies = np.abs(np.fft.fftfreq(length))
    signal, noise = 1 - sigma, sigma**2 + _SMALL
    gain = signal / (signal**2 + noise * (frequencies**power + _SMALL))  # both sides of the fraction divided by S
    return gain / gain.mean()


def sea_filter(signal: mx.array, sigma: float, grid: tuple[int, int], power: float = PICTURE_POWER) -> mx.array:
    """Filter the picture's tokens of a modulated input with the response for sigma along rows and columns of its grid.

    At sigma 0 the signal stays as it is. Towards sigma 1 only the mean over all tokens is left, times their number. Of
    `signal`, (batch, tokens, width), the first rows * columns tokens are the picture row by row; others are dropped, so what
    is returned is (batch, rows * columns, width) float32. ValueError if there are fewer tokens than the grid has.
    """
    rows, columns = grid
    batch, tokens, width = signal.shape
    if tokens < rows * columns:
        raise ValueError(f"{tokens} tokens do not fill a grid of {rows} by {columns}")
    picture = signal[:, : rows * columns].astype(mx.float32)
    picture = _circular(response(rows, sigma, power)) @ picture.reshape(batch, rows, columns * width)
    picture = _circular(response(columns, sigma, power)) @ picture.reshape(batch * rows, columns, width)
    return picture.reshape(batch, rows * columns, width)


def _circular(gain: np.ndarray) -> mx.array:
    """The filter along one axis as a matrix, (length, length): a picture has so few rows that no FFT is faster."""
    kernel = np.fft.ifft(gain).real
    index = np.arange(len(gain))
    return mx.array(kernel[(index[:, None] - index) % len(gain)].astype(np.float32))


#: Its own option beside `--teacache seacache:SETTING`: what stands for its value, and its help.
OPTION = (
    "THRESHOLD",
    "As --teacache with a threshold, on a filtered signal that needs no coefficients; 0.3 is a good start.",
)


@dataclass(frozen=True)
class SeaCache(Method):
    """TeaCache's rule on a signal that has passed SeaCache's filter, whose change needs no polynomial."""

    threshold: float = 0.3
    uses_numbers: ClassVar[bool] = False

    @property
    def setting(self) -> str:
        return f"seacache:{plain(self.threshold)}"

    def gate(self, setup: Setup) -> Gate:
        return TeaCacheGate(setup.facts.steps, self.threshold)

    def transform(self, signal: mx.array, sigma: float, facts: Facts) -> mx.array:
        return sea_filter(signal, sigma, facts.grid)


@dataclass(frozen=True)
class DiffusersSeaCache(SeaCache):
    """As diffusers 0.42.1 has it: a linear forecast of the residual, and at most two skips in a row."""

    threshold: float = 0.25
    usual_forecast: ClassVar[str] = "linear"

    @property
    def setting(self) -> str:
        return f"{super().setting},diffusers"

    def gate(self, setup: Setup) -> Gate:
        return TeaCacheGate(setup.facts.steps, self.threshold, most=2)


def parse(setting: str) -> SeaCache:
    """`0.3`, the threshold; or `0.25,diffusers`."""
    text, comma, whose = setting.partition(",")
    if comma and whose.strip().lower() != "diffusers":
        raise ArgumentTypeError(f"'{whose.strip()}' is not 'diffusers', the only word after seacache's threshold")
    return (DiffusersSeaCache if comma else SeaCache)(number(text, example="0.3"))
