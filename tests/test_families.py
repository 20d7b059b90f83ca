"""Speedup steps in every other family: mflux's real loop, its own prediction function, a tiny transformer."""

import gc
import importlib
import weakref
from dataclasses import dataclass
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mflux_teacache_plugin.adapters import BUILT_IN, REFUSED
from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching import block_cache, step_cache
from mflux_teacache_plugin.caching.forecast import Forecast
from mflux_teacache_plugin.caching.gate import relative_change
from mflux_teacache_plugin.caching.step_cache import PredictionCache
from mflux_teacache_plugin.choose import registry
from mflux_teacache_plugin.errors import UnsupportedModelError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.variants import Provenance, Variant
from tests.support import ALWAYS, NEVER
from tests.tiny.cases import case as klein_case
from tests.tiny.families import FAMILIES, STEPS, TOKENS, WIDTH, embeddings, exists, family

pytestmark = pytest.mark.usefixtures("eager")


@dataclass(frozen=True)
class These(Speedup):
    """Exactly these steps."""

    speedup: float = 1.5
    at: tuple[int, ...] = ()

    def schedule(self, variant, facts):
        return self.at or tuple(range(facts.steps))


@dataclass
class Call:
    """One call of what a step calls."""

    step: int
    index: int  #: within the step
    sigma: float
    answer: mx.array
    output: mx.array | None  #: of mflux's own function, if it was called
    function: type  #: its type


@pytest.fixture
def calls(monkeypatch):
    """Every call that a cache answered, in order."""
    seen: list[Call] = []
    run = PredictionCache.run

    def watched(self, forward, *args, **kwargs):
        outputs = []

        def watched_forward(*a, **k):
            outputs.append(forward(*a, **k))
            return outputs[-1]

        step, index, sigma = self._step, self._calls, self.sigma
        answer = run(self, watched_forward, *args, **kwargs)
        seen.append(Call(step, index, sigma, answer, outputs[0] if outputs else None, type(forward)))
        return answer

    monkeypatch.setattr(PredictionCache, "run", watched)
    return seen


@pytest.fixture(scope="module")
def photo(tiny):
    return tiny.pictures.photo


def state(model):
    """All that must be as before: classes, parameters, attributes, callbacks, and what mflux finds on the class."""
    held = {name: value for name, value in {**vars(model), **dict(model if isinstance(model, dict) else {})}.items()}
    modules = {name: value for name, value in held.items() if isinstance(value, nn.Module)}
    return {
        "attributes": set(held),
        "classes": {f"{n}.{m}": type(v) for n, module in modules.items() for m, v in module.named_modules()},
        "parameters": {f"{n}.{key}" for n, module in modules.items() for key, _ in tree_flatten(module.parameters())},
        "callbacks": {name: list(found) for name, found in vars(model.callbacks).items()},
        "class": {name: value for cls in type(model).__mro__ for name, value in vars(cls).items() if "predict" in name},
    }


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_every_step_computed_is_bit_identical_to_plain_mflux(case, photo, calls):
    """And mflux's own function answers, still compiled where mflux compiles it."""
    with case.model() as model:
        before = state(model)
        _, plain = case.generate(model, photo)
        with apply_teacache(model, These()) as handle:
            _, latents = case.generate(model, photo)
        assert handle.stats.last.fault is None
        assert (handle.stats.skipped, handle.stats.computed) == (0, handle.stats.last.steps)
        assert np.array_equal(plain, latents)
        assert state(model) == before
    compiled = {type(mx.compile(abs))}
    assert ({call.function for call in calls} == compiled) == bool(registry().adapters[case.adapter].predict)


