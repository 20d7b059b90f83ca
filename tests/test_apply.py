"""`apply_teacache` on real pipelines: what it returns, what it refuses, and what it survives."""

import warnings
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

import mflux_teacache_plugin
from mflux_teacache_plugin import apply_teacache, choose
from mflux_teacache_plugin.apply import apply_choice
from mflux_teacache_plugin.errors import (
    AlreadyAppliedError,
    ConflictError,
    SettingsError,
    TeaCacheError,
    UnsupportedModelError,
    VariantFileError,
)
from mflux_teacache_plugin.methods.dualcache import DualCache
from mflux_teacache_plugin.methods.seacache import SeaCache
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.methods.teacache import TeaCache
from mflux_teacache_plugin.settings import Settings
from mflux_teacache_plugin.summary import summary
from tests.support import ALWAYS, NEVER, a_variant
from tests.tiny.cases import CASES

FLUX1 = next(case for case in CASES if case.id == "flux1")
BASE = next(case for case in CASES if case.id == "klein-base")
FROM_IMAGE = next(case for case in CASES if case.id == "flux1-from-image")


@pytest.fixture
def model(tiny, eager):
    return FLUX1.build(tiny)


def test_a_handle_counts_and_explains(model, tiny):
    with apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
        FLUX1.generate(model, tiny, num_inference_steps=4)
    stats = handle.stats
    assert (stats.skipped, stats.computed) == (5, 4)
    assert stats.speedup_estimate == pytest.approx(9 / 4)
    assert [decision.skipped for decision in stats.last.decisions] == [False, True, True, False]
    decision = stats.last.decisions[1]
    assert decision.step == 1 and decision.change > 0 and decision.accumulated == pytest.approx(decision.change)
    assert decision.reason == "below the threshold"


@pytest.mark.parametrize("method", ["1.5x", "0.2", "steps:0-3", "90s"])
def test_a_run_of_no_steps_is_plain_mflux_with_a_line_that_says_so(method, tiny, eager, capsys):
    model = BASE.build(tiny)
    with apply_teacache(model, method, variant=a_variant(BASE)):
        BASE.generate(model, tiny, num_inference_steps=0)
    assert capsys.readouterr().err.startswith("TeaCache: this picture is plain mflux: it takes no step (0 in all")


def test_without_a_with_block_restore_ends_it(model, tiny):
    plain = FLUX1.generate(model, tiny, num_inference_steps=4)
    handle = apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS)
    FLUX1.generate(model, tiny, num_inference_steps=4)
    handle.restore()
    handle.restore()
    assert np.array_equal(plain, FLUX1.generate(model, tiny, num_inference_steps=4))
    assert len(handle.stats.generations) == 1
    apply_teacache(model, variant=a_variant(FLUX1)).restore()


def test_the_variant_is_found_by_the_models_name(model):
    with apply_teacache(model) as handle:
        assert handle.variant.id == "flux1-dev" and str(handle.method) == handle.variant.recommended


def test_a_variant_can_be_named(model):
    with apply_teacache(model, variant="flux1-krea-dev", threshold=0.4) as handle:
        assert (handle.variant.id, handle.method) == ("flux1-krea-dev", TeaCache(0.4))


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (0.4, TeaCache(0.4)),
        (1, TeaCache(1)),
        ("0.4+linear", TeaCache(0.4, forecast="linear")),
        ("1.5x", Speedup(1.5)),
        ("seacache:0.3", SeaCache(0.3)),
        (Speedup(3.0, forecast="reuse"), Speedup(3.0, forecast="reuse")),
    ],
)
def test_a_method_is_given_as_a_number_a_text_or_itself(model, given, method):
    with apply_teacache(model, given) as handle:
        assert handle.method == method and handle.variant.id == "flux1-dev"


