"""The grammar of methods: one text names a method with its setting, and every other text is refused with a mend."""

from argparse import ArgumentTypeError
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Facts, Setup
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import parse, published
from mflux_teacache_plugin.methods.dualcache import PRESETS, DualCache, DualCacheSettings
from mflux_teacache_plugin.methods.easycache import EasyCache
from mflux_teacache_plugin.methods.magcache import MagCache
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.seacache import DiffusersSeaCache, SeaCache
from mflux_teacache_plugin.methods.seconds import Seconds
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.methods.steps import Steps
from mflux_teacache_plugin.methods.teacache import TeaCache
from mflux_teacache_plugin.variants import Profile, StepList

THRESHOLDS = st.floats(0, 2, exclude_min=True)
FORECASTS = st.sampled_from(list(ORDERS))
LIMITS = st.integers(-1, 10**6)
SETTINGS = st.sampled_from(list(PRESETS.values())) | st.builds(
    DualCacheSettings,
    F=st.integers(1, 99),
    B=st.integers(0, 99),
    rdt=st.floats(0, 1, exclude_min=True, exclude_max=True),
    warmup=st.integers(0, 99),
    warmup_interval=st.integers(1, 9),
    max_cached=LIMITS,
    continuous=LIMITS,
    accumulated=st.floats(0, allow_infinity=False),
    separate=st.booleans(),
)
LISTS = st.sets(st.integers(0, 9999), max_size=30).map(lambda steps: tuple(sorted(steps | {0})))
METHODS = st.one_of(
    st.builds(TeaCache, THRESHOLDS, forecast=FORECASTS),
    st.builds(DiffusersSeaCache, THRESHOLDS, forecast=FORECASTS),
    st.builds(SeaCache, THRESHOLDS, forecast=FORECASTS),
    st.builds(Speedup, st.floats(1, 10, exclude_min=True), forecast=FORECASTS),
    st.builds(EasyCache, THRESHOLDS, st.integers(2, 99), forecast=FORECASTS),
    st.builds(MagCache, THRESHOLDS, st.integers(1, 99), st.floats(0, 1), forecast=FORECASTS),
    st.builds(Seconds, st.floats(0, 86400, exclude_min=True), forecast=FORECASTS),
    st.builds(Steps, LISTS, forecast=FORECASTS),
    st.builds(DualCache, SETTINGS, forecast=FORECASTS),
    st.builds(
        lambda name, forecast: DualCache(PRESETS[name], forecast=forecast),
        st.sampled_from(list(PRESETS)),
        FORECASTS,
    ),
)
#: Of a run of 50 steps.
WRITTEN = (StepList(steps=50, computed=(0, 1, 2, 20, 49)),)
#: Texts that are nearly methods.
PIECES = [
    "0.2",
    "1.5x",
    "x",
    "auto",
    "off",
    "dualcache",
    "seacache",
    "steps:0-",
    "easycache:",
    "ret_steps=",
    ":",
    "=",
    ",",
    "+",
    "F",
    "rdt",
    "reuse",
    "linear",
]
NEARLY = st.lists(st.sampled_from([*PIECES, "aggressive", "separate", "true", "1e", "-", "nan", "inf", "1"])).map(
    "".join
)


@given(st.text() | NEARLY | st.floats().map(str) | st.integers().map(str))
@example("1e+0")
@example("dualcache:F=" + "9" * 5000)  # Python makes no integer of so many digits
@example("dualcache:F=8,B=0,rdt=0.08,accumulated=1e+20,separate=false")
def test_any_text_is_a_method_or_an_error_that_quotes_it(text: str) -> None:
    try:
        found = parse(text)
    except ArgumentTypeError as error:
        assert f"'{text}'" in str(error)
    else:
        named = text.strip().lower()
        assert found == named if named in ("auto", "off") else parse(str(found)) == found


WINDOWS = st.tuples(st.integers(0, 999), st.integers(1, 1000)).filter(lambda pair: pair[0] < pair[1])


@given(METHODS, WINDOWS)
def test_a_methods_text_parses_back_to_it(method: Method, window: tuple[int, int]) -> None:
    method = replace(method, window=(window[0] / 1000, window[1] / 1000))
    assert parse(str(method)) == method


