"""The gate against an independent restatement of upstream's rule, and what it adds to that rule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin.caching.gate import MAX_CONSECUTIVE_SKIPS, TeaCacheGate
from mflux_teacache_plugin.catalog import load_catalog

CHANGES = st.lists(st.floats(0, 1), max_size=60)
SHIPPED = sorted(load_catalog(environ={}).variants)


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


def longest_run(values):
    longest = run = 0
    for value in values:
        run = run + 1 if value else 0
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize("variant_id", SHIPPED)
@given(changes=CHANGES, threshold=st.floats(0.01, 2))
def test_decides_as_upstream_does(variant_id, changes, threshold):
    polynomial = load_catalog(environ={}).variants[variant_id].variant.polynomial
    expected = upstream(changes, polynomial, threshold)
    if longest_run(expected) > MAX_CONSECUTIVE_SKIPS:
        return  # the cap is ours; the test below is about it
    gate = TeaCacheGate(polynomial, threshold)
    assert [gate(change).skip for change in changes] == expected


@given(changes=CHANGES, threshold=st.floats(0.01, 2))
def test_never_skips_more_than_the_cap_in_a_row(changes, threshold):
    gate = TeaCacheGate((0, 0, 0, 1e-4, 0), threshold)
    assert longest_run([gate(change).skip for change in changes]) <= MAX_CONSECUTIVE_SKIPS


def test_the_cap_ends_a_run_of_skips():
    gate = TeaCacheGate((0, 0, 0, 0, 0), 0.1)
    verdicts = [gate(0.5) for _ in range(MAX_CONSECUTIVE_SKIPS + 2)]
    assert [verdict.skip for verdict in verdicts] == [True] * MAX_CONSECUTIVE_SKIPS + [False, True]
    assert "in a row" in verdicts[MAX_CONSECUTIVE_SKIPS].reason


@given(change=st.floats(0, 10), low=st.floats(0.01, 0.2), width=st.floats(0.01, 1))
def test_the_fitted_range_clamps_below_and_computes_above(change, low, width):
    high = low + width
    verdict = TeaCacheGate((0, 0, 0, 1, 0), 100, (low, high))(change)
    assert verdict.skip == (change <= high)
    if verdict.skip:
        assert verdict.accumulated == max(change, low)


@pytest.mark.parametrize("change", [math.nan, math.inf, -math.inf])
def test_a_signal_that_is_not_finite_computes_and_forgets(change):
    gate = TeaCacheGate((0, 0, 0, 1, 0), 0.5)
    assert gate(0.4).skip
    verdict = gate(change)
    assert not verdict.skip and verdict.forget
    assert gate(0.4).skip  # the accumulator started anew


def test_reset_starts_the_accumulation_anew():
    gate = TeaCacheGate((0, 0, 0, 1, 0), 0.5)
    assert gate(0.4).skip
    gate.reset()
    assert gate(0.4).skip


def test_floor_of_flux1_dev_lets_no_threshold_below_it_skip():
    """Users of other TeaCache ports met this as "no skips at 0.10 and 0.15"."""
    polynomial = load_catalog(environ={}).variants["flux1-dev"].variant.polynomial
    lowest = min(TeaCacheGate(polynomial, 1).estimate(x) for x in np.linspace(0, 0.5, 5001))
    assert lowest == pytest.approx(0.1803, abs=5e-5)