def test_auto_is_what_the_file_recommends_or_its_threshold(model):
    recommending = a_variant(FLUX1, recommended="2x+reuse")
    for method in (None, "auto"):
        with apply_teacache(model, method, variant=recommending) as handle:
            assert handle.method == Speedup(2.0, forecast="reuse")
        with apply_teacache(model, method, variant=a_variant(FLUX1)) as handle:
            assert handle.method == TeaCache(0.2)
    with pytest.raises(VariantFileError, match="recommended: 'twice' is neither a number"):
        apply_teacache(model, variant=a_variant(FLUX1, recommended="twice"))


def test_a_variant_without_a_threshold_runs_placed_steps(model):
    only_a_profile = a_variant(
        FLUX1, polynomial=None, threshold=None, profile={"sigma": (1.0, 0.0), "change": (0.0, 1.0)}
    )
    with apply_teacache(model, variant=only_a_profile) as handle:
        assert handle.method == Speedup(1.5)
    with pytest.raises(SettingsError, match="no coefficients for a threshold on test") as error:
        apply_teacache(model, 0.2, variant=only_a_profile)
    assert "such as 1.5x" in error.value.hint


def test_a_model_without_coefficients_runs_what_needs_none(model, monkeypatch):
    monkeypatch.setattr(model.model_config, "model_name", "somebody/else")
    monkeypatch.setattr(model.model_config, "base_model", None)
    monkeypatch.setattr(model.model_config, "aliases", ["else"])
    for method in (None, "auto", "1.5x", "dualcache:aggressive", "seacache:0.3"):
        with apply_teacache(model, method) as handle:
            assert handle.variant is None
            assert isinstance(handle.method, (Speedup, DualCache, SeaCache))
    with pytest.raises(UnsupportedModelError, match="no coefficients for somebody/else") as error:
        apply_teacache(model, 0.2)
    assert "ask for a speed-up instead, such as --teacache 1.5x" in error.value.hint


def test_coefficients_and_range_of_ones_own(model, tiny):
    with apply_teacache(model, coefficients=[0, 0, 0, 0, 1e-3], range=(0, 5), threshold=0.5) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
    assert handle.stats.skipped == 3
    with apply_teacache(model, coefficients=[0, 0, 0, 0, 1e-3], range=(0, 1e-6), threshold=0.5) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
    assert handle.stats.skipped == 0


@pytest.mark.parametrize("threshold", [0, -1, 3, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused(model, threshold):
    with pytest.raises(SettingsError, match="at most 2"):
        apply_teacache(model, threshold=threshold)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"coefficients": [1, 2, 3]}, VariantFileError),
        ({"coefficients": [1, 2, 3, 4, float("nan")]}, VariantFileError),
        ({"range": (0, 1)}, SettingsError),
        ({"method": "abc"}, SettingsError),
        ({"method": "off"}, SettingsError),
        ({"method": "dualcache:F=99"}, SettingsError),
        ({"method": "1.5x", "threshold": 0.2}, SettingsError),
        ({"variant": "no-such-variant"}, UnsupportedModelError),
        ({"variant": "flux2-klein-base-4b"}, UnsupportedModelError),
    ],
)
def test_arguments_that_make_no_sense_are_refused_and_leave_nothing(model, arguments, error):
    with pytest.raises(error) as raised:
        apply_teacache(model, **arguments)
    assert str(raised.value).startswith("error: ")
    assert "generate_image" not in vars(model) and not model.callbacks.in_loop


def test_a_second_apply_is_refused(model):
    with apply_teacache(model, variant=a_variant(FLUX1)), pytest.raises(AlreadyAppliedError, match="already active"):
        apply_teacache(model, variant=a_variant(FLUX1))


def test_a_model_that_mlx_teacache_patched_is_refused(model):
    object.__setattr__(model, "_teacache_handle", object())  # its mark
    with pytest.raises(ConflictError, match="mlx-teacache"):
        apply_teacache(model, variant=a_variant(FLUX1))


