"""Speedup steps against brute force, the expected changes against their sum, and the gate."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.methods.method import Setup
from mflux_teacache_plugin.methods.speedup import (
    PLAIN_IS_NEARER,
    ScheduleGate,
    Speedup,
    budget,
    covers,
    expected_changes,
    outside,
    spread,
)
from mflux_teacache_plugin.variants import Profile
from mflux_teacache_plugin.variants.variant import StepList

CHANGES = st.lists(st.integers(0, 300).map(lambda hundredths: hundredths / 100), min_size=1, max_size=8)


def costs(changes, computed):
    """What accumulates from each computed step to the last one that reuses it."""
    return [sum(changes[here : after - 1]) for here, after in itertools.pairwise(computed)]


@st.composite
def profiles(draw):
    """σ falling and the change accumulated, as a coefficient file has them."""
    knots = sorted(draw(st.sets(st.integers(0, 1000), min_size=2, max_size=9)), reverse=True)
    rises = draw(st.lists(st.floats(0, 5), min_size=len(knots) - 1, max_size=len(knots) - 1))
    return [knot / 1000 for knot in knots], [0.0, *np.cumsum(rises).tolist()]


@given(CHANGES, st.data())
def test_no_placement_accumulates_less_and_none_of_the_same_has_smaller_squares(changes, data):
    steps = len(changes) + 1
    count = data.draw(st.integers(2, steps))
    placed = spread(changes, count)
    assert placed[0] == 0 and placed[-1] == steps - 1
    assert len(placed) == count and list(placed) == sorted(set(placed))
    others = [(0, *middle, steps - 1) for middle in itertools.combinations(range(1, steps - 1), count - 2)]
    largest = min(max(costs(changes, other)) for other in others)
    assert max(costs(changes, placed)) == pytest.approx(largest, abs=1e-6)
    squares = min(
        sum(np.square(costs(changes, other))) for other in others if max(costs(changes, other)) <= largest + 1e-9
    )
    assert sum(np.square(costs(changes, placed))) == pytest.approx(squares, abs=1e-6)


def test_one_step_is_computed():
    assert spread([], 1) == (0,)


def test_even_changes_are_placed_evenly():
    assert spread([1.0] * 8, 5) == (0, 2, 4, 6, 8)


def test_of_placements_with_the_same_largest_change_the_others_are_made_even():
    changes = [2.0, 2.0, 1.0, 4.0, 1.0, 2.0, 3.0]
    assert costs(changes, (0, 1, 4, 7)) == [0, 3, 3], "which adds up to as much, but less evenly"
    assert spread(changes, 4) == (0, 2, 4, 7)
    assert costs(changes, (0, 2, 4, 7)) == [2, 1, 3]


def test_where_much_changes_more_is_computed():
    early = spread([4.0, 4.0, 4.0, 0.1, 0.1, 0.1, 0.1, 0.1], 5)
    assert early[:4] == (0, 1, 2, 3)
    late = spread([0.1, 0.1, 0.1, 0.1, 0.1, 4.0, 4.0, 4.0], 5)
    assert late[-3:] == (6, 7, 8)


@given(st.floats(1, 10, exclude_min=True), st.integers(1, 200))
def test_a_budget_is_at_least_as_fast_as_was_asked_and_no_smaller_than_that_takes(speedup, steps):
    count = budget(speedup, steps)
    assert 1 <= count <= steps
    assert count == 1 or steps / count >= speedup * (1 - 1e-9)
    assert steps / (count + 1) < speedup


@pytest.mark.parametrize(("speedup", "steps", "count"), [(2, 50, 25), (1.5, 25, 16), (3, 9, 3), (2.5, 25, 10)])
def test_budgets(speedup, steps, count):
    assert budget(speedup, steps) == count


@given(profiles(), st.lists(st.floats(0, 1), min_size=2, max_size=12, unique=True))
def test_the_expected_changes_add_up_to_what_the_profile_says(profile, shares):
    knots, accumulated = profile
    sigmas = [knots[-1] + share * (knots[0] - knots[-1]) for share in sorted(shares, reverse=True)]
    changes = expected_changes(knots, accumulated, sigmas)
    assert len(changes) == len(sigmas) - 1
    assert min(changes) >= -1e-9
    first, last = np.interp([sigmas[0], sigmas[-1]], knots[::-1], accumulated[::-1])
    assert sum(changes) == pytest.approx(last - first, abs=1e-6)


@given(profiles())
def test_at_the_profiles_own_sigmas_the_changes_are_its_own(profile):
    knots, accumulated = profile
    assert expected_changes(knots, accumulated, knots) == pytest.approx(np.diff(accumulated), abs=1e-6)


def test_beyond_a_profiles_ends_the_change_goes_on_as_fast():
    knots, accumulated = (0.9, 0.5, 0.1), (0.0, 0.4, 2.0)
    assert expected_changes(knots, accumulated, (1.0, 0.9, 0.1, 0.0)) == pytest.approx([0.1, 2.0, 0.4])


@pytest.mark.parametrize(
    ("sigmas", "covered"),
    [
        ((0.6, 0.5, 0.4), True),
        ((0.69, 0.5, 0.31), True),  # one of the profile's own steps further at either end
        ((0.75, 0.5, 0.4), False),
        ((0.6, 0.5, 0.2), False),
    ],
)
def test_a_profile_covers_a_run_that_reaches_little_beyond_it(sigmas, covered):
    assert covers((0.6, 0.5, 0.4), sigmas) is covered


def test_the_shipped_profiles_cover_the_usual_runs():
    """Klein base was recorded with 25 steps, and is run with 50."""
    from mflux_teacache_plugin.variants.catalog import load_catalog

    knots = load_catalog(environ={}).variants["flux2-klein-base-4b"].variant.profile.sigma
    shift = math.exp(1.70)  # of mflux 0.24 for 50 steps at 512x512
    sigmas = [shift / (shift + 50 / (50 - step) - 1) for step in range(50)]
    assert covers(knots, sigmas)


# what a profile did not record


def falling(shift, steps):
    """σ of so many steps, shifted towards noise."""
    return tuple(shift / (shift + steps / (steps - step) - 1) for step in range(steps))


def profile_of(shift, steps, guidance=None):
    return Profile(sigma=falling(shift, steps), change=tuple(float(step) for step in range(steps)), guidance=guidance)


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        (Facts(falling(3, 50), guidance=4.0), ""),
        (Facts(falling(3, 25), guidance=5.0), ""),  # half of the steps on the same grid
        (Facts(falling(3, 50)[20:], first=20), ""),  # image to image
        (Facts(falling(1, 25)), "outside what was recorded: other sigmas"),
        (Facts(falling(3, 25), guidance=10.0), "outside what was recorded: guidance 10, not 4"),
        (Facts(falling(1, 25), guidance=1.0), "outside what was recorded: other sigmas, guidance 1, not 4"),
    ],
)
def test_a_run_that_a_profile_did_not_record_is_noted(facts, note):
    assert outside(profile_of(3, 50), 4.0, facts) == note


def test_without_a_recorded_guidance_none_is_noted():
    assert outside(profile_of(3, 50), None, Facts(falling(3, 50), guidance=10.0)) == ""


def test_the_gate_skips_all_steps_but_these_and_reads_nothing():
    gate = ScheduleGate((0, 3, 4))
    verdicts = [gate(step, None) for step in range(5)]
    assert [verdict.skip for verdict in verdicts] == [False, True, True, False, False]
    assert {verdict.reason for verdict in verdicts} == {"in the schedule", "not in the schedule"}


@pytest.mark.parametrize(
    ("forecast", "steps", "lead"),
    [
        ("reuse", 50, 1),
        ("linear", 50, 3),
        ("quadratic", 50, 4),
        ("linear", 24, 3),
        ("linear", 20, 2),
        ("quadratic", 26, 3),
    ],
)
def test_the_points_of_a_forecast_are_computed_first_and_one_more(forecast, steps, lead):
    facts = Facts(tuple(1 - step / steps for step in range(steps)))
    evenly = SimpleNamespace(step_lists=(), profile=Profile(sigma=(1.0, 0.0), change=(0.0, 1.0)))
    computed = Speedup(2.0, forecast=forecast).schedule(evenly, facts)
    first_skipped = next(step for step in range(steps) if step not in computed)
    assert first_skipped == lead and len(computed) == steps // 2


def test_a_lead_is_computed_and_the_rest_is_spread_behind_it():
    assert spread([1.0] * 9, 5, lead=3) == (0, 1, 2, 5, 9)
    assert spread([1.0] * 9, 5, lead=1) == (0, 2, 4, 6, 9)


# ---- a calibration's lists -------------------------------------------------------------------------------------------

CHOSEN = [
    StepList(steps=50, computed=(*range(0, 48, 2), 49), guidance=4.0, forecast="linear"),
    StepList(steps=24, computed=(*range(0, 22, 2), 23), guidance=4.0, forecast="linear"),
    StepList(steps=24, computed=(*range(11), 23), guidance=10.0, forecast="reuse", plain_is_nearer=True),
    StepList(steps=24, computed=(*range(5), 23), guidance=10.0, forecast="linear"),
]
CALIBRATED = SimpleNamespace(step_lists=CHOSEN, profile=profile_of(3, 24, guidance=4.0))


def test_the_profile_serves_the_runs_that_are_more_like_its_own_than_like_a_lists():
    variant = SimpleNamespace(step_lists=CHOSEN[1:2], profile=profile_of(3, 50, guidance=4.0))
    alone = SimpleNamespace(step_lists=(), profile=variant.profile)
    for steps, own in ((24, False), (28, False), (40, True), (50, True)):
        facts = Facts(falling(3, steps), guidance=4.0)
        assert (Speedup(2.0).schedule(variant, facts) == Speedup(2.0).schedule(alone, facts)) is own


@pytest.mark.parametrize(
    ("guidance", "speedup", "computed"),
    [(4.0, 2.0, CHOSEN[1].computed), (9.0, 2.0, CHOSEN[2].computed), (10.0, 4.0, CHOSEN[3].computed)],
)
def test_a_run_follows_the_list_of_the_nearest_guidance_and_steps(guidance, speedup, computed):
    assert Speedup(speedup).schedule(CALIBRATED, Facts(falling(3, 24), guidance=guidance)) == computed
    twice = Speedup(2.0).schedule(CALIBRATED, Facts(falling(3, 48), guidance=4.0))
    assert len(twice) == 24 and np.diff(twice).max() <= 3, "48 steps are as 50"


@pytest.mark.parametrize(
    ("asked", "guidance", "order", "note"),
    [
        ("2x", 4.0, 1, ""),
        ("2x", 10.0, 0, PLAIN_IS_NEARER),
        ("2x+linear", 10.0, 1, PLAIN_IS_NEARER),
        ("4x", 10.0, 1, ""),
        ("2x", 30.0, 0, f"outside what was recorded: guidance 30, not 10, {PLAIN_IS_NEARER}"),
    ],
)
def test_the_list_says_what_stands_in_unless_somebody_asked_for_it(asked, guidance, order, note):
    setup = Setup(Facts(falling(3, 24), guidance=guidance), Generation(24), variant=CALIBRATED)
    cache = methods.parse(asked).cache(setup)
    assert (cache._kept["a call"]._points.maxlen - 1, setup.record.note) == (order, note)