COMPUTED = (0, 1, 3, 5, STEPS - 1)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_skipped_step_calls_nothing_and_gets_the_forecast_of_the_computed_ones(case, photo, calls):
    with case.model() as model:
        before = state(model)
        with apply_teacache(model, These(at=COMPUTED)) as handle:
            image, _ = case.generate(model, photo)
        assert state(model) == before
    record = handle.stats.last
    assert record.fault is None and record.steps == record.taken == STEPS - case.silent - case.late
    assert [d.step for d in record.decisions if not d.skipped] == [step for step in COMPUTED if step < record.steps]
    assert image.generation_parameters["teacache_skipped"] == record.skipped >= 2
    learned: dict[int, Forecast] = {}
    for call in calls:
        forecast = learned.setdefault(call.index, Forecast(1))
        if call.step in COMPUTED:
            assert call.output is call.answer
            forecast.learn(call.sigma, call.output)
        else:
            assert call.output is None and np.array_equal(call.answer, forecast.at(call.sigma))
    per_step = [sum(call.step == step for call in calls) for step in range(record.steps)]
    assert per_step[0] == case.calls
    assert set(per_step) == ({1, 2} if case.id.endswith("cfg-end") else {case.calls})


def test_fibo2_computes_when_other_embeddings_come(photo, calls):
    """Half-way the caption's embeddings change, as they do when they have seen the pictures of its text."""
    case = family("fibo2")
    base, seen = (embeddings(1, 2, TOKENS, WIDTH, seed=seed) for seed in (1, 2))
    with case.model() as model:
        asked = iter([base] * 3 + [seen] * (STEPS - 3))
        with (
            mock.patch.object(type(model).__base__, "_embeds_for_step", staticmethod(lambda *_: next(asked))),
            apply_teacache(model, These(at=(0, 1, 5, 7))) as handle,
        ):
            case.generate(model, photo)
    assert [d.step for d in handle.stats.last.decisions if not d.skipped] == [0, 1, 3, 5, 7]
    conditional = [call for call in calls if call.index == 0]
    assert np.array_equal(conditional[4].answer, conditional[3].output)  # nothing of before the change is in it


def test_klein_with_a_key_value_cache_makes_its_steps_with_two_functions(tiny, calls):
    """The first step fills the cache, by one function; the others read it, by another."""
    case = klein_case("klein-kv-edit")
    model = case.build(tiny)
    with apply_teacache(model, These(at=COMPUTED)) as handle:
        case.generate(model, tiny, num_inference_steps=STEPS)
    assert handle.stats.last.fault is None and len(calls) == STEPS
    assert [call.step for call in calls if call.output is not None] == list(COMPUTED)


def times(*names, of):
    """Watch one module's calls: each one's time, by the first of these names or positions that it was given."""
    seen = []

    def watched(call, *args, **kwargs):
        given = {**dict(enumerate(args)), **kwargs}
        seen.append(float(next(given[name] for name in names if name in given).reshape(-1)[0].item()))
        return call(*args, **kwargs)

    return seen, stand_before(of, "__call__", watched)


@pytest.mark.parametrize("id", ["lens", "ming", "iris", "flux3-klein", "ideogram-4", "ideogram-4:cfg-end"])
def test_the_noise_levels_are_those_that_the_transformer_is_told(id, photo, monkeypatch):
    """Where a pipeline goes its own way: up to a factor and an offset, which a forecast does not see."""
    case = family(id)
    known = []
    init = PredictionCache.__init__
    monkeypatch.setattr(
        PredictionCache,
        "__init__",
        lambda self, gate, run, *more: (known.append(run.facts), init(self, gate, run, *more))[1],
    )
    with case.model() as model, apply_teacache(model, These()) as handle:
        adapter = registry().adapters[case.adapter]
        told, undo = times("timestep", "t", 1, of=getattr(model, adapter.transformer))
        case.generate(model, photo)
        undo()
    assert handle.stats.last.fault is None
    told = np.array(told[:: case.calls if not adapter.predict else 1])
    sigmas = np.array(known[0].sigmas)
    assert np.all(np.diff(sigmas) < 0) and sigmas[0] > 0.9
    assert np.allclose(
        (told - told[0]) / (told[-1] - told[0]), (sigmas - sigmas[0]) / (sigmas[-1] - sigmas[0]), atol=1e-5
    )