def test_every_error_is_one_of_ours():
    assert issubclass(UnsupportedModelError, TeaCacheError)
    assert mflux_teacache_plugin.TeaCacheError is TeaCacheError


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_steps_run_and_say_so(model, tiny, steps):
    variant = a_variant(FLUX1)
    with apply_teacache(model, variant=variant, threshold=ALWAYS) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=steps)
    assert handle.stats.skipped == 0
    assert "first or last" in summary(handle.stats.last, handle.method, variant)


def test_image_to_image_counts_only_its_active_steps(tiny, eager):
    model = FROM_IMAGE.build(tiny)
    with apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS) as handle:
        FROM_IMAGE.generate(model, tiny, num_inference_steps=10)
    assert handle.stats.last.steps == 5
    assert [decision.skipped for decision in handle.stats.last.decisions] == [False, True, True, True, False]


def test_another_size_and_another_prompt_start_anew(model, tiny):
    with apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS) as handle:
        small = FLUX1.generate(model, tiny, num_inference_steps=4)
        large = FLUX1.generate(model, tiny, num_inference_steps=4, height=96, prompt="something else")
        again = FLUX1.generate(model, tiny, num_inference_steps=4)
    assert large.shape[0] == 96 and np.array_equal(small, again)
    assert [generation.skipped for generation in handle.stats.generations] == [2, 2, 2]


class Failing:
    """A callback that raises in step 1."""

    def __init__(self, exception):
        self.exception = exception

    def call_in_loop(self, t, **_):
        if t == 1:
            raise self.exception


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), RuntimeError("in a step")])
@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
def test_nothing_stale_remains_after_a_generation_that_broke_off(tiny, eager, case, exception):
    model = case.build(tiny)
    fresh = case.build(tiny)
    with apply_teacache(fresh, variant=a_variant(case), threshold=ALWAYS):
        expected = case.generate(fresh, tiny, num_inference_steps=5)
    classes = {name: type(module) for name, module in model.named_modules()}
    with apply_teacache(model, variant=a_variant(case), threshold=ALWAYS) as handle:
        failing = Failing(exception)
        model.callbacks.register(failing)
        with pytest.raises(Exception):  # noqa: B017 - mflux makes its own of Ctrl-C
            case.generate(model, tiny, num_inference_steps=5)
        within = {name: type(module) for name, module in model.named_modules() if name}
        assert within == {name: cls for name, cls in classes.items() if name}, "the pipeline itself is still watched"
        model.callbacks.in_loop.remove(failing)
        again = case.generate(model, tiny, num_inference_steps=5)
    assert len(handle.stats.generations[0].decisions) == 2
    assert np.array_equal(expected, again)


def test_a_fault_of_the_plugin_costs_nothing_but_the_gain(model, tiny, monkeypatch):
    plain = FLUX1.generate(model, tiny, num_inference_steps=5)
    variant = a_variant(FLUX1)

    class Broken:
        def __init__(self, *_):
            self.calls = 0

        def __call__(self, step, change):
            raise ZeroDivisionError("a gate that fails")

        def reset(self):
            pass

    monkeypatch.setattr("mflux_teacache_plugin.methods.teacache.TeaCacheGate", Broken)
    with apply_teacache(model, variant=variant, threshold=ALWAYS) as handle:
        cached = FLUX1.generate(model, tiny, num_inference_steps=5)
    assert np.array_equal(plain, cached)
    assert "stopped" in summary(handle.stats.last, handle.method, variant)
    assert "a gate that fails" in summary(handle.stats.last, handle.method, variant)


def test_a_gate_that_cannot_be_made_costs_nothing_but_the_gain(model, tiny, monkeypatch):
    plain = FLUX1.generate(model, tiny)
    monkeypatch.setattr("mflux_teacache_plugin.methods.teacache.TeaCacheGate", lambda *_: 1 / 0)
    with apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS) as handle:
        assert np.array_equal(plain, FLUX1.generate(model, tiny))
    assert "division by zero" in handle.stats.last.fault


