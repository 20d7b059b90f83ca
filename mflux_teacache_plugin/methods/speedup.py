"""A speed-up: a schedule, settled before the loop from how much the output is expected to change.

No signal is read, so nothing waits for the device and no tap is needed. The computed steps are chosen so that the largest
change that accumulates over a run of skipped steps is as small as it can be, found exactly by dynamic programming, as LeMiCa
(arXiv 2511.00090) and DPCache (arXiv 2602.22654) choose theirs.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Change, Facts, Gate, Verdict
from mflux_teacache_plugin.caching.step_cache import Cache
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import published
from mflux_teacache_plugin.methods.method import Method, Setup, plain, to_float
from mflux_teacache_plugin.variants.variant import Profile, StepList, Variant

#: Speed-ups lie in (1, MAX_SPEEDUP].
MAX_SPEEDUP = 10.0

#: With fewer steps than this each of them changes the whole picture.
LEAST_STEPS = 6

#: By default none of so few steps is left out, as distilled models take them, unless somebody has recorded a run as short.
FEW_STEPS = 15

#: So far a run's σ may lie from those of a profile at the same share of the run (mflux shifts its grid by up to .08 between 8
#: and 50 steps; another scheduler's lies .2 away and more), and by this factor its guidance from the profile's.
SAME_SIGMA, SAME_GUIDANCE = 0.1, 1.5

PLAIN_IS_NEARER = "fewer steps without a cache came nearer in the calibration"


def covers(knots: Sequence[float], sigmas: Sequence[float]) -> bool:
    """Whether a profile over these σ (falling) reaches over a run at `sigmas`.

    It may begin one of the profile's own steps earlier and end one later: twice the steps end at half the last σ.
    """
    earliest, latest = 2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2]
    return max(sigmas) <= earliest and min(sigmas) >= latest


def outside(profile: Profile | None, recorded_at: float | None, facts: Facts) -> str:
    """What of a run was not recorded, in a few words; empty if there is nothing of the kind."""
    found, ours, whole = [], facts.guidance, facts.first + facts.steps
    if profile is not None:
        recorded = [step / len(profile.sigma) for step in range(len(profile.sigma))]
        there = np.interp([step / whole for step in range(facts.first, whole)], [*recorded, 1.0], [*profile.sigma, 0.0])
        if np.abs(there - facts.sigmas).max() > SAME_SIGMA:
            found.append("other sigmas")
    if ours and recorded_at and not 1 / SAME_GUIDANCE <= ours / recorded_at <= SAME_GUIDANCE:
        found.append(f"guidance {ours:g}, not {recorded_at:g}")
    return f"outside what was recorded: {', '.join(found)}" if found else ""


def expected_changes(knots: Sequence[float], accumulated: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """The change expected from each of the steps at `sigmas` (falling) to the next: one fewer than sigmas.

    `accumulated` is a profile's: the output's relative L1 change since the first of its `knots`, which are σ and fall.
    """
    low_to_high, values, at = np.array(knots[::-1]), np.array(accumulated[::-1]), np.array(sigmas)
    reached = np.interp(at, low_to_high, values)
    for end, inner in ((0, 1), (-1, -2)):  # beyond either end the change goes on as fast as it did next to it
        slope = (values[end] - values[inner]) / (low_to_high[end] - low_to_high[inner])
        outside = at < low_to_high[0] if end == 0 else at > low_to_high[-1]
        reached = np.where(outside, values[end] + slope * (at - low_to_high[end]), reached)
    return [float(change) for change in np.diff(reached)]


def budget(speedup: float, steps: int) -> int:
    """How many of `steps` are computed for this speed-up of the loop; at least as fast, as nearly as steps allow."""
    return max(1, math.floor(steps / speedup + 1e-9))


def spread(changes: Sequence[float], computed: int, lead: int = 1) -> tuple[int, ...]:
    """The steps to compute, `computed` of them, the first `lead` and the last always among them.

    Of all schedules the largest change from a computed step to the last step that reuses it is least; of those that
    share it, the one whose squares add up to least. `changes` are those expected from each step to the next, not negative.
    """
    if lead > 1:
        before = lead - 1
        return (*range(before), *(before + step for step in spread(changes[before:], computed - before)))
    steps = len(changes) + 1
    if steps == 1:
        return (0,)
    reached = np.concatenate([[0.0], np.cumsum(changes)])
    # cost[i, j]: what accumulates if i and j are computed and no step between them; infinite unless i < j
    cost = np.full((steps, steps), np.inf)
    i, j = np.triu_indices(steps, 1)
    cost[i, j] = reached[j - 1] - reached[i]
    largest = published.path_of_least(cost, computed, np.maximum)[0]
    return published.path_of_least(np.where(cost <= largest * (1 + 1e-9), cost**2, np.inf), computed, np.add)[1]


class ScheduleGate(Gate):
    """Compute these steps, skip the others."""

    def __init__(self, computed: Sequence[int]) -> None:
        self.computed = frozenset(computed)

    def __call__(self, step: int, change: Change) -> Verdict:
        skip = step not in self.computed
        return Verdict(skip, reason="not in the schedule" if skip else "in the schedule")


@dataclass(frozen=True)
class Speedup(Method):
    """As many steps as give the speed-up, where the variant's lists, its profile or what all published lists share want them.

    Without a forecast that somebody asks for, a calibration's list says which one stands in; without a list it is a line.
    """

    factor: float = 1.5
    least: int = field(default=LEAST_STEPS, kw_only=True, compare=False)
    usual_forecast: ClassVar[str] = ""
    needs_taps: ClassVar[bool] = False
    nothing: ClassVar[str] = "the speed-up leaves no step out; ask for a higher one"

    @property
    def setting(self) -> str:
        return f"{plain(self.factor)}x"

    @property
    def order(self) -> int:
        return ORDERS[self.forecast or "linear"]

    def as_recommended(self, variant: Variant | None) -> "Speedup":
        recorded = [] if variant is None else [each.steps for each in variant.step_lists]
        if variant is not None and variant.profile is not None:
            recorded.append(len(variant.profile.sigma))
        return replace(self, least=min([FEW_STEPS, *recorded]))

    def check_steps(self, steps: int | None) -> None:
        if steps is None:
            return
        if LEAST_STEPS <= steps < self.least:
            few = f"{steps} steps are few, and nobody has shown which of them this model can spare"
            few += f"; below {self.least} a speed-up has to be named, such as --teacache {self}"
            raise SettingsError(few, hint="name it, and look at the pictures")
        least = self.order + 2  # the points that a forecast is drawn through, and the last step
        enough = max(LEAST_STEPS, math.ceil(least * self.factor - 1e-9))
        if steps < enough:
            cause = f"the first and the last step are always computed, {least} at least in all"
            hint = f"take at least {enough} --steps, or a smaller speed-up"
            raise SettingsError(f"{steps} steps at {self} cannot be met", cause=cause, hint=hint)

    def notes(self, variant: Variant | None, name: str) -> Sequence[str]:
        shared = f"so {self} computes the steps that published schedules of other models share"
        return (f"there are no coefficients for {name}, {shared}",) if variant is None else ()

    def cache(self, setup: Setup) -> Cache:
        found = self._found(setup.variant, setup.facts)
        if self.forecast or found is None or found.forecast is None:
            return super().cache(setup)
        return replace(self, forecast=found.forecast).cache(setup)

    def gate(self, setup: Setup) -> Gate:
        self.check_steps(setup.facts.steps)
        variant, facts, found = setup.variant, setup.facts, self._found(setup.variant, setup.facts)
        if variant is not None and found is not None:
            note = outside(variant.profile, found.guidance, facts)
            setup.record.note = ", ".join(filter(None, [note, PLAIN_IS_NEARER * found.plain_is_nearer]))
        elif variant is not None and variant.profile is not None and not self._lists(variant, facts):
            setup.record.note = outside(variant.profile, variant.profile.guidance, facts)
        return ScheduleGate(self.schedule(variant, facts))

    def count(self, facts: Facts) -> int:
        """So many steps are computed."""
        return max(budget(self.factor, facts.steps), min(2, facts.steps))

    def schedule(self, variant: Variant | None, facts: Facts) -> tuple[int, ...]:
        """The steps to compute: by lists of the model, else by its profile, else by what all published lists share."""
        count = self.count(facts)
        lists = self._lists(variant, facts)
        profile = None if variant is None else variant.profile
        if lists or profile is None or not covers(profile.sigma, facts.sigmas):
            return published.schedule(lists, facts, count)
        # The first steps decide the layout: on the demo model it costs more to skip one of them than any profile says. So
        # the points that a forecast is drawn through are computed first, and one more.
        lead = min(self.order + 2, max(1, count // 4)) if self.order else 1
        return spread(expected_changes(profile.sigma, profile.change, facts.sigmas), count, lead)

    def _lists(self, variant: Variant | None, facts: Facts) -> list[StepList]:
        return [] if variant is None else published.suited(variant.step_lists, variant.profile, facts)

    def _found(self, variant: Variant | None, facts: Facts) -> StepList | None:
        """The calibration's list that is nearest to the run and its count; None without one."""
        share = self.count(facts) / facts.steps
        made = [each for each in self._lists(variant, facts) if each.guidance is not None]
        return min(made, key=lambda each: abs(math.log(len(each.computed) / each.steps / share)), default=None)


def parse(setting: str) -> Speedup:
    """`1.5x`."""
    factor = to_float(setting.lower().removesuffix("x"))
    if not 1 < factor <= MAX_SPEEDUP:
        raise ArgumentTypeError(f"'{setting}' is not a speed-up above 1x and at most {MAX_SPEEDUP:g}x; try 1.5x")
    return Speedup(factor)