@pytest.mark.parametrize("id", ["qwen-image", "anima", "ideogram-4", "lens"])
def test_the_transformer_is_free_once_the_loop_is_over(id, photo):
    """mflux lets it go there for --low-ram, before the picture is decoded."""
    case = family(id)
    with case.model() as model:
        name = registry().adapters[case.adapter].transformer
        handle = apply_teacache(model, These(at=COMPUTED))
        freed = []

        class LowRam:
            def call_after_loop(self, **_):
                gone = weakref.ref(getattr(model, name))
                setattr(model, name, None)
                gc.collect()
                freed.append(gone() is None)

        model.callbacks.register(LowRam())
        case.generate(model, photo)
        assert freed == [True] and handle.stats.skipped == 3


@pytest.mark.parametrize("id", ["qwen-image", "krea-2-controlnet", "anima"])
def test_after_a_failure_the_model_is_as_it_was(id, photo):
    case = family(id)
    with case.model() as model:
        before = state(model)
        with apply_teacache(model, "1.5x"):
            with (
                pytest.raises(ValueError, match="broken"),
                mock.patch.object(model.callbacks, "start", side_effect=ValueError("broken")),
            ):
                case.generate(model, photo)
            assert state(model)["class"] == before["class"]
        assert state(model) == before


def test_another_model_of_the_class_is_left_alone(photo):
    """Where the class is changed for a while, another model's call in that while goes to mflux's own function."""
    case = family("anima")
    with case.model() as other, case.model() as model, apply_teacache(model, These(at=COMPUTED)) as handle:
        _, plain = case.generate(other, photo)
        nested = []

        class Meanwhile:
            def call_before_loop(self, **_):
                nested.append(case.generate(other, photo)[1])

        model.callbacks.register(Meanwhile())
        case.generate(model, photo)
    assert np.array_equal(plain, nested[0]) and handle.stats.last.skipped == 3


@pytest.mark.parametrize("id", ["krea-2", "krea-2-controlnet", "anima"])
def test_a_sampler_that_adds_noise_is_refused(id, photo):
    """In Python it is known only when a picture is asked for, and then it costs the gain, not the picture."""
    case = family(id)
    with case.model() as model:
        _, plain = case.generate(model, photo, scheduler=None)
        with apply_teacache(model, "1.5x") as handle:
            _, latents = case.generate(model, photo, scheduler=None)
    assert "cannot skip steps" in handle.stats.last.fault and handle.stats.skipped == 0
    assert np.array_equal(plain, latents)


@pytest.mark.parametrize(
    ("id", "option"),
    [
        ("qwen-image-2.1", "step_cache_ratio"),
        ("moss-image", "step_cache_ratio"),
        ("qwen-image-2.1:edit", "use_step_cache"),
    ],
)
def test_the_step_cache_of_mflux_is_not_combined_with_this_one(id, option, photo):
    case = family(id)
    value = {option: True if option == "use_step_cache" else 0.3}
    with case.model() as model:
        _, plain = case.generate(model, photo, 12, **value)
        with apply_teacache(model, "1.5x") as handle:
            _, latents = case.generate(model, photo, 12, **value)
    assert "mflux's own step cache" in handle.stats.last.fault
    assert np.array_equal(plain, latents)


def test_iris_turbo_is_refused():
    from mflux.models.common.config.model_config import ModelConfig

    with family("iris").model() as model:
        model.model_config = ModelConfig.iris_3b()
        with pytest.raises(UnsupportedModelError) as refused:
            apply_teacache(model, "1.5x")
    assert "four large steps" in refused.value.cause


def test_an_answer_that_is_no_array_costs_the_gain_not_the_picture(photo):
    """A pair, say, of which the pipeline takes the first."""
    case = family("fibo")
    with case.model() as model:
        _, plain = case.generate(model, photo)
        undo = stand_before(
            model.transformer, "__call__", lambda call, *args, **kwargs: (call(*args, **kwargs), "more")
        )
        guided = type(model)._apply_classifier_free_guidance
        with (
            mock.patch.object(
                type(model), "_apply_classifier_free_guidance", lambda pair, scale: guided(pair[0], scale)
            ),
            apply_teacache(model, "1.5x") as handle,
        ):
            _, latents = case.generate(model, photo)
        undo()
    assert "tuple" in handle.stats.last.fault and np.array_equal(plain, latents)


