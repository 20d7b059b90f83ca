"""DualCache: its rules one by one, and its cache on mflux's own transformers.

`test_cache_dit` holds the same rules against cache-dit's recorded decisions.
"""

from dataclasses import replace

import numpy as np
import pytest

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.caching import block_cache
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.methods.dualcache import DualCache, DualCacheGate, DualCacheSettings
from tests.tiny.cases import CASES, case

# ---- the gate --------------------------------------------------------------------------------------------------------

KEEN = DualCacheSettings(warmup=0, rdt=0.5)


def decide(settings, *changes, start=0):
    """The gate's verdicts on these changes, step by step; it must not read one that is None."""
    gate = DualCacheGate(settings)
    return [
        gate(step, None if change is None else lambda change=change: change)
        for step, change in enumerate(changes, start)
    ]


def skips(verdicts):
    return [verdict.skip for verdict in verdicts]


def test_a_change_below_the_threshold_skips():
    verdicts = decide(KEEN, 0.4999, 0.5, 0.1, float("nan"), float("inf"))
    assert skips(verdicts) == [True, False, True, False, False]
    assert [verdict.reason for verdict in verdicts[:2]] == ["below the threshold", "threshold reached"]


def test_the_warm_up_computes_and_reads_nothing():
    assert skips(decide(replace(KEEN, warmup=3), None, None, None, 0.1)) == [False, False, False, True]


def test_of_the_warm_up_each_so_many_th_step_computes_for_certain():
    verdicts = decide(replace(KEEN, warmup=4, warmup_interval=2), None, 0.1, None, 0.1, 0.1)
    assert skips(verdicts) == [False, True, False, True, True]


def test_no_more_skips_in_all_than_allowed():
    assert skips(decide(replace(KEEN, max_cached=2), 0.1, 0.9, 0.1, None, None)) == [True, False, True, False, False]
    assert skips(decide(replace(KEEN, max_cached=0), None)) == [False]


def test_no_more_skips_in_a_row_than_allowed():
    verdicts = decide(replace(KEEN, continuous=2), 0.1, 0.1, None, 0.1, 0.1, None)
    assert skips(verdicts) == [True, True, False] * 2


def test_nothing_is_skipped_once_the_changes_read_have_used_up_the_allowance():
    verdicts = decide(replace(KEEN, accumulated=1.0), 0.4, 0.9, None, None)
    assert skips(verdicts) == [True, False, False, False]
    assert verdicts[-1].accumulated == pytest.approx(1.3)


def test_a_step_computed_without_being_asked_ends_the_row():
    gate = DualCacheGate(replace(KEEN, continuous=1))
    assert gate(0, lambda: 0.1).skip
    gate.reset()
    assert gate(1, lambda: 0.1).skip


# ---- the cache on mflux's transformers -------------------------------------------------------------------------------

CACHEABLE = [case for case in CASES if case.cacheable]
FLUX1, KLEIN, BASE = case("flux1"), case("klein"), case("klein-base")
STEPS = 6
LISTS = {"transformer_blocks": 2, "single_transformer_blocks": 3}  # of every tiny model

#: Skips whenever it may: after the first step, which has nothing to compare with, every middle of every list.
ALWAYS = DualCacheSettings(F=1, B=0, rdt=0.999, warmup=0)
NEVER = replace(ALWAYS, rdt=1e-9)


@pytest.fixture
def count(monkeypatch):
    """Counts of each block's own calls, by list and position, in each step of a model's next generation."""
    undo = []

    def count(model):
        steps = [{}]

        def counted(key):
            def call(base_call, *args, **kwargs):
                steps[-1][key] = steps[-1].get(key, 0) + 1
                return base_call(*args, **kwargs)

            return call

        class NextStep:
            def call_in_loop(self, **_):
                steps.append({})

        for name in LISTS:
            for index, block in enumerate(getattr(model.transformer, name)):
                undo.append(stand_before(block, "__call__", counted((name, index))))
        model.callbacks.register(NextStep())
        return steps

    yield count
    while undo:
        undo.pop()()


@pytest.mark.parametrize("case", CACHEABLE, ids=str)
def test_never_skipping_is_bit_identical_to_plain_mflux_uncompiled(case, tiny, eager):
    model = case.build(tiny)
    plain = case.generate(model, tiny)
    with apply_teacache(model, DualCache(NEVER)) as handle:
        cached = case.generate(model, tiny)
    assert handle.stats.last.fault is None
    assert (handle.stats.skipped, handle.stats.computed) == (0, case.steps)
    assert np.array_equal(plain, cached)


@pytest.mark.compiles
def test_where_mflux_compiles_it_gives_the_pixels_of_uncompiled_mflux(tiny, request):
    model = BASE.build(tiny)
    with apply_teacache(model, DualCache(NEVER)) as handle:
        cached = BASE.generate(model, tiny)
    request.getfixturevalue("eager")
    assert handle.stats.last.fault is None
    assert np.array_equal(BASE.generate(model, tiny), cached)


@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("case", [FLUX1, KLEIN, BASE], ids=str)
def test_the_first_and_last_blocks_run_once_and_the_skipped_ones_not_at_all(case, first, last, tiny, eager, count):
    model = case.build(tiny)
    plain = case.generate(model, tiny, num_inference_steps=STEPS)
    steps = count(model)
    with apply_teacache(model, DualCache(replace(ALWAYS, F=first, B=last))) as handle:
        cached = case.generate(model, tiny, num_inference_steps=STEPS)
    record = handle.stats.last
    assert record.fault is None
    skipped = {(d.step, d.blocks) for d in record.decisions if d.skipped and d.share}
    assert skipped and not np.array_equal(plain, cached)
    for step in range(STEPS):
        for name, blocks in LISTS.items():
            for index in range(blocks):
                middle = first <= index < blocks - last
                expected = 0 if middle and (step, name) in skipped else case.branches
                assert steps[step].get((name, index), 0) == expected, (step, name, index)


