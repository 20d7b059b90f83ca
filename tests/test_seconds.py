"""A time instead of a speed-up: the plan follows from what the first two steps cost by a clock that the test keeps."""

import mlx.core as mx
import numpy as np
import pytest

from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching.gate import Facts, Setup
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import parse, seconds
from mflux_teacache_plugin.summary import metadata, summary
from tests.tiny.cases import case


@pytest.fixture
def clock(monkeypatch):
    """Says these times one after the other."""
    told = []
    monkeypatch.setattr(seconds, "clock", lambda: told.pop(0))
    return told


def run(text, steps, clock, times):
    clock[:] = times
    method = parse(text)
    cache = method.cache(Setup(Facts(tuple(1 - step / steps for step in range(steps))), Generation(steps)))
    for step in range(steps):
        cache.run(lambda step=step: mx.full((2,), float(step)))
        cache.end_step()
    assert cache.record.fault is None and not clock
    return method, cache


@pytest.mark.parametrize(
    ("text", "computed"),
    [("30s", 12), ("30s+reuse", 12), ("41.9s", 17), ("100s", 40), ("4s", 4), ("4s+reuse", 4), ("26s+quadratic", 10)],
)
def test_what_is_left_after_two_steps_says_how_many_more_are_computed(clock, text, computed):
    """The first step took 8 seconds, for it compiled; the second 2."""
    _, cache = run(text, 40, clock, [100.0, 108.0, 110.0])
    assert cache.record.computed == computed
    decisions = {decision.step: decision.skipped for decision in cache.record.decisions}
    assert not decisions[0] and not decisions[1] and not decisions[39]
    assert cache.progress()["computing"] == f"{computed}/40"


def test_the_record_repeats_the_steps_exactly(clock):
    method, cache = run("30s@0-0.9+quadratic", 40, clock, [0.0, 8.0, 10.0])
    again = parse(metadata(cache.record, method, None, None)["teacache_method"])
    assert again.forecast == "quadratic" and str(again).startswith("steps:0-")
    repeated = again.cache(Setup(Facts(tuple(1 - step / 40 for step in range(40))), Generation(40)))
    for step in range(40):
        repeated.run(lambda step=step: mx.full((2,), float(step)))
        repeated.end_step()
    skips = [[each.skipped for each in record.decisions] for record in (cache.record, repeated.record)]
    assert skips[0] == skips[1] and any(skips[0])


def test_too_short_a_time_is_said_in_the_line_and_the_fewest_steps_are_made(clock):
    method, cache = run("4s", 40, clock, [0.0, 8.0, 10.0])
    assert summary(cache.record, method, None) == (
        "skipped 36 of 40 steps (4s, the time is too short for the fewest sensible steps, which were made)"
    )


def test_enough_time_for_all_skips_nothing(clock):
    method, cache = run("71s", 40, clock, [0.0, 1.0, 2.0])
    assert "the time suffices for every step" in summary(cache.record, method, None)
    assert metadata(cache.record, method, None, None)["teacache_method"] == "steps:0-39"


def test_so_few_steps_are_refused():
    parse("90s").check_steps(6)
    parse("90s").check_steps(None)
    with pytest.raises(SettingsError, match="5 steps at 90s cannot be met"):
        parse("90s").check_steps(5)


def test_in_mflux_a_recorded_run_gives_the_same_picture(tiny, clock):
    model = case("klein").build(tiny)
    clock[:] = [0.0, 1.0, 2.0]
    with apply_teacache(model, "4s", variant="") as handle:
        first = case("klein").generate(model, tiny, num_inference_steps=10)
    method = handle.method.recorded(handle.stats.last)
    assert handle.stats.last.fault is None and handle.stats.last.computed == 4
    with apply_teacache(model, method, variant=""):
        second = case("klein").generate(model, tiny, num_inference_steps=10)
    assert np.array_equal(first, second)
