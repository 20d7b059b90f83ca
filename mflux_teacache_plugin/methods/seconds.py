"""A time: as many steps as the loop can compute in so many seconds, on the machine that it runs on.

The first two steps are always computed. The second one's time, because the first may compile, says what a step costs here,
and so how many more fit into what is left; a speed-up's schedule places them. The picture records the steps, as `steps:…`.
"""

import math
import time
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.caching.step_cache import Cache, PredictionCache
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, Setup, plain, to_float
from mflux_teacache_plugin.methods.speedup import LEAST_STEPS, MAX_SPEEDUP, ScheduleGate, Speedup
from mflux_teacache_plugin.methods.steps import Steps
from mflux_teacache_plugin.variants import Variant

TOO_SHORT = "the time is too short for the fewest sensible steps, which were made"

#: Tests have one of their own.
clock = time.perf_counter


class TimedCache(PredictionCache):
    """Times the first two steps, then makes the plan."""

    def __init__(self, method: "Seconds", setup: Setup) -> None:
        super().__init__(ScheduleGate(range(setup.facts.steps)), setup, method.order)
        self._method, self._times = method, [clock()]

    def end_step(self) -> None:
        super().end_step()
        if len(self._times) == 3 or self.record.fault is not None:
            return
        mx.eval(self.kept())  # MLX is lazy: only now is the step done
        self._times.append(clock())
        if len(self._times) == 3:
            begun, first, second = self._times
            left, cost = self._method.seconds - (second - begun), max(second - first, 1e-9)
            facts, enough = self._setup.facts, 2 + math.floor(left / cost)
            fewest = self._method.fewest(facts.steps)
            if enough < fewest:
                self.record.note = TOO_SHORT
            count = min(facts.steps, max(fewest, enough))
            self._plan = self._method.schedule(count, self._setup.variant, facts)
            self._gate = ScheduleGate(self._plan)

    def progress(self) -> dict[str, str]:
        if len(self._times) < 3:
            return super().progress()
        return super().progress() | {"computing": f"{len(self._plan)}/{self._setup.facts.steps}"}


@dataclass(frozen=True)
class Seconds(Method):
    """As many steps as the time suffices for."""

    seconds: float = 90.0
    usual_forecast: ClassVar[str] = "linear"
    needs_taps: ClassVar[bool] = False
    nothing: ClassVar[str] = "the time suffices for every step"

    @property
    def setting(self) -> str:
        return f"{plain(self.seconds)}s"

    def fewest(self, steps: int) -> int:
        """So many of the steps are computed however short the time is."""
        return max(self.order + 2, math.ceil(steps / MAX_SPEEDUP))

    def check_steps(self, steps: int | None) -> None:
        if steps is not None and steps < LEAST_STEPS:
            cause = "so few steps are large ones, of which none can be skipped"
            hint = f"take at least {LEAST_STEPS} --steps"
            raise SettingsError(f"{steps} steps at {self} cannot be met", cause=cause, hint=hint)

    def schedule(self, count: int, variant: Variant | None, facts: Facts) -> tuple[int, ...]:
        """So many steps, the first two among them, as the speed-up that takes as many has them."""
        if count >= facts.steps:
            return tuple(range(facts.steps))
        for size in (count, count - 1):
            found = set(Speedup(facts.steps / size, forecast=self.forecast).schedule(variant, facts)) | {0, 1}
            if len(found) <= count:
                break
        return tuple(sorted(found))

    def cache(self, setup: Setup) -> Cache:
        self.check_steps(setup.facts.steps)
        self.schedule(self.fewest(setup.facts.steps), setup.variant, setup.facts)  # what cannot be made is said now
        return TimedCache(self, setup)

    def recorded(self, generation: Generation) -> str:
        skipped = {decision.step for decision in generation.decisions if decision.skipped}
        computed = tuple(step for step in range(generation.steps) if step not in skipped)
        return str(Steps(computed, forecast=self.forecast, cfg_end=self.cfg_end))


def parse(setting: str) -> Seconds:
    """`90s`."""
    seconds = to_float(setting.lower().removesuffix("s"))
    if not 0 < seconds <= 86400:
        raise ArgumentTypeError(f"'{setting}' is no time above 0 and at most a day; try 90s")
    return Seconds(seconds)
