"""TeaCache: skip until the estimated change of the output has added up to the threshold.

The rule is TeaCache's (Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
arXiv 2411.19108; ali-vilab/TeaCache at 7c10efc, `TeaCache4FLUX`). This file restates it; no code is taken from there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

from mflux_teacache_plugin.caching.gate import Change, Gate, Verdict
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, Setup, number, plain
from mflux_teacache_plugin.variants import Variant

#: So many steps in a row are skipped at most. Upstream has no such cap; mlx-teacache uses the same number.
MAX_CONSECUTIVE_SKIPS = 8

ABOVE_RANGE = "above the fitted range"

#: The estimate that is the signal's change itself.
IDENTITY = (1.0, 0.0)


@dataclass(eq=False)
class TeaCacheGate:
    """Accumulate the estimated change of the output, and compute when it reaches the threshold."""

    steps: int  #: the active ones
    threshold: float  #: the accumulated estimate from which a step is computed
    #: Coefficients, highest power first; maps the signal's change between neighbouring steps to the output's.
    polynomial: Sequence[float] = IDENTITY
    #: The changes that the polynomial was fitted on. Below it the change counts as the lower end; above it the polynomial
    #: says nothing, so the step is computed.
    fitted_range: tuple[float, float] | None = None
    guard: tuple[int, int] = (1, 1)  #: so many first and last steps always compute
    most: int = MAX_CONSECUTIVE_SKIPS  #: so many steps in a row are skipped at most

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._accumulated, self._skips_in_a_row = 0.0, 0

    def estimate(self, change: float) -> float:
        """The polynomial at `change`, by Horner's rule."""
        return reduce(lambda value, coefficient: value * change + coefficient, self.polynomial, 0.0)

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
                return self._compute(ABOVE_RANGE)
            change = max(change, low)
        self._accumulated += self.estimate(change)
        if not self._accumulated < self.threshold:
            return self._compute("threshold reached")
        if self._skips_in_a_row == self.most:
            return self._compute(f"{self.most} skips in a row")
        self._skips_in_a_row += 1
        return Verdict(skip=True, reason="below the threshold", accumulated=self._accumulated)

    def _compute(self, reason: str, forget: bool = False) -> Verdict:
        accumulated = self._accumulated
        self.reset()
        return Verdict(skip=False, reason=reason, accumulated=accumulated, forget=forget)


@dataclass(frozen=True)
class TeaCache(Method):
    """Skip until the change that the variant's polynomial estimates adds up to the threshold."""

    threshold: float = 0.2
    needs_coefficients: ClassVar[bool] = True

    @property
    def setting(self) -> str:
        return plain(self.threshold)

    @property
    def label(self) -> str:
        return f"threshold {self}"

    def check(self, variant: Variant | None, blocks: Mapping[str, int] | None = None) -> None:
        if variant is None or variant.polynomial is None:
            whose = "this model" if variant is None else variant.id
            hint = "ask for a speed-up instead, such as 1.5x, or fit them: mflux-teacache calibrate -- COMMAND"
            raise SettingsError(f"there are no coefficients for a threshold on {whose}", hint=hint)

    def gate(self, setup: Setup) -> Gate:
        self.check(variant := setup.variant)
        assert variant is not None and variant.polynomial is not None  # `check` has seen to it
        guard = (variant.guard.first, variant.guard.last)
        return TeaCacheGate(setup.facts.steps, self.threshold, variant.polynomial, variant.range, guard)

    def why_nothing(self, generation: Generation, variant: Variant | None) -> str:
        if variant is not None:
            always = variant.guard.first + variant.guard.last
            if generation.steps <= always:
                return f"all of them are first or last steps, which always compute; take more than {always}"
            asked = [decision for decision in generation.decisions if decision.change is not None]
            above = all(decision.reason == ABOVE_RANGE for decision in asked)
            if asked and above and variant.range and not variant.distilled:
                return (
                    f"every step changed by {min(generation.changes):.3g} or more, above the range that {variant.id} "
                    f"was fitted on ({variant.range[1]:.3g}); more --steps make smaller changes"
                )
        return super().why_nothing(generation, variant)


def parse(setting: str) -> TeaCache:
    """`0.2`: the threshold."""
    return TeaCache(number(setting))