@pytest.mark.parametrize("method", ["0.2", "dualcache:aggressive", "seacache:0.3"])
def test_methods_that_look_inside_are_refused_where_nobody_has_said_where(method):
    with family("iris").model() as model, pytest.raises(UnsupportedModelError) as refused:
        apply_teacache(model, method)
    assert "1.5x" in refused.value.hint


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_easycache_works_in_every_family(case, photo):
    with case.model() as model:
        before = state(model)
        _, plain = case.generate(model, photo)
        for method, skips in ((f"easycache:{NEVER:.9f}", False), ("easycache:2,ret_steps=2", True)):
            with apply_teacache(model, method) as handle:
                _, latents = case.generate(model, photo)
            assert handle.stats.last.fault is None
            assert bool(handle.stats.skipped) == skips and np.array_equal(plain, latents) == (not skips)
            assert mx.isfinite(latents).all() and state(model) == before


TAPPED = [case for case in FAMILIES if registry().adapters[case.adapter].taps is not None]


def numbers(case, **changes):
    """A variant whose estimate is the signal's change itself."""
    values = {"polynomial": (0, 0, 0, 1, 0), "threshold": NEVER, "weights_licence": "none", "models": ("test",)}
    return Variant(id="test", adapter=case.adapter, provenance=Provenance(source="a test"), **{**values, **changes})


@pytest.mark.parametrize("case", TAPPED, ids=str)
def test_where_it_is_tapped_a_threshold_works(case, photo):
    with case.model() as model:
        before = state(model)
        _, plain = case.generate(model, photo)
        with apply_teacache(model, NEVER, variant=numbers(case)) as handle:
            _, latents = case.generate(model, photo)
        assert handle.stats.last.fault is None and handle.stats.last.computed == STEPS - case.silent - case.late
        assert np.array_equal(plain, latents)
        with apply_teacache(model, ALWAYS, variant=numbers(case, polynomial=(0, 0, 0, 0.01, 0))) as handle:
            _, latents = case.generate(model, photo)
        assert handle.stats.last.fault is None and handle.stats.last.computed == 2
        assert not np.array_equal(plain, latents) and mx.isfinite(latents).all()
        assert state(model) == before


@pytest.mark.parametrize("case", TAPPED, ids=str)
def test_where_it_is_tapped_the_other_methods_work(case, photo, monkeypatch):
    """Random blocks change more from step to step than trained ones, so a hundredth of it is looked at."""
    for module in (block_cache, step_cache):
        monkeypatch.setattr(module, "relative_change", lambda a, b: relative_change(a, b) / 100)
    with case.model() as model:
        before = state(model)
        _, plain = case.generate(model, photo)
        for method, skips in (
            ("dualcache:F=1,B=0,rdt=1e-9,warmup=0", False),
            ("dualcache:F=1,B=0,rdt=0.99,warmup=2", True),
            ("magcache:1e-9", False),
            ("magcache:2,retention=0", True),
            (f"seacache:{NEVER:.9f}", False),
            ("seacache:2", True),
        ):
            with apply_teacache(model, method, variant=numbers(case, mag_ratios=(1, *[1.1] * 7))) as handle:
                _, latents = case.generate(model, photo)
            assert handle.stats.last.fault is None
            assert bool(handle.stats.skipped) == skips and np.array_equal(plain, latents) == (not skips)
        assert state(model) == before


def test_every_pipeline_is_tried():
    tried = {f"mflux.models.{case.pipeline}" for case in FAMILIES}
    assert tried == {n for a in BUILT_IN for n in a.pipelines if not a.id.startswith(("flux1", "klein")) and exists(n)}
    for name in (*tried, *filter(exists, REFUSED)):
        module, _, pipeline = name.partition(":")
        assert hasattr(importlib.import_module(module), pipeline)
