"""When a step may be skipped: numbers in, a decision out.

The rule is TeaCache's (Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
arXiv 2411.19108; ali-vilab/TeaCache at 7c10efc, `TeaCache4FLUX`). This file restates it; no code is taken from there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

#: So many steps in a row are skipped at most. Upstream has no such cap; mlx-teacache uses the same number.
MAX_CONSECUTIVE_SKIPS = 8


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one step.

    `accumulated` is the estimated change of the output since the last computed step, this step included. `forget` asks
    the step cache to drop what it keeps, because the signal cannot be trusted.
    """

    skip: bool
    reason: str
    accumulated: float = 0.0
    forget: bool = False


class Gate(Protocol):
    """Decides step by step. A new one is made for every generation."""

    def __call__(self, change: float) -> Verdict:
        """Judge one step by `change`, the relative L1 change of the signal since the step before (dimensionless)."""

    def reset(self) -> None:
        """A step was computed without asking the gate."""


#: Makes a gate from (polynomial, threshold, range). Plugins contribute these by name.
GateFactory = Callable[[Sequence[float], float, tuple[float, float] | None], Gate]


class TeaCacheGate:
    """Accumulate the estimated change of the output, and compute when it reaches the threshold.

    Args:
        polynomial: coefficients, highest power first; maps the signal's change to the output's.
        threshold: the accumulated estimate from which a step is computed.
        fitted_range: the changes that the polynomial was fitted on. Below it the change counts as the lower end;
            above it the polynomial says nothing, so the step is computed.
    """

    def __init__(
        self, polynomial: Sequence[float], threshold: float, fitted_range: tuple[float, float] | None = None
    ) -> None:
        self.polynomial = tuple(polynomial)
        self.threshold = threshold
        self.fitted_range = fitted_range
        self._accumulated = 0.0
        self._skips_in_a_row = 0

    def reset(self) -> None:
        self._accumulated = 0.0
        self._skips_in_a_row = 0

    def estimate(self, change: float) -> float:
        """The polynomial at `change`, by Horner's rule."""
        value = 0.0
        for coefficient in self.polynomial:
            value = value * change + coefficient
        return value

    def __call__(self, change: float) -> Verdict:
        if not math.isfinite(change):
            return self._compute("the signal is not finite", forget=True)
        if self.fitted_range is not None:
            low, high = self.fitted_range
            if change > high:
                return self._compute("above the fitted range")
            change = max(change, low)
        self._accumulated += self.estimate(change)
        if not self._accumulated < self.threshold:
            return self._compute("threshold reached")
        if self._skips_in_a_row == MAX_CONSECUTIVE_SKIPS:
            return self._compute(f"{MAX_CONSECUTIVE_SKIPS} skips in a row")
        self._skips_in_a_row += 1
        return Verdict(skip=True, reason="below the threshold", accumulated=self._accumulated)

    def _compute(self, reason: str, forget: bool = False) -> Verdict:
        verdict = Verdict(skip=False, reason=reason, accumulated=self._accumulated, forget=forget)
        self.reset()
        return verdict