def test_a_model_without_its_taps_runs_plain(model, tiny):
    plain = FLUX1.generate(model, tiny)
    object.__setattr__(model.transformer.norm_out, "__class__", type(model.transformer.norm_out))
    handle = apply_teacache(model, variant=a_variant(FLUX1), threshold=ALWAYS)
    blocks = model.transformer.transformer_blocks
    handle._adapter = type(handle._adapter)(**{**vars(handle._adapter), "transformer": "no_such_thing"})
    assert np.array_equal(plain, FLUX1.generate(model, tiny))
    assert "no_such_thing" in handle.stats.last.fault
    assert model.transformer.transformer_blocks is blocks
    handle.restore()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
def test_quantized_models_skip_too(tiny, eager, case, bits):
    model = case.build(tiny, quantize=bits)
    plain = case.generate(model, tiny, num_inference_steps=5)
    with apply_teacache(model, variant=a_variant(case), threshold=NEVER):
        assert np.array_equal(plain, case.generate(model, tiny, num_inference_steps=5))
    with apply_teacache(model, variant=a_variant(case), threshold=ALWAYS) as handle:
        case.generate(model, tiny, num_inference_steps=5)
    assert handle.stats.skipped == 3


def test_float16_compute_skips_too(tiny, eager):
    model = BASE.build(tiny, compute_precision=mx.float16)
    plain = BASE.generate(model, tiny, num_inference_steps=5)
    with apply_teacache(model, variant=a_variant(BASE), threshold=NEVER):
        assert np.array_equal(plain, BASE.generate(model, tiny, num_inference_steps=5))


@pytest.mark.parametrize("bake", [True, False])
def test_a_lora_stays_in_force(tiny, eager, tmp_path, bake):
    name = "transformer.single_transformer_blocks.0.proj_out"
    model = FLUX1.build(tiny)
    rows, columns = model.transformer.single_transformer_blocks[0].proj_out.weight.shape
    weights = {
        f"{name}.lora_A.weight": mx.random.normal((4, columns), key=mx.random.key(1)),
        f"{name}.lora_B.weight": mx.random.normal((rows, 4), key=mx.random.key(2)),
    }
    mx.save_safetensors(str(tmp_path / "a.safetensors"), weights)
    without = FLUX1.generate(model, tiny, num_inference_steps=5)
    model = FLUX1.build(tiny, lora_paths=[str(tmp_path / "a.safetensors")], bake_lora=bake)
    plain = FLUX1.generate(model, tiny, num_inference_steps=5)
    assert not np.array_equal(without, plain)
    with apply_teacache(model, variant=a_variant(FLUX1), threshold=NEVER):
        assert np.array_equal(plain, FLUX1.generate(model, tiny, num_inference_steps=5))


def test_the_image_records_what_was_done(model, tiny):
    variant = a_variant(FLUX1)
    with apply_teacache(model, variant=variant, threshold=ALWAYS):
        image = FLUX1.generate_image(model, tiny, num_inference_steps=5)
    recorded = image.generation_parameters
    assert recorded["teacache_method"] == "2" and recorded["teacache_variant"] == "test"
    assert (recorded["teacache_skipped"], recorded["teacache_computed"]) == (3, 2)
    assert all(isinstance(value, (str, int, float)) for key, value in recorded.items() if key.startswith("teacache"))


def test_nothing_skipped_says_what_would_help(model, tiny):
    variant = a_variant(FLUX1)
    with apply_teacache(model, variant=variant, threshold=1e-3) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
    smallest = min(d.accumulated for d in handle.stats.last.decisions if d.accumulated is not None)
    assert f"{smallest:.3g}" in handle.method.why_nothing(handle.stats.last, variant)
    with apply_teacache(model, threshold=smallest * 1.05, variant=variant) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
    assert handle.stats.skipped > 0  # the advice was true
    narrow = a_variant(FLUX1, range=(0, 1e-5))
    with apply_teacache(model, variant=narrow) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=5)
    assert "more --steps" in handle.method.why_nothing(handle.stats.last, narrow)
    distilled = a_variant(FLUX1, distilled=True)
    assert "base model" in handle.method.why_nothing(handle.stats.last, distilled)


