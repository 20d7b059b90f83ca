"""TeaCache: skip until the estimated change of the output has added up to the threshold.

The rule is TeaCache's (Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
arXiv 2411.19108; ali-vilab/TeaCache at 7c10efc, `TeaCache4FLUX`). This file restates it; no code is taken from there.
"""

import math
from collections.abc import Sequence

from mflux_teacache_plugin.caching.gate import Change, Verdict

#: So many steps in a row are skipped at most. Upstream has no such cap; mlx-teacache uses the same number.
MAX_CONSECUTIVE_SKIPS = 8

#: The estimate that is the signal's change itself.
IDENTITY = (1.0, 0.0)


class TeaCacheGate:
    """Accumulate the estimated change of the output, and compute when it reaches the threshold.

    Args:
        steps: the active steps.
        threshold: the accumulated estimate from which a step is computed.
        polynomial: coefficients, highest power first; maps the signal's change between neighbouring steps to the output's.
        fitted_range: the changes that the polynomial was fitted on. Below it the change counts as the lower end;
            above it the polynomial says nothing, so the step is computed.
        guard: so many first and last steps always compute.
    """

    def __init__(
        self,
        steps: int,
        threshold: float,
        polynomial: Sequence[float] = IDENTITY,
        fitted_range: tuple[float, float] | None = None,
        guard: tuple[int, int] = (1, 1),
    ) -> None:
        self.steps = steps
        self.threshold = threshold
        self.polynomial = tuple(polynomial)
        self.fitted_range = fitted_range
        self.guard = guard
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

    def __call__(self, step: int, change: Change) -> Verdict:
        first, last = self.guard
        if step < first or step >= self.steps - last:
            self.reset()
            return Verdict(skip=False, reason="first step" if step < first else "last step")
        return self._judge(change())

    def _judge(self, change: float) -> Verdict:
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
