"""Moving the steps of a schedule by what pictures say of it; the pictures are pretended."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin.calibration import climb as module
from mflux_teacache_plugin.calibration.climb import climb, neighbour
from mflux_teacache_plugin.measure.metrics import Similarity

STEPS, START, BEST = 24, (0, 5, 10, 15, 23), (0, 2, 4, 9, 23)


class Pictures:
    """Nearer the nearer a schedule comes to BEST; the second picture always looks better by 3 dB."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, computed: Sequence[int], picture: int) -> Similarity:
        self.made.append((tuple(computed), picture))
        return Similarity(0.9, 50.0 + 3 * picture - sum(abs(a - b) for a, b in zip(computed, BEST, strict=True)))


def test_it_finds_what_the_pictures_like_best() -> None:
    pictures = Pictures()
    assert climb(START, STEPS, 2, pictures, work=1e6) == BEST
    assert len({computed for computed, _ in pictures.made}) > 1 + module.PATIENCE, "each gain begins the count anew"


def test_the_same_search_makes_the_same_pictures() -> None:
    first, second = Pictures(), Pictures()
    assert climb(START, STEPS, 2, first, 300) == climb(START, STEPS, 2, second, 300)
    assert first.made == second.made and len(set(first.made)) == len(first.made), "and none twice"


def test_it_keeps_to_the_work_that_it_is_given() -> None:
    pictures = Pictures()
    climb(START, STEPS, 3, pictures, 100)
    tried = sum(len(computed) for computed, _ in pictures.made[3:])  # the first three are of the start
    assert 100 <= tried <= 100 + 3 * len(START)


def test_the_start_stays_where_nothing_is_nearer() -> None:
    pictures = Pictures()
    assert climb(BEST, STEPS, 3, pictures, 1e9) == BEST
    tried = {computed for computed, _ in pictures.made} - {BEST}
    assert len(tried) == module.PATIENCE
    assert len(pictures.made) == 3 + 2 * len(tried), "two pictures that are further away are enough"


def test_one_picture_that_gets_worse_outweighs_a_mean_that_gets_better() -> None:
    def near(computed: Sequence[int], picture: int) -> Similarity:
        moved = tuple(computed) != START
        return Similarity(0.9, 30.0 + (-2 if picture == 0 else 3) * moved)

    assert climb(START, STEPS, 4, near, 1e4) == START


@given(st.sets(st.integers(1, STEPS - 2), max_size=STEPS - 2), st.integers(0, 99))
def test_a_neighbour_has_one_step_elsewhere(between: set[int], seed: int) -> None:
    computed = (0, *sorted(between), STEPS - 1)
    moved = neighbour(computed, STEPS, random.Random(seed))
    assert len(moved) == len(computed) and sorted(set(moved)) == [*moved]
    assert (moved[0], moved[-1]) == (0, STEPS - 1) and len({*moved} - {*computed}) <= 1


@pytest.mark.parametrize("computed", [(0,), (0, 5)])
def test_where_no_step_can_move(computed: tuple[int, ...]) -> None:
    assert climb(computed, 6, 1, lambda *_: Similarity(0.9, 30.0), 1e9) == computed