@pytest.mark.parametrize(
    ("text", "method", "canonical"),
    [
        ("0.2", TeaCache(0.2), "0.2"),
        ("teacache:0.2", TeaCache(0.2), "0.2"),
        (" 2X ", Speedup(2.0), "2x"),
        ("speedup:2x+REUSE", Speedup(2.0, forecast="reuse"), "2x+reuse"),
        ("SeaCache:0.3", SeaCache(0.3), "seacache:0.3"),
        ("DualCache:Aggressive", DualCache(PRESETS["aggressive"]), "dualcache:aggressive"),
        ("dualcache:f=8,RDT=0.1", DualCache(DualCacheSettings(rdt=0.1)), "dualcache:F=8,B=0,rdt=0.1"),
        ("2", TeaCache(2.0), "2"),
        ("seacache:0.25, Diffusers", DiffusersSeaCache(0.25), "seacache:0.25,diffusers"),
        ("seacache:0.3,diffusers+reuse", DiffusersSeaCache(0.3, forecast="reuse"), "seacache:0.3,diffusers+reuse"),
        ("2x@0.1-0.9", Speedup(2.0, window=(0.1, 0.9)), "2x@0.1-0.9"),
        ("2x@.1-1+reuse", Speedup(2.0, window=(0.1, 1), forecast="reuse"), "2x@0.1-1+reuse"),
        ("0.2@0-0.9", TeaCache(0.2, window=(0, 0.9)), "0.2@0-0.9"),
        ("dualcache:aggressive@0-1", DualCache(PRESETS["aggressive"]), "dualcache:aggressive"),
        ("2x+reuse@0.1-0.9", Speedup(2.0, window=(0.1, 0.9), forecast="reuse"), "2x@0.1-0.9+reuse"),
        ("2x,CFG_END=0.5+reuse", Speedup(2.0, cfg_end=0.5, forecast="reuse"), "2x+reuse,cfg_end=0.5"),
        ("1e-1@0-0.9,cfg_end=0.5", TeaCache(0.1, cfg_end=0.5, window=(0, 0.9)), "0.1@0-0.9,cfg_end=0.5"),
        ("2.0", TeaCache(2.0), "2"),
        ("0.2+reuse", TeaCache(0.2), "0.2"),
        ("0.2+linear", TeaCache(0.2, forecast="linear"), "0.2+linear"),
        ("1.5x", Speedup(1.5), "1.5x"),
        ("2x+linear", Speedup(2.0, forecast="linear"), "2x+linear"),
        ("2x+reuse", Speedup(2.0, forecast="reuse"), "2x+reuse"),
        ("2x+quadratic", Speedup(2.0, forecast="quadratic"), "2x+quadratic"),
        ("seacache:0.3", SeaCache(0.3), "seacache:0.3"),
        ("seacache:0.3+quadratic", SeaCache(0.3, forecast="quadratic"), "seacache:0.3+quadratic"),
        (
            "dualcache:aggressive",
            DualCache(DualCacheSettings(F=1, rdt=0.2, continuous=10)),
            "dualcache:aggressive",
        ),
        (
            "dualcache:F=1,rdt=0.2,continuous=10",
            DualCache(DualCacheSettings(F=1, rdt=0.2, continuous=10)),
            "dualcache:aggressive",
        ),
        ("steps:0-2,3, 5-6", Steps((0, 1, 2, 3, 5, 6)), "steps:0-3,5-6"),
        ("easycache:0.2", EasyCache(0.2), "easycache:0.2"),
        (
            "EasyCache:0.1, RET_STEPS=10+linear",
            EasyCache(0.1, 10, forecast="linear"),
            "easycache:0.1,ret_steps=10+linear",
        ),
        ("magcache:0.06", MagCache(0.06), "magcache:0.06"),
        ("magcache:0.24,k=5,retention=0.1", MagCache(0.24, 5, 0.1), "magcache:0.24,K=5,retention=0.1"),
        ("90s", Seconds(90.0), "90s"),
        ("seconds:7.5S+reuse", Seconds(7.5, forecast="reuse"), "7.5s+reuse"),
        ("STEPS:0+reuse", Steps((0,), forecast="reuse"), "steps:0+reuse"),
        ("dualcache:F=8", DualCache(DualCacheSettings()), "dualcache:F=8,B=0,rdt=0.08"),
        (
            "dualcache: rdt=0.12, F=2+linear",
            DualCache(DualCacheSettings(F=2, rdt=0.12), forecast="linear"),
            "dualcache:F=2,B=0,rdt=0.12+linear",
        ),
    ],
)
def test_what_texts_mean(text: str, method: Method, canonical: str) -> None:
    assert parse(text) == method
    assert str(parse(text)) == canonical


