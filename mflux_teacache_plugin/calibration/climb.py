"""Better schedules by trying: one computed step is placed elsewhere, and stays there if the pictures come nearer.

What misses recorded predictions least is no guide to pictures, so nothing but pictures decides. The moves are drawn at random,
from a fixed seed: the same search finds its pictures on disk when it is repeated.
"""

import random
from collections.abc import Callable, Sequence

from mflux_teacache_plugin.calibration.propose import nearness
from mflux_teacache_plugin.measure.metrics import Similarity, summarize

#: After so many moves in a row that bring nothing nearer, the search ends.
PATIENCE = 30

#: So many are drawn for one that was not tried yet.
DRAWS = 100

#: The share of the moves that go to one of the next two steps; the others go anywhere.
NEAR = 0.75


def climb(
    start: Sequence[int], steps: int, pictures: int, near: Callable[[Sequence[int], int], Similarity], work: float
) -> tuple[int, ...]:
    """The nearest of the schedules that were tried, `start` among them; all are of a run of so many `steps`.

    `near(schedule, picture)` is how near one of the `pictures` comes to all steps computed; `work` is how many steps may be
    computed for that, about.
    """
    draw, best, failed = random.Random(0), tuple(start), 0
    found = [near(best, picture) for picture in range(pictures)]
    seen = {best}
    while work > 0 and failed < PATIENCE:
        moved = next((each for each in (neighbour(best, steps, draw) for _ in range(DRAWS)) if each not in seen), None)
        if moved is None:
            break
        seen.add(moved)
        failed += 1
        tried: dict[int, Similarity] = {}
        for picture in sorted(range(pictures), key=lambda each: found[each].psnr):  # the worst tells the most
            tried[picture] = near(moved, picture)
            work -= len(moved)
            before = [found[each] for each in tried]
            if len(tried) > 1 and summarize([*tried.values()]).psnr < summarize(before).psnr:
                break
        else:
            now = [tried[picture] for picture in range(pictures)]
            if nearness(summarize(now)) > nearness(summarize(found)):
                best, found, failed = moved, now, 0
    return best


def neighbour(computed: Sequence[int], steps: int, draw: random.Random) -> tuple[int, ...]:
    """The schedule with one step placed elsewhere, never the first or the last; itself if the place is taken."""
    if len(computed) < 3:
        return tuple(computed)
    step = draw.choice(computed[1:-1])
    place = step + draw.choice((-2, -1, -1, 1, 1, 2)) if draw.random() < NEAR else draw.randrange(1, steps - 1)
    if place in computed or not 0 < place < steps - 1:
        return tuple(computed)
    return tuple(sorted({*computed, place} - {step}))
