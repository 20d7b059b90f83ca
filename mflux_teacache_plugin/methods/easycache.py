"""EasyCache: how much the prediction will change, from how much the latents did.

The rule is that of EasyCache (Zhou et al., arXiv 2507.02860; H-EmbodVis/EasyCache), restated from the authors' code for
HunyuanVideo; none of it is taken. `rate` = mean |change of the prediction| / mean |change of the latents| between the last two
computed steps. Each further step adds rate · mean |latents - latents of the step before| / mean |last computed prediction|;
while the sum is below the threshold, what the prediction was above the latents stands in. Only the prompt's branch is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import mlx.core as mx

from mflux_teacache_plugin.caching.forecast import Forecast
from mflux_teacache_plugin.caching.gate import Change, Gate, Setup
from mflux_teacache_plugin.caching.step_cache import Cache, PredictionCache
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, keyed, number, plain, whole
from mflux_teacache_plugin.methods.teacache import TeaCacheGate

#: So many first steps the authors compute of HunyuanVideo's 50, and always the last.
RET_STEPS = 5


def latents_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> mx.array:
    """What a step starts from: in every family the first array of three dimensions or more among a call's arguments."""
    return next(each for each in (*args, *kwargs.values()) if isinstance(each, mx.array) and each.ndim >= 3)


def _size(array: mx.array) -> mx.array:
    return mx.abs(array.astype(mx.float32)).mean()


class LatentsCache(PredictionCache):
    """Keeps what the predictions are above the latents, and how the two change."""

    _latents: mx.array | None = None  # of this step, or of the one before until it begins
    _computed: tuple[mx.array, mx.array] | None = None  # latents and the prompt's prediction of the last computed step
    _rate: mx.array | None = None

    def _change(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Change:
        before, latents = self._latents, latents_of(args, kwargs)
        self._latents = latents

        def change() -> float:
            if before is None or self._rate is None or self._computed is None or before.shape != latents.shape:
                return float("nan")
            return cast(float, (self._rate * _size(latents - before) / _size(self._computed[1])).item())

        return change

    def _learn(self, kept: Forecast, output: mx.array, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        latents = latents_of(args, kwargs)
        super()._learn(kept, self._above(output, latents, -1), args, kwargs)
        if self._calls == 1:
            if self._computed is not None and self._computed[1].shape == output.shape:
                self._rate = _size(output - self._computed[1]) / _size(latents - self._computed[0])
            self._computed = latents, output

    def _stand_in(self, kept: Forecast, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> mx.array:
        return self._above(super()._stand_in(kept, args, kwargs), latents_of(args, kwargs), 1)

    def _above(self, prediction: mx.array, latents: mx.array, sign: int) -> mx.array:
        """With or without the latents; as it is where other tokens come with them, as in an edit."""
        return prediction + sign * latents if latents.shape[1:] == prediction.shape[1:] else prediction

    def kept(self) -> list[mx.array]:
        further = [*(self._computed or ()), *(each for each in (self._latents, self._rate) if each is not None)]
        return [*super().kept(), *further]

    def forget(self) -> None:
        super().forget()
        self._latents = self._computed = self._rate = None


@dataclass(frozen=True)
class EasyCache(Method):
    """Skip until the change that the latents announce adds up to the threshold."""

    threshold: float = 0.2
    ret_steps: int = RET_STEPS
    uses_numbers: ClassVar[bool] = False
    needs_taps: ClassVar[bool] = False

    @property
    def setting(self) -> str:
        return f"easycache:{plain(self.threshold)}" + f",ret_steps={self.ret_steps}" * (self.ret_steps != RET_STEPS)

    def check_steps(self, steps: int | None) -> None:
        if steps is not None and steps < self.ret_steps + 2:
            cause = f"the first {self.ret_steps} and the last one are always computed"
            hint = f"take at least {self.ret_steps + 2} --steps"
            if steps >= 4:
                hint += f", or {replace(self, ret_steps=2)} for fewer first ones"
            raise SettingsError(f"{self} has nothing to skip in {steps} steps", cause=cause, hint=hint)

    def gate(self, setup: Setup) -> Gate:
        return TeaCacheGate(setup.facts.steps, self.threshold, guard=(self.ret_steps, 1), most=setup.facts.steps)

    def cache(self, setup: Setup) -> Cache:
        return LatentsCache(self.gate(setup), setup, self.order)


def parse(setting: str) -> EasyCache:
    """`0.2`, or `0.2,ret_steps=10`."""
    text, given = keyed(setting, ret_steps=lambda value: whole("ret_steps", value, 2))
    return EasyCache(number(text), **given)