#: cache-dit's names, a value, and ours.
CACHE_DIT = [
    ("Fn_compute_blocks", "2", "F", 2),
    ("Fn", "2", "F", 2),
    ("Bn_compute_blocks", "3", "B", 3),
    ("Bn", "3", "B", 3),
    ("residual_diff_threshold", "0.1", "rdt", 0.1),
    ("max_warmup_steps", "4", "warmup", 4),
    ("warmup_interval", "2", "warmup_interval", 2),
    ("max_cached_steps", "5", "max_cached", 5),
    ("max_continuous_cached_steps", "3", "continuous", 3),
    ("max_accumulated_residual_diff_threshold", "1.5", "accumulated", 1.5),
    ("cfg_diff_compute_separate", "False", "separate", False),
]


@pytest.mark.parametrize(("theirs", "value", "ours", "number"), CACHE_DIT)
def test_cache_dits_names_of_the_settings_are_taken_too(theirs: str, value: str, ours: str, number: object) -> None:
    found = parse(f"dualcache:{theirs}={value}")
    assert isinstance(found, DualCache)
    assert getattr(found.settings, ours) == number
    assert found == parse(f"dualcache:{ours}={value}")


def test_every_setting_has_both_names() -> None:
    assert {row[2] for row in CACHE_DIT} == set(DualCacheSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "use 'off'"),
        ("2.01", "at most 2; try 0.2"),
        ("nan", "try 0.2"),
        ("abc", "neither a number nor a speed-up"),
        ("0.5x", "not a speed-up above 1x and at most 10x; try 1.5x"),
        ("1x", "not a speed-up above 1x"),
        ("900x", "at most 10x"),
        ("nanx", "not a speed-up"),
        ("x", "neither a number nor a speed-up"),
        (
            "teecache:0.2",
            f"'teecache' is no method; there are {', '.join(sorted(methods.BUILT_IN))}",
        ),
        ("easycache:", "neither a number"),
        ("easycache:0.2,first=3", "'first=3' is none of ret_steps="),
        ("easycache:0.2,ret_steps=1", "ret_steps=1 is not a whole number from 2 on"),
        ("magcache:0.06,K=0", "K=0 is not a whole number from 1 on"),
        ("magcache:0.06,retention=nan", "retention=nan is not a number from 0 to 1"),
        ("magcache:0.06,F=1", "'F=1' is none of K=, retention="),
        ("seacache:0.3,comfy", "'comfy' is not 'diffusers'"),
        ("2x@0.9-0.1", "'@0.9-0.1' is no part of a run; write shares between 0 and 1, such as @0.1-0.9"),
        ("2x@", "no part of a run"),
        ("2x@0-0.5+reuse@0.1-0.9", "'@' is given twice"),
        ("0.2+linear+linear", "'+' is given twice"),
        ("auto+linear", "'auto' takes no forecast; name a method, such as 2x, or give --teacache-forecast"),
        ("off@0-0.5", "'off' takes no window; name a method, such as 2x"),
        ("2x@.-.", "no part of a run"),
        ("2x@0.1", "no part of a run"),
        ("2x@0.1-1.5", "no part of a run"),
        ("0s", "no time above 0 and at most a day; try 90s"),
        ("seconds:nan", "no time above 0"),
        ("1e9s", "at most a day"),
        ("steps:", "'' is no list of rising steps, such as 0-9,12"),
        ("steps:3,2", "no list of rising steps"),
        ("steps:0-4,9-7,12", "no list of rising steps"),
        ("steps:1-9", "leaves out step 0"),
        ("seacache:0", "use 'off'"),
        ("seacache:3", "at most 2; try 0.3"),
        ("dualcache:", "is neither a preset (aggressive, conservative) nor"),
        ("dualcache:agressive", "is neither a preset (aggressive, conservative) nor of the form F=8,B=0,rdt=0.08"),
        ("dualcache:rdt=nan", "rdt=nan is not between 0 and 1; try 0.08"),
        ("dualcache:rdt=0", "rdt=0 is not between 0 and 1"),
        ("dualcache:rdt=1", "rdt=1 is not between 0 and 1"),
        ("dualcache:rdt=", "neither a number"),
        ("dualcache:F=0", "F=0 is not a whole number from 1 on"),
        ("dualcache:F=1.5", "F=1.5 is not a whole number"),
        ("dualcache:continuous=-2", "continuous=-2 is not a whole number from -1 on"),
        ("dualcache:warmup_interval=0", "warmup_interval=0 is not a whole number from 1 on"),
        ("dualcache:accumulated=inf", "accumulated=inf is not a number from 0 on"),
        ("dualcache:separate=1", "separate=1 is neither true nor false"),
        ("dualcache:F=8,colour=red", "'colour=red' is none of F=, B=, rdt=, warmup=,"),
        ("dualcache:F=8,", "'' is none of F=, B="),
        ("dualcache:F=8,F=8", "F is given twice"),
        ("dualcache:F=8,Fn=8", "F is given twice"),
        ("0.2+cubic", "'cubic' is no forecast; there are reuse, linear, quadratic"),
        ("0.2+", "'' is no forecast"),
    ],
)
def test_what_is_refused_and_what_would_do(text: str, words: str) -> None:
    with pytest.raises(ArgumentTypeError) as error:
        parse(text)
    assert words in str(error.value)
    assert f"'{text}'" in str(error.value)


