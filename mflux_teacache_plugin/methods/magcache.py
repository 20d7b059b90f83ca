"""MagCache: how much the blocks' residual will change, from what was recorded of the model.

The rule is that of MagCache (Ma et al., arXiv 2506.09045), restated from diffusers 0.42.1 (Apache-2.0), with its defaults; no
code is taken from there. The variant's `mag_ratios` say by which factor the residual grows from each step of a run to the
next. Since the last computed step, the error of a skipped one is |1 - product of the ratios|; a step is skipped while these
errors add up to no more than the threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mflux_teacache_plugin.caching.gate import Change, Gate, Verdict
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, Setup, finite, keyed, number, plain, whole
from mflux_teacache_plugin.variants import Variant


class MagCacheGate:
    """Reads nothing. The `ratios` are of a run of any number of steps, `steps` is this run's; `most` is K."""

    def __init__(self, ratios: Sequence[float], steps: int, threshold: float, most: int, retention: float) -> None:
        scale = (len(ratios) - 1) / max(1, steps - 1)
        self.ratios = [ratios[round(step * scale)] for step in range(steps)] if steps > 1 else ratios[-1:]
        self.threshold, self.most = threshold, most
        self.first = int(retention * steps + 0.5)
        self.reset()

    def reset(self) -> None:
        self._ratio, self._error, self._in_a_row = 1.0, 0.0, 0

    def __call__(self, step: int, change: Change) -> Verdict:
        if step < self.first:
            return Verdict(skip=False, reason="first step")
        self._ratio *= self.ratios[step]
        self._error += abs(1 - self._ratio)
        self._in_a_row += 1
        error = self._error
        if error <= self.threshold and self._in_a_row <= self.most:
            return Verdict(skip=True, reason="below the threshold", accumulated=error)
        capped = self._in_a_row > self.most
        self.reset()
        return Verdict(skip=False, reason="skips in a row" if capped else "threshold reached", accumulated=error)


@dataclass(frozen=True)
class MagCache(Method):
    """Skip until the change that the variant's ratios announce adds up to the threshold."""

    threshold: float = 0.06
    K: int = 3
    retention: float = 0.2

    @property
    def setting(self) -> str:
        further = f",K={self.K}" * (self.K != 3) + f",retention={plain(self.retention)}" * (self.retention != 0.2)
        return f"magcache:{plain(self.threshold)}{further}"

    def check(self, variant: Variant | None, blocks: Mapping[str, int] | None = None) -> None:
        if variant is None or not variant.mag_ratios:
            hint = "easycache:0.2 and 1.5x need none; ratios of your own go into a coefficient file, as mag_ratios"
            whose = "this model" if variant is None else variant.id
            raise SettingsError(f"there are no MagCache ratios for {whose}", hint=hint)

    def gate(self, setup: Setup) -> Gate:
        self.check(setup.variant)
        assert setup.variant is not None and setup.variant.mag_ratios is not None  # `check` has seen to it
        return MagCacheGate(setup.variant.mag_ratios, setup.facts.steps, self.threshold, self.K, self.retention)

    def why_nothing(self, generation: Generation, variant: Variant | None) -> str:
        errors = [each.accumulated for each in generation.decisions if each.accumulated is not None]
        least = f"; the smallest error of a step is {min(errors):.3g}" if errors else ""
        return f"the first {self.retention:.0%} of the steps are always computed{least}"


def parse(setting: str) -> MagCache:
    """`0.06`, or `0.24,K=5,retention=0.1`."""
    text, given = keyed(setting, K=partial(whole, "K", least=1), retention=partial(finite, "retention", highest=1.0))
    return MagCache(number(text, example="0.06"), **given)