def test_the_work_of_a_step_is_counted_by_its_blocks(tiny, eager):
    """Of the five blocks the first of each list runs: three fifths of each skipped step are saved."""
    model = FLUX1.build(tiny)
    with apply_teacache(model, DualCache(ALWAYS)) as handle:
        image = FLUX1.generate_image(model, tiny, num_inference_steps=STEPS)
    record = handle.stats.last
    skipped = [decision for decision in record.decisions if decision.skipped]
    assert record.skipped == pytest.approx(sum({2: 1, 3: 2}[LISTS[d.blocks]] / 5 for d in skipped))
    assert record.skipped + record.computed == pytest.approx(STEPS)
    assert image.generation_parameters["teacache_computed"] == record.computed


def decisions_of(handle, branch):
    return [(d.step, d.blocks, d.skipped) for d in handle.stats.last.decisions if d.branch == branch]


@pytest.mark.parametrize("separate", [True, False])
def test_two_branches_read_a_change_each_or_share_the_first_ones(separate, tiny, eager):
    model = BASE.build(tiny)
    with apply_teacache(model, DualCache(replace(ALWAYS, separate=separate))) as handle:
        BASE.generate(model, tiny, num_inference_steps=STEPS)
    read = {
        branch: {(d.step, d.blocks): d.change for d in handle.stats.last.decisions if d.branch == branch and d.step}
        for branch in (0, 1)
    }
    assert handle.stats.last.fault is None and None not in read[0].values()
    assert read[0].keys() == read[1].keys() and len(read[0]) == 2 * (STEPS - 1)
    assert (read[0] == read[1]) is not separate


def test_the_second_branch_decides_by_its_own_change(tiny, eager, monkeypatch):
    """The first branch's changes are made small, the second's large."""
    asked = []

    def change(current, previous):
        asked.append(len(asked))
        return (0.1, 0.1, 0.9, 0.9)[asked[-1] % 4]  # two lists in each of two branches

    monkeypatch.setattr(block_cache, "relative_change", change)
    model = BASE.build(tiny)
    with apply_teacache(model, DualCache(replace(ALWAYS, rdt=0.5))) as handle:
        BASE.generate(model, tiny, num_inference_steps=3)
    assert [skipped for step, _, skipped in decisions_of(handle, 0) if step] == [True] * 4
    assert [skipped for step, _, skipped in decisions_of(handle, 1) if step] == [False] * 4


def test_a_preset_fits_any_model_and_too_many_blocks_are_refused(tiny, eager):
    model = FLUX1.build(tiny)
    with apply_teacache(model, "dualcache:conservative") as handle:
        FLUX1.generate(model, tiny)
    assert handle.stats.last.fault is None
    with pytest.raises(SettingsError, match="F=99 is more than there is") as error:
        apply_teacache(model, "dualcache:F=99")
    assert error.value.hint == "take at most F=2"
    assert "generate_image" not in vars(model)


@pytest.mark.parametrize("where", ["_decide", "_learn", "_stand_in"])
@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
def test_a_fault_stands_aside_and_costs_no_picture(case, where, tiny, eager, monkeypatch):
    model = case.build(tiny)
    plain = case.generate(model, tiny)
    monkeypatch.setattr(block_cache.BlockCache, where, lambda *_: 1 / 0)
    with apply_teacache(model, DualCache(ALWAYS)) as handle:
        cached = case.generate(model, tiny)
    assert "division by zero" in handle.stats.last.fault
    assert np.array_equal(plain, cached)


@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
def test_afterwards_every_block_has_its_own_class_again(case, tiny, eager):
    model = case.build(tiny)
    classes = {name: type(module) for name, module in model.named_modules()}
    attributes = set(vars(model))
    plain = case.generate(model, tiny)
    with apply_teacache(model, DualCache(ALWAYS)):
        case.generate(model, tiny)
        within = {name: type(module) for name, module in model.named_modules() if name}
        assert within == {name: cls for name, cls in classes.items() if name}, "between generations too"
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert set(vars(model)) == attributes
    assert np.array_equal(plain, case.generate(model, tiny))


def test_nothing_is_kept_from_one_generation_to_the_next(tiny, eager):
    model = BASE.build(tiny)
    with apply_teacache(model, DualCache(ALWAYS)) as handle:
        first = BASE.generate(model, tiny)
        BASE.generate(model, tiny, height=96, prompt="something else")
        assert np.array_equal(first, BASE.generate(model, tiny))
    assert all(generation.fault is None for generation in handle.stats.generations)


def test_a_forecast_makes_another_picture_than_reuse(tiny, eager):
    model = FLUX1.build(tiny)
    pictures = []
    for forecast in ("reuse", "linear"):
        settings = replace(ALWAYS, warmup=4, warmup_interval=3)  # steps 0 and 3 compute, so that a line leads to 4
        with apply_teacache(model, DualCache(settings, forecast=forecast)) as handle:
            pictures.append(FLUX1.generate(model, tiny, num_inference_steps=STEPS))
        assert handle.stats.last.fault is None and handle.stats.skipped > 0
    assert not np.array_equal(*pictures)