def test_a_plugins_method_is_known_by_its_name_and_takes_a_forecast() -> None:
    known = {**methods.BUILT_IN, "mine": lambda setting: TeaCache(float(setting))}
    assert parse("mine:0.4+linear", known) == TeaCache(0.4, forecast="linear")
    with pytest.raises(ArgumentTypeError, match=r"there are cuts, dualcache, .*, mine, seacache"):
        parse("ours:0.4", known)


# ---- whether it can be met -------------------------------------------------------------------------------------------


@given(st.sampled_from(["1.1x", "1.5x", "2x", "3x", "10x"]), FORECASTS, st.integers(1, 120))
def test_a_speed_up_is_met_or_refused_with_a_number_of_steps_that_would_do(
    text: str, forecast: str, steps: int
) -> None:
    method = parse(f"{text}+{forecast}")
    assert isinstance(method, Speedup)
    try:
        method.check_steps(steps)
    except SettingsError as error:
        enough = int(str(error.hint).split()[3])
        assert enough > steps
        method.check_steps(enough)
        with pytest.raises(SettingsError):
            method.check_steps(enough - 1)
        return
    facts = Facts(tuple(1 - step / steps for step in range(steps)))
    computed = method.schedule(None, facts)
    assert computed[0] == 0 and computed[-1] == steps - 1
    assert steps / len(computed) >= method.factor - 1e-9, "as fast as was asked for"
    assert len(computed) == steps or steps / (len(computed) + 1) < method.factor, "and not faster than need be"
    assert len(computed) >= ORDERS[forecast] + 2, "and there are points to forecast from"


def test_steps_that_are_not_known_yet_are_no_reason_to_refuse() -> None:
    Speedup(1.5).check_steps(None)


def test_seacache_as_diffusers_has_it_computes_after_two_skips() -> None:
    gate = parse("seacache:0.25,diffusers").gate(
        Setup(Facts(tuple(1 - step / 12 for step in range(12))), Generation(12))
    )
    assert [step for step in range(12) if not gate(step, lambda: 0.01).skip] == [0, 3, 6, 9, 11]
    assert parse("seacache:0.25,diffusers").order == 1


def test_a_list_of_steps_must_fit_the_run_and_is_what_is_computed() -> None:
    method = parse("steps:0-2,5,9")
    method.check_steps(None)
    with pytest.raises(SettingsError, match="does not fit a run of 9 steps") as error:
        method.check_steps(9)
    assert "steps count from 0" in str(error.value.cause) and "take 10 --steps" in str(error.value.hint)
    setup = Setup(Facts(tuple(1 - step / 12 for step in range(12))), Generation(12))
    gate = method.gate(setup)
    assert [step for step in range(12) if not gate(step, lambda: 1.0).skip] == [0, 1, 2, 5, 9]


