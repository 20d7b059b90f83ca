"""A speed-up: a schedule, settled before the loop from how much the output is expected to change.

No signal is read, so nothing waits for the device and no tap is needed. The computed steps are chosen so that the largest
change that accumulates over a run of skipped steps is as small as it can be, found exactly by dynamic programming, as LeMiCa
(arXiv 2511.00090) and DPCache (arXiv 2602.22654) choose theirs.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Change, Facts, Gate, Verdict
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, Setup, plain, to_float

if TYPE_CHECKING:
    from mflux_teacache_plugin.variants import Variant

#: Speed-ups lie in (1, MAX_SPEEDUP].
MAX_SPEEDUP = 10.0

#: With fewer steps than this, as distilled models take, each of them changes the whole picture.
LEAST_STEPS = 6


def covers(knots: Sequence[float], sigmas: Sequence[float]) -> bool:
    """Whether a profile over these σ (falling) reaches over a run at `sigmas`.

    It may begin one of the profile's own steps earlier and end one later: twice the steps end at half the last σ.
    """
    earliest, latest = 2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2]
    return max(sigmas) <= earliest and min(sigmas) >= latest


def expected_changes(knots: Sequence[float], accumulated: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """The change expected from each of the steps at `sigmas` (falling) to the next: one fewer than sigmas.

    Args:
        knots: a profile's σ, falling.
        accumulated: the output's relative L1 change since the first knot, at each knot; never falls.
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
    share it, the one whose squares add up to least.

    Args:
        changes: the change expected from each step to the next, not negative; one fewer than there are steps.
        computed: between lead + 1 and the number of steps, or 1 where there is one step.
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
    for i in range(steps):
        cost[i, i + 1 :] = reached[i:-1] - reached[i]
    largest = _best(cost, computed, np.maximum)[0]
    return _best(np.where(cost <= largest * (1 + 1e-9), cost**2, np.inf), computed, np.add)[1]


def _best(cost: np.ndarray, computed: int, join: np.ufunc) -> tuple[float, tuple[int, ...]]:
    """The least joined cost of a path of `computed` steps from the first to the last, and the path."""
    steps = len(cost)
    best = np.full(steps, np.inf)  # of reaching each step with the hops taken so far
    best[0] = 0.0
    came_from = []
    for _ in range(computed - 1):
        joined = join(best[:, None], cost)
        came_from.append(joined.argmin(axis=0))
        best = joined.min(axis=0)
    path = [steps - 1]
    for origin in reversed(came_from):
        path.append(int(origin[path[-1]]))
    return float(best[-1]), tuple(reversed(path))


def fill(computed: Sequence[int], count: int) -> tuple[int, ...]:
    """Add to a list of computed steps until there are `count`, each time in the middle of the widest gap."""
    steps = list(computed)
    while len(steps) < count:
        gap = max(range(1, len(steps)), key=lambda index: steps[index] - steps[index - 1])
        steps.insert(gap, (steps[gap - 1] + steps[gap]) // 2)
    return tuple(steps)


class ScheduleGate:
    """Compute these steps, skip the others."""

    def __init__(self, computed: Sequence[int]) -> None:
        self.computed = frozenset(computed)

    def reset(self) -> None:
        pass

    def __call__(self, step: int, change: Change) -> Verdict:
        if step in self.computed:
            return Verdict(skip=False, reason="in the schedule")
        return Verdict(skip=True, reason="not in the schedule")


@dataclass(frozen=True)
class Speedup(Method):
    """As many steps as give the speed-up, where the variant's profile wants them; evenly spaced without one."""

    factor: float = 1.5
    usual_forecast: ClassVar[str] = "linear"
    keeps: ClassVar[Literal["prediction", "residual"]] = "prediction"

    @property
    def setting(self) -> str:
        return f"{plain(self.factor)}x"

    def check_steps(self, steps: int | None) -> None:
        least = ORDERS[self.forecast] + 2  # the points that a forecast is drawn through, and the last step
        enough = max(LEAST_STEPS, math.ceil(least * self.factor - 1e-9))
        if steps is not None and steps < enough:
            raise SettingsError(
                f"{steps} steps at {self} cannot be met",
                cause=f"the first and the last step are always computed, {least} at least in all",
                hint=f"take at least {enough} --steps, or a smaller speed-up",
            )

    def notes(self, variant: "Variant | None", name: str) -> Sequence[str]:
        if variant is not None:
            return ()
        return (f"there are no coefficients for {name}, so {self} spaces the computed steps evenly",)

    def gate(self, setup: Setup) -> Gate:
        self.check_steps(setup.facts.steps)
        return ScheduleGate(self.schedule(setup.variant, setup.facts))

    def schedule(self, variant: "Variant | None", facts: Facts) -> tuple[int, ...]:
        """The steps to compute. SettingsError if the variant's profile does not reach over the run."""
        count = budget(self.factor, facts.steps)
        order = ORDERS[self.forecast]
        # The first steps decide the layout: on the demo model it costs more to skip one of them than any profile says. So
        # the points that a forecast is drawn through are computed first, and one more.
        lead = min(order + 2, max(1, count // 4)) if order else 1
        changes = [1.0] * (facts.steps - 1)
        if variant is None:
            return spread(changes, count, lead)
        lists = {
            len(published.computed): published.computed
            for published in variant.step_lists
            if published.steps == facts.steps
        }
        if count in lists:
            return lists[count]
        profile = variant.profile
        if profile is not None:
            if not covers(profile.sigma, facts.sigmas):
                low, high = min(facts.sigmas), max(facts.sigmas)
                raise SettingsError(
                    f"the profile of {variant.id} does not cover this run",
                    cause=f"the run's σ go from {high:.3g} to {low:.3g}, "
                    f"the profile's from {profile.sigma[0]:.3g} to {profile.sigma[-1]:.3g}",
                    hint="calibrate with as many steps, or remove [profile] from the file",
                )
            changes = expected_changes(profile.sigma, profile.change, facts.sigmas)
        elif shorter := [computed for size, computed in lists.items() if size < count]:
            return fill(max(shorter, key=len), count)
        return spread(changes, count, lead)

    def why_nothing(self, generation: Generation, variant: "Variant | None") -> str:
        return "the speed-up leaves no step out; ask for a higher one"


def parse(setting: str) -> Speedup:
    """`1.5x`."""
    factor = to_float(setting.lower().removesuffix("x"))
    if not 1 < factor <= MAX_SPEEDUP:
        raise ArgumentTypeError(f"'{setting}' is not a speed-up above 1x and at most {MAX_SPEEDUP:g}x; try 1.5x")
    return Speedup(factor)
