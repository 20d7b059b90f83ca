"""TeaCache's gate against an independent restatement of upstream's rule, and what it adds to that rule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin.methods.teacache import MAX_CONSECUTIVE_SKIPS, TeaCacheGate
from mflux_teacache_plugin.variants.catalog import load_catalog

CHANGES = st.lists(st.floats(0, 1), max_size=60)
POLYNOMIALS = {
    id: entry.variant.polynomial
    for id, entry in sorted(load_catalog(environ={}).variants.items())
    if entry.variant.polynomial is not None
}
STEPS = 1000  #: more than any test takes


def upstream(changes, polynomial, threshold):
    """Which steps TeaCache4FLUX skips, between a first and a last step that it computes: its rule, in numpy."""
    skipped, accumulated = [], 0.0
    for change in changes:
        accumulated += np.poly1d(polynomial)(change)
        skip = accumulated < threshold
        if not skip:
            accumulated = 0.0
        skipped.append(bool(skip))
    return skipped


def gate(polynomial, threshold, fitted_range=None, steps=STEPS, guard=(1, 1)):
    return TeaCacheGate(steps, threshold, polynomial, fitted_range, guard)


def ask(gate, *changes, start=1):
    """The gate's verdicts on these changes, step by step."""
    return [gate(step, lambda change=change: change) for step, change in enumerate(changes, start)]


def unread():
    raise AssertionError("this step needs no signal")


def longest_run(values):
    longest = run = 0
    for value in values:
        run = run + 1 if value else 0
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize("variant_id", POLYNOMIALS)
@given(changes=CHANGES, threshold=st.floats(0.01, 2))
def test_decides_as_upstream_does(variant_id, changes, threshold):
    polynomial = POLYNOMIALS[variant_id]
    expected = upstream(changes, polynomial, threshold)
    if longest_run(expected) > MAX_CONSECUTIVE_SKIPS:
        return  # the cap is ours; the test below is about it
    assert [verdict.skip for verdict in ask(gate(polynomial, threshold), *changes)] == expected


@given(changes=CHANGES, threshold=st.floats(0.01, 2))
def test_never_skips_more_than_the_cap_in_a_row(changes, threshold):
    verdicts = ask(gate((0, 0, 0, 1e-4, 0), threshold), *changes)
    assert longest_run([verdict.skip for verdict in verdicts]) <= MAX_CONSECUTIVE_SKIPS


def test_the_cap_ends_a_run_of_skips():
    verdicts = ask(gate((0, 0, 0, 0, 0), 0.1), *[0.5] * (MAX_CONSECUTIVE_SKIPS + 2))
    assert [verdict.skip for verdict in verdicts] == [True] * MAX_CONSECUTIVE_SKIPS + [False, True]
    assert "in a row" in verdicts[MAX_CONSECUTIVE_SKIPS].reason


@given(change=st.floats(0, 10), low=st.floats(0.01, 0.2), width=st.floats(0.01, 1))
def test_the_fitted_range_clamps_below_and_computes_above(change, low, width):
    high = low + width
    (verdict,) = ask(gate((0, 0, 0, 1, 0), 100, (low, high)), change)
    assert verdict.skip == (change <= high)
    if verdict.skip:
        assert verdict.accumulated == max(change, low)


@pytest.mark.parametrize("change", [math.nan, math.inf, -math.inf])
def test_a_signal_that_is_not_finite_computes_and_forgets(change):
    before, verdict, after = ask(gate((0, 0, 0, 1, 0), 0.5), 0.4, change, 0.4)
    assert before.skip
    assert not verdict.skip and verdict.forget
    assert after.skip  # the accumulator started anew


def test_reset_starts_the_accumulation_anew():
    asked = gate((0, 0, 0, 1, 0), 0.5)
    assert ask(asked, 0.4)[0].skip
    asked.reset()
    assert ask(asked, 0.4, start=2)[0].skip


@given(first=st.integers(1, 5), last=st.integers(1, 5), steps=st.integers(1, MAX_CONSECUTIVE_SKIPS + 2))
def test_guarded_steps_compute_and_read_no_signal(first, last, steps):
    asked = gate((0, 0, 0, 0, 0), 2, steps=steps, guard=(first, last))
    for step in range(steps):
        guarded = step < first or step >= steps - last
        verdict = asked(step, unread if guarded else lambda: 0.1)
        assert verdict.skip is not guarded
        if guarded:
            assert verdict.reason == ("first step" if step < first else "last step")


def test_a_guarded_step_starts_the_accumulation_anew():
    asked = gate((0, 0, 0, 1, 0), 0.5, steps=9, guard=(1, 1))
    assert [verdict.skip for verdict in ask(asked, 0.3, 0.1)] == [True, True]
    asked(0, unread)
    assert [verdict.skip for verdict in ask(asked, 0.4, 0.4)] == [True, False]


def test_without_a_polynomial_the_change_itself_adds_up():
    verdicts = ask(TeaCacheGate(STEPS, 0.5), 0.2, 0.2, 0.2, 0.2)
    assert [verdict.skip for verdict in verdicts] == [True, True, False, True]
    assert verdicts[1].accumulated == pytest.approx(0.4)


def test_floor_of_flux1_dev_lets_no_threshold_below_it_skip():
    """Users of other TeaCache ports met this as "no skips at 0.10 and 0.15"."""
    polynomial = POLYNOMIALS["flux1-dev"]
    lowest = min(gate(polynomial, 1).estimate(x) for x in np.linspace(0, 0.5, 5001))
    assert lowest == pytest.approx(0.1803, abs=5e-5)
