"""Schedules that recorded predictions speak for.

Over skipped steps a sampler adds up the widths in σ times (forecast - truth). That is a sum of recorded predictions, so that its
square follows from their inner products, the Gram matrix, alone. Dynamic programming finds the steps whose gaps add up to the
least error, as MeanCache (UnicomAI, ICLR 2026) and LeMiCa (arXiv 2511.00090) find theirs for other errors. It knows nothing of what
the model makes of an error later, so a schedule from here is a proposal: pictures decide.
"""

from collections.abc import Sequence

import numpy as np

from mflux_teacache_plugin.calibration.traces import Trace

#: How much a picture makes of an error: shares of the run → factor, as measured at guidance 4 on an earlier demo model.
AMPLIFIED = ((0.0, 0.08, 0.3, 0.6, 1.0), (27.0, 27.0, 10.0, 3.0, 0.7))

#: Two branches make up the guided prediction if they leave no more of its square than this.
EXPLAINED = 1e-3


def gram_at(trace: Trace, guidance: float | None) -> np.ndarray:
    """(steps, steps): the inner products of a recorded run's guided predictions, or of what another guidance would have made
    of its branches' predictions where these explain the recorded ones.
    """
    steps, gram = len(trace.sigma), trace.gram
    assert gram is not None
    own = gram[:steps, :steps]
    if guidance is None or trace.guidance is None or guidance == trace.guidance or len(gram) < 3 * steps:
        return own
    sums = gram.reshape(3, steps, 3, steps).trace(axis1=1, axis2=3)  # over the steps: guided, first and second branch
    share, *_ = np.linalg.lstsq(sums[1:, 1:], sums[1:, 0], rcond=None)
    left = sums[0, 0] - share @ sums[1:, 0]
    if left > EXPLAINED * sums[0, 0] or abs(share.sum() - 1) > 0.05:
        return own
    prompted = np.array([1, 0] if share[0] > share[1] else [0, 1])  # which branch has the prompt
    first, second = guidance * prompted + (1 - guidance) * (1 - prompted)
    mixed = np.hstack([first * np.eye(steps), second * np.eye(steps)])
    return mixed @ gram[steps:, steps:] @ mixed.T


def errors(gram: np.ndarray, sigma: Sequence[float], order: int, weights: np.ndarray) -> np.ndarray:
    """(steps, steps, steps): the squared error of skipping all between two computed steps, the second and third index, where
    the first is the computed step before them, or the same as the second where there is none; infinite unless they rise.

    `order` is the forecast's, 0 or 1; `weights` one factor a step.
    """
    at, steps = np.array(sigma), len(sigma)
    widths = weights * (at - np.append(at[1:], 0.0))
    cost = np.full((steps, steps, steps), np.inf)
    for last in range(steps - 1):
        skipped = np.arange(last + 1, steps - 1)
        for before in range(last + 1 if order else 1):
            missed = np.zeros((len(skipped), steps))
            missed[:, last] = 1.0
            if order and before < last:
                reach = (at[last] - at[skipped]) / (at[before] - at[last])
                reach[reach > 1.0001] = 0.0  # no line is carried further than its points lie apart
                missed[:, last] += reach
                missed[:, before] -= reach
            missed[np.arange(len(skipped)), skipped] -= 1.0
            summed = np.cumsum(missed * widths[skipped, None], axis=0)
            rows = slice(before, before + 1) if order else slice(0, last + 1)
            cost[rows, last, last + 1] = 0.0
            cost[rows, last, last + 2 :] = ((summed @ gram) * summed).sum(axis=1)
    return cost


def optimum(cost: np.ndarray, count: int) -> tuple[int, ...]:
    """The `count` steps, the first and the last among them, whose `errors` add up to least."""
    steps = len(cost)
    best = np.full((steps, steps), np.inf)  # of ending in two computed steps
    best[0, 0] = 0.0
    came_from = []
    for _ in range(count - 1):
        joined = best[:, :, None] + cost
        came_from.append(joined.argmin(axis=0))
        best = joined.min(axis=0)
    before, last = int(best[:, -1].argmin()), steps - 1
    path = [last]
    for origin in reversed(came_from):
        path.append(before)
        before, last = int(origin[before, last]), before
    return tuple(reversed(path))


def error_of(cost: np.ndarray, computed: Sequence[int]) -> float:
    """Of a schedule: its gaps' `errors`, added up."""
    return float(sum(cost[each] for each in zip((0, *computed[:-2]), computed[:-1], computed[1:], strict=True))) + 1e-30


def amplification(steps: int) -> np.ndarray:
    """`AMPLIFIED`, for each step of a run."""
    shares, factors = AMPLIFIED
    return np.exp(np.interp(np.arange(steps) / max(1, steps - 1), shares, np.log(factors)))