def test_published_lists_count_and_then_the_profile_and_then_what_all_lists_share() -> None:
    facts = Facts((1.0, 0.8, 0.6, 0.4, 0.2, 0.1))
    profile = Profile(sigma=(1.0, 0.85, 0.0), change=(0.0, 1.0, 1.1))
    method = Speedup(2.0, forecast="reuse")
    listed = (StepList(steps=6, computed=(0, 4, 5)),)
    assert method.schedule(SimpleNamespace(step_lists=listed, profile=profile), facts) == (0, 4, 5)
    of_another_run = (StepList(steps=11, computed=(0, 8, 10)),)
    assert method.schedule(SimpleNamespace(step_lists=of_another_run, profile=profile), facts) == (0, 4, 5)
    recorded = SimpleNamespace(step_lists=(), profile=profile)
    assert method.schedule(recorded, facts) == (0, 1, 5), "nearly all changes in the first step"
    ends_early = SimpleNamespace(step_lists=(), profile=Profile(sigma=(1.0, 0.7, 0.5), change=(0.0, 1.0, 2.0)))
    for nothing in (None, SimpleNamespace(step_lists=(), profile=None), ends_early):
        assert method.schedule(nothing, facts) == published.schedule((), facts, 3)


def test_a_run_outside_of_what_was_recorded_is_noted() -> None:
    sigmas = tuple(1 - step / 10 for step in range(10))
    profile = Profile(sigma=sigmas, change=tuple(range(10)), guidance=4.0)
    for step_lists, note in (((), "outside what was recorded: guidance 10, not 4"), (WRITTEN, "")):
        setup = Setup(
            Facts(sigmas, guidance=10.0), Generation(10), SimpleNamespace(step_lists=step_lists, profile=profile)
        )
        Speedup(2.0).gate(setup)
        assert setup.record.note == note


@pytest.mark.parametrize(
    ("variant", "steps", "runs"),
    [
        (None, 14, False),
        (None, 15, True),
        (SimpleNamespace(step_lists=(StepList(steps=8, computed=(0, 2, 7)),), profile=None), 7, False),
        (SimpleNamespace(step_lists=(StepList(steps=8, computed=(0, 2, 7)),), profile=None), 8, True),
        (SimpleNamespace(step_lists=(), profile=Profile(sigma=(1.0, 0.9, 0.5), change=(0, 1, 2))), 6, True),
        (SimpleNamespace(step_lists=WRITTEN, profile=None), 14, False),
    ],
)
def test_by_default_nothing_is_skipped_of_few_steps_unless_a_run_as_short_was_recorded(variant, steps, runs) -> None:
    method = Speedup(1.5).as_recommended(variant)
    assert method == Speedup(1.5) and str(method) == "1.5x"
    Speedup(1.5).check_steps(steps)
    if runs:
        method.check_steps(steps)
    else:
        with pytest.raises(SettingsError, match=f"{steps} steps are few, and nobody has shown"):
            method.check_steps(steps)


def test_dualcache_takes_no_more_blocks_than_there_are_but_a_preset_gives_way() -> None:
    blocks = {"double": 2, "single": 20}
    assert parse("dualcache:conservative").fit(blocks).F == 1, "one block at least is left to skip"
    assert parse("dualcache:conservative").fit({"double": 19}).F == 4
    assert parse("dualcache:F=1,B=1,rdt=0.1").fit(blocks) == DualCacheSettings(F=1, B=1, rdt=0.1)
    for text, words in (("F=3", "F=3 is more"), ("F=1,B=2", "B=2 is more")):
        with pytest.raises(SettingsError) as error:
            parse(f"dualcache:{text}").fit(blocks)
        assert words in error.value.error and "double has 2 blocks" in str(error.value.cause)


def test_what_each_method_needs() -> None:
    """Whether it looks inside, needs coefficients, and is told of numbers that were made for a relative of the model."""
    needs = {
        text: (parse(text).needs_taps, parse(text).needs_coefficients, parse(text).uses_numbers)
        for text in ("0.2", "2x", "seacache:0.3", "dualcache:aggressive")
    }
    assert needs == {
        "0.2": (True, True, True),
        "2x": (False, False, True),
        "seacache:0.3": (True, False, False),
        "dualcache:aggressive": (True, False, False),
    }
