"""Schedules from lists: which steps of a real checkpoint others, or a calibration's pictures, found worth computing.

A list for 50 steps is followed to the letter in a run of 50 steps. For any other run it says how dense the computed steps
lie along σ: each stands at its share of the way, on whatever σ grid the run's sampler has there, and between two listed steps
there is one computed step's worth. Lists are compared by how many steps they compute: ten steps lie where a list of ten has
them, whether the run has 20 steps or 50. Of a calibration's lists, a run follows those made at the nearest guidance and, of
these, for the nearest number of steps.

Each schedule is the next longer one without one step, so one more step asked for never loses one. Only from one list of
the run's own number of steps to the next does it not hold: they were not made out of each other.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.variants.variant import Profile, StepList

#: Places in a run, as shares of it.
PLACES = (0.0, 0.02, 0.06, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 1.0)

COMMON: Mapping[int, Sequence[float]] = {
    10: (0.0, 0.09, 0.2, 0.27, 0.39, 0.54, 0.69, 0.84, 0.92, 0.97, 1.0),
    16: (0.0, 0.07, 0.2, 0.31, 0.53, 0.66, 0.74, 0.83, 0.88, 0.93, 1.0),
    20: (0.0, 0.05, 0.15, 0.25, 0.44, 0.66, 0.74, 0.81, 0.86, 0.92, 1.0),
    25: (0.0, 0.04, 0.12, 0.2, 0.39, 0.68, 0.74, 0.81, 0.86, 0.93, 1.0),
}
"""What the published lists have in common, for a model that has none: how many steps are computed → which share of
them, but for the last, lies before each of `PLACES`. A dense first fifth, an even middle, a dense end.

Means over the shipped lists for 50 steps: those of 10 to 12 steps, of 13 to 17, of 18 to 22 and of 23 to 26.
"""


def suited(lists: Sequence[StepList], profile: Profile | None, facts: Facts) -> list[StepList]:
    """Of a model's lists those of the runs that are most like this one; none where its profile's run is more like it.

    Lists without a guidance suit all runs alike.
    """

    def distance(guidance: float | None, steps: int) -> tuple[float, float]:
        unlike = abs(np.log(max(guidance, 0.1) / max(facts.guidance, 0.1))) if guidance and facts.guidance else 0.0
        return float(unlike), float(abs(np.log(steps / (facts.first + facts.steps))))

    made = [each for each in lists if each.guidance is not None]
    distances = [distance(each.guidance, each.steps) for each in made]
    if not made:
        return list(lists)
    if profile is not None and distance(profile.guidance, len(profile.sigma)) < min(distances):
        return []
    return [each for each, at in zip(made, distances, strict=True) if at == min(distances)]


def counts(listed: StepList, places: Sequence[float] | np.ndarray) -> np.ndarray:
    """How many of a list's steps lie before each place, with one step's worth between two of them."""
    steps = np.array(listed.computed) / (listed.steps - 1)
    return np.interp(np.asarray(places), steps, np.arange(len(listed.computed)))


def schedule(lists: Sequence[StepList], facts: Facts, count: int) -> tuple[int, ...]:
    """The steps to compute, `count` of the run's (2 or more, unless it has one), the first and the last among them.

    The lists are those `suited` to the run; empty for what all have in common. Of two that compute as many steps the first is
    followed to the letter, and the mean of their densities elsewhere. Where the run begins late, the lists' first part is left
    out.
    """
    steps, whole = facts.steps, facts.first + facts.steps
    at = np.arange(facts.first, whole) / max(1, whole - 1)
    before = {size: np.interp(at, PLACES, shares) * (size - 1) for size, shares in COMMON.items()}
    exact = {steps: tuple(range(steps))}
    if lists:
        sizes = {len(each.computed) for each in lists}
        alike = {size: [each for each in lists if len(each.computed) == size] for size in sizes}
        before = {size: np.mean([counts(each, at) for each in alike[size]], axis=0) for size in sizes}
        if facts.first == 0:
            exact |= {len(each.computed): each.computed for each in reversed(lists) if each.steps == steps}
    dense = {size: np.append(np.diff(reached), 1.0) for size, reached in before.items()}
    longer: tuple[int, ...] = exact[steps]
    shorter: tuple[int, ...] = (0, steps - 1)
    for size in sorted({*dense, *exact}, reverse=True):
        if size < steps:
            here = exact.get(size) or nearest(longer, _reached(dense, size, whole / steps), size)
            if size == count:
                return here
            if size < count:
                shorter = here
                break
            longer = here
    computed = list(longer)
    while len(computed) > count:
        reached = _reached(dense, len(computed) - 1, whole / steps)
        # without the step between whose neighbours the least of what is wanted lies; of equals the latest
        spare = [index for index in range(1, len(computed) - 1) if computed[index] not in shorter]
        gaps = {index: round(reached[computed[index + 1]] - reached[computed[index - 1]], 9) for index in spare}
        del computed[min(spare, key=lambda index: (gaps[index], -index))]
    return tuple(computed)


def nearest(longer: Sequence[int], reached: np.ndarray, count: int) -> tuple[int, ...]:
    """So many steps of a longer schedule, with as nearly as can be one wanted between two of them; `reached`: how many of them
    are wanted before each.
    """
    at = reached[list(longer)]
    cost = np.where(np.tri(len(at), dtype=bool), np.inf, (at - at[:, None]) ** 2)
    return tuple(longer[index] for index in path_of_least(cost, count, np.add)[1])


def _reached(dense: Mapping[int, np.ndarray], count: int, late: float) -> np.ndarray:
    """How many of `count` computed steps are wanted before each step; `late`: the whole run over its active steps."""
    nearest = count * late
    low = max((size for size in dense if size <= nearest), default=min(dense))
    high = min((size for size in dense if size >= nearest), default=max(dense))
    weight = (nearest - low) / (high - low) if high > low else 0.0
    worth = (1 - weight) * dense[low] + weight * dense[high]
    full = np.zeros(len(worth), dtype=bool)
    while True:  # what goes beyond 1 is spread over the others
        scaled = worth * (count - full.sum()) / worth[~full].sum()
        beyond = ~full & (scaled > 1)
        if not beyond.any():
            return np.cumsum(np.where(full, 1.0, scaled)) - np.where(full, 1.0, scaled)
        full |= beyond


def path_of_least(cost: np.ndarray, computed: int, join: np.ufunc) -> tuple[float, tuple[int, ...]]:
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
