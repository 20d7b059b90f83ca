"""Placed steps: which steps to compute is settled before the loop, from how much the output is expected to change.

No signal is read, so nothing waits for the device and no tap is needed. The steps are placed so that the largest change
that accumulates over a run of skipped steps is as small as it can be, found exactly by dynamic programming, as LeMiCa
(arXiv 2511.00090) and DPCache (arXiv 2602.22654) place theirs.
"""

import math
from collections.abc import Sequence

import numpy as np

from mflux_teacache_plugin.caching.gate import Change, Verdict


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


def place(changes: Sequence[float], computed: int, lead: int = 1) -> tuple[int, ...]:
    """The steps to compute, `computed` of them, the first `lead` and the last always among them.

    Of all placements the largest change from a computed step to the last step that reuses it is least; of those that
    share it, the one whose squares add up to least.

    Args:
        changes: the change expected from each step to the next, not negative; one fewer than there are steps.
        computed: between lead + 1 and the number of steps, or 1 where there is one step.
    """
    if lead > 1:
        before = lead - 1
        return (*range(before), *(before + step for step in place(changes[before:], computed - before)))
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


class PlacedGate:
    """Compute these steps, skip the others."""

    def __init__(self, computed: Sequence[int]) -> None:
        self.computed = frozenset(computed)

    def reset(self) -> None:
        pass

    def __call__(self, step: int, change: Change) -> Verdict:
        if step in self.computed:
            return Verdict(skip=False, reason="placed here")
        return Verdict(skip=True, reason="between placed steps")
