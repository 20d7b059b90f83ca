"""Every adapter on mflux's own pipelines, through Python and through the real commands."""

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mflux_teacache_plugin.adapters import BUILT_IN, Registry, families
from mflux_teacache_plugin.adapters.families import KLEIN, KLEIN_BASE
from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching import step_cache
from mflux_teacache_plugin.choose import registry
from mflux_teacache_plugin.errors import UnsupportedModelError
from mflux_teacache_plugin.variants import Guard
from tests.support import ALWAYS, NEVER, a_variant
from tests.tiny.cases import CASES

CACHEABLE = [case for case in CASES if case.cacheable]
REFUSED_CASES = [case for case in CASES if not case.cacheable]
STEPS = 6


def steps_of(case, requested=STEPS) -> int:
    """How many of the requested steps are active: image-to-image starts late."""
    return requested - max(1, requested // 2) if case.id.endswith("from-image") else requested


@pytest.fixture(params=["eager", pytest.param("compiled", marks=pytest.mark.compiles)])
def mode(request):
    """Eager and compiled, as mflux does it here."""
    if request.param == "eager":
        request.getfixturevalue("eager")
    return request.param


def only_where_mflux_compiles(case, mode):
    if mode == "compiled" and case.family == "flux1":
        pytest.skip("mflux never compiles FLUX.1")


@pytest.mark.parametrize("case", CACHEABLE, ids=str)
def test_never_skipping_is_bit_identical_to_plain_mflux(case, tiny, mode):
    only_where_mflux_compiles(case, mode)
    model = case.build(tiny)
    plain = case.generate(model, tiny, num_inference_steps=STEPS)
    with apply_teacache(model, variant=a_variant(case), threshold=NEVER) as handle:
        cached = case.generate(model, tiny, num_inference_steps=STEPS)
    assert handle.stats.last.fault is None
    assert (handle.stats.computed, handle.stats.skipped) == (steps_of(case), 0)
    assert np.array_equal(plain, cached)


@pytest.mark.parametrize("case", CACHEABLE, ids=str)
def test_skips_are_counted_and_the_model_is_left_as_it_was(case, tiny, mode):
    only_where_mflux_compiles(case, mode)
    model = case.build(tiny)
    classes = {name: type(module) for name, module in model.named_modules()}
    keys = [key for key, _ in tree_flatten(model.parameters())]
    attributes, callbacks = set(vars(model)), {k: list(v) for k, v in vars(model.callbacks).items()}
    plain = case.generate(model, tiny, num_inference_steps=STEPS)
    with apply_teacache(model, variant=a_variant(case), threshold=ALWAYS) as handle:
        cached = case.generate(model, tiny, num_inference_steps=STEPS)
    assert handle.stats.last.fault is None
    # With a key-value cache the second step has no reference tokens any more, so it cannot be compared with the first.
    assert handle.stats.skipped == steps_of(case) - (3 if case.id == "klein-kv-edit" else 2)
    assert not np.array_equal(plain, cached)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert [key for key, _ in tree_flatten(model.parameters())] == keys
    assert set(vars(model)) == attributes and vars(model.callbacks) == callbacks
    assert np.array_equal(plain, case.generate(model, tiny, num_inference_steps=STEPS))


@pytest.mark.parametrize("case", CACHEABLE, ids=str)
def test_the_skip_pattern_is_upstreams_rule_on_the_recorded_signals(case, tiny, eager, monkeypatch):
    """The signals are read off the run, and the rule is stated once more, in numpy, on them."""
    recorded = []
    decide = step_cache.StepCache._judge

    def record(self, signal, fitting):
        mx.eval(signal)
        recorded.append(np.array(signal.astype(mx.float32)))
        return decide(self, signal, fitting)

    monkeypatch.setattr(step_cache.StepCache, "_judge", record)
    model, threshold = case.build(tiny), 0.35
    with apply_teacache(model, variant=a_variant(case), threshold=threshold) as handle:
        case.generate(model, tiny, num_inference_steps=STEPS)
    decisions = handle.stats.last.decisions
    assert len(recorded) == len(decisions) == steps_of(case)
    expected, accumulated = [], 0.0
    for step, signal in enumerate(recorded):
        comparable = step > 0 and recorded[step - 1].shape == signal.shape
        if comparable and step < len(recorded) - 1:
            accumulated += np.abs(signal - recorded[step - 1]).mean() / np.abs(recorded[step - 1]).mean()
        skip = comparable and step < len(recorded) - 1 and accumulated < threshold
        accumulated = accumulated if skip else 0.0
        expected.append(skip)
    assert [decision.skipped for decision in decisions] == expected


@pytest.mark.parametrize("case", [case for case in CACHEABLE if case.branches == 2], ids=str)
def test_guidance_takes_one_decision_a_step_and_keeps_a_residual_per_branch(case, tiny, eager, monkeypatch):
    kept = []
    end_step = step_cache.StepCache.end_step

    def record(self):
        kept.append(sorted(self._kept))
        end_step(self)

    monkeypatch.setattr(step_cache.StepCache, "end_step", record)
    model = case.build(tiny)
    with apply_teacache(model, variant=a_variant(case), threshold=ALWAYS) as handle:
        case.generate(model, tiny, num_inference_steps=4)
    assert len(handle.stats.last.decisions) == 4
    assert kept[0] == [0, 1]


@pytest.mark.parametrize("case", [case for case in CACHEABLE if case.id in ("flux1", "klein-base")], ids=str)
def test_the_transformer_is_free_once_the_loop_is_over(case, tiny, mode):
    """mflux lets it go there for --low-ram, before the picture is decoded."""
    only_where_mflux_compiles(case, mode)
    model = case.build(tiny)
    handle = apply_teacache(model, variant=a_variant(case), threshold=ALWAYS)
    freed = []

    class LowRam:
        def call_after_loop(self, **_):
            gone = weakref.ref(model.transformer)
            model.transformer = None
            gc.collect()
            freed.append(gone() is None)

    model.callbacks.register(LowRam())
    case.generate(model, tiny)
    assert freed == [True] and handle.stats.skipped > 0


@pytest.mark.parametrize("case", REFUSED_CASES, ids=str)
def test_pipelines_that_need_their_blocks_are_refused(case, tiny):
    with pytest.raises(UnsupportedModelError, match="attention maps"):
        apply_teacache(case.build(tiny))


def test_every_pipeline_that_an_adapter_names_exists():
    names = {name for adapter in (families.FLUX1, KLEIN, KLEIN_BASE) for name in adapter.pipelines}
    assert names == {f"{case.pipeline_class.__module__}:{case.pipeline_class.__name__}" for case in CACHEABLE}
    assert set(families.REFUSED) >= {
        f"{c.pipeline_class.__module__}:{c.pipeline_class.__name__}" for c in REFUSED_CASES
    }


def test_a_later_adapter_replaces_one_of_the_same_id():
    mended = BUILT_IN[0].__class__(**{**vars(BUILT_IN[0]), "branches": 7})
    assert Registry([*BUILT_IN, mended], {}).adapters[mended.id].branches == 7


def test_a_pipeline_that_derives_from_a_served_one_is_served():
    klein = next(case for case in CACHEABLE if case.family == "flux2").pipeline_class
    assert set(registry().serving(type("Mine", (klein,), {}))) == {"klein", "klein-base"}


def test_guard_steps_of_a_variant_are_kept(tiny, eager):
    case = CACHEABLE[0]
    model = case.build(tiny)
    variant = a_variant(case, guard=Guard(first=2, last=2))
    with apply_teacache(model, variant=variant, threshold=ALWAYS) as handle:
        case.generate(model, tiny, num_inference_steps=STEPS)
    assert [decision.skipped for decision in handle.stats.last.decisions] == [False] * 2 + [True] * 2 + [False] * 2