@pytest.mark.parametrize("method", [ALWAYS, "1.5x", "seacache:2", "dualcache:aggressive"])
def test_no_warning_is_raised_on_the_way(model, tiny, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with apply_teacache(model, method, variant=a_variant(FLUX1)) as handle:
            FLUX1.generate(model, tiny, num_inference_steps=6)
    assert handle.stats.last.fault is None


# ---- placed steps and SeaCache on real pipelines ---------------------------------------------------------------------


@pytest.mark.parametrize("case", [FLUX1, BASE, FROM_IMAGE], ids=str)
def test_placed_steps_are_as_many_as_the_speed_up_takes(tiny, eager, case):
    model = case.build(tiny)
    steps = 12 if case is FROM_IMAGE else 6  # of which half are active
    with apply_teacache(model, "2x", variant=a_variant(case)) as handle:
        case.generate(model, tiny, num_inference_steps=steps)
    record = handle.stats.last
    assert (record.fault, record.steps, record.computed) == (None, 6, 3)
    assert not record.decisions[0].skipped and not record.decisions[-1].skipped
    assert record.changes == [], "no signal is read"


def test_a_profile_moves_the_placed_steps(model, tiny):
    early = {"sigma": (1.0, 0.99, 0.0), "change": (0.0, 5.0, 5.1)}
    for profile, computed in ((None, [0, 2, 5]), (early, [0, 1, 5])):
        with apply_teacache(model, "2x", variant=a_variant(FLUX1, profile=profile)) as handle:
            FLUX1.generate(model, tiny, num_inference_steps=6)
        assert [d.step for d in handle.stats.last.decisions if not d.skipped] == computed


@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
def test_seacache_skips_by_a_filtered_signal_and_needs_no_numbers(tiny, eager, case):
    model = case.build(tiny)
    plain = case.generate(model, tiny, num_inference_steps=6)
    with apply_teacache(model, f"seacache:{NEVER}", variant=a_variant(case)) as handle:
        assert np.array_equal(plain, case.generate(model, tiny, num_inference_steps=6))
    filtered = handle.stats.last.changes
    assert handle.stats.last.fault is None
    with apply_teacache(model, f"seacache:{ALWAYS}", variant=a_variant(case)) as handle:
        case.generate(model, tiny, num_inference_steps=6)
    assert (handle.stats.last.fault, handle.stats.skipped) == (None, 4)
    with apply_teacache(model, NEVER, variant=a_variant(case)) as handle:
        case.generate(model, tiny, num_inference_steps=6)
    assert handle.stats.last.changes != pytest.approx(filtered, rel=1e-3), "the signal itself changes otherwise"


def test_a_tap_that_a_newer_mflux_has_no_more_is_named_and_a_speed_up_still_works(model, tiny, monkeypatch):
    wanted = Settings(TeaCache(0.2), "here", True)
    choice = choose.choose(type(model), model.model_config, None, choose.catalog(), wanted, None)
    gone = replace(choice, adapter=replace(choice.adapter, taps=replace(choice.adapter.taps, final="norm_gone")))
    with pytest.raises(UnsupportedModelError, match="does not work with this version of mflux") as error:
        apply_choice(model, gone)
    assert "norm_gone" in error.value.cause and "1.5x" in error.value.hint
    with apply_choice(model, replace(gone, method=Speedup(1.5))) as handle:
        FLUX1.generate(model, tiny, num_inference_steps=6)
    assert handle.stats.skipped > 0
