"""The grammar of methods: one text names a method with its setting, and every other text is refused with a mend."""

from argparse import ArgumentTypeError
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import parse
from mflux_teacache_plugin.methods.dualcache import PRESETS, DualCache, DualCacheSettings
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.seacache import SeaCache
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.methods.teacache import TeaCache

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
METHODS = st.one_of(
    st.builds(TeaCache, THRESHOLDS, forecast=FORECASTS),
    st.builds(SeaCache, THRESHOLDS, forecast=FORECASTS),
    st.builds(Speedup, st.floats(1, 10, exclude_min=True), forecast=FORECASTS),
    st.builds(DualCache, SETTINGS, st.none(), forecast=FORECASTS),
    st.builds(
        lambda name, forecast: DualCache(PRESETS[name], name, forecast=forecast),
        st.sampled_from(list(PRESETS)),
        FORECASTS,
    ),
)
#: Texts that are nearly methods.
PIECES = ["0.2", "1.5x", "x", "auto", "off", "dualcache", "seacache", ":", "=", ",", "+", "F", "rdt", "reuse", "linear"]
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


@given(METHODS)
def test_a_methods_text_parses_back_to_it(method: Method) -> None:
    found = parse(str(method))
    if isinstance(method, DualCache):  # settings that have a name may get it
        assert isinstance(found, DualCache)
        assert (found.settings, found.forecast) == (method.settings, method.forecast)
        assert str(parse(str(found))) == str(found)
    else:
        assert found == method


@pytest.mark.parametrize(
    ("text", "method", "canonical"),
    [
        ("0.2", TeaCache(0.2), "0.2"),
        ("teacache:0.2", TeaCache(0.2), "0.2"),
        (" 2X ", Speedup(2.0), "2x"),
        ("speedup:2x+REUSE", Speedup(2.0, forecast="reuse"), "2x+reuse"),
        ("SeaCache:0.3", SeaCache(0.3), "seacache:0.3"),
        ("DualCache:Aggressive", DualCache(PRESETS["aggressive"], "aggressive"), "dualcache:aggressive"),
        ("dualcache:f=8,RDT=0.1", DualCache(DualCacheSettings(rdt=0.1)), "dualcache:F=8,B=0,rdt=0.1"),
        ("2", TeaCache(2.0), "2"),
        ("2.0", TeaCache(2.0), "2"),
        ("0.2+reuse", TeaCache(0.2), "0.2"),
        ("0.2+linear", TeaCache(0.2, forecast="linear"), "0.2+linear"),
        ("1.5x", Speedup(1.5), "1.5x"),
        ("2x+linear", Speedup(2.0), "2x"),
        ("2x+reuse", Speedup(2.0, forecast="reuse"), "2x+reuse"),
        ("2x+quadratic", Speedup(2.0, forecast="quadratic"), "2x+quadratic"),
        ("seacache:0.3", SeaCache(0.3), "seacache:0.3"),
        ("seacache:0.3+quadratic", SeaCache(0.3, forecast="quadratic"), "seacache:0.3+quadratic"),
        (
            "dualcache:aggressive",
            DualCache(DualCacheSettings(F=1, rdt=0.2, continuous=10), "aggressive"),
            "dualcache:aggressive",
        ),
        (
            "dualcache:F=1,rdt=0.2,continuous=10",
            DualCache(DualCacheSettings(F=1, rdt=0.2, continuous=10), "aggressive"),
            "dualcache:aggressive",
        ),
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
        ("teecache:0.2", "'teecache' is no method; there are dualcache, seacache, speedup, teacache"),
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
        ("dualcache:F=8,colour=red", "'colour' is no setting of DualCache; there are F, B, rdt, warmup,"),
        ("dualcache:F=8,", "'' is no setting of DualCache"),
        ("dualcache:F=8,F=8", "F is given twice"),
        ("dualcache:F=8,Fn=8", "F is given twice"),
        ("0.2+cubic", "'cubic' is no forecast; there are reuse, linear, quadratic"),
        ("0.2+", "'' is no forecast"),
        ("auto+linear", "'auto' is neither a number"),
        ("0.2+linear+linear", "'0.2+linear' is neither a number"),
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
    with pytest.raises(ArgumentTypeError, match="there are dualcache, mine, seacache"):
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


def test_a_published_list_counts_and_then_the_profile() -> None:
    facts = Facts((1.0, 0.8, 0.6, 0.4, 0.2, 0.1))
    profile = SimpleNamespace(sigma=(1.0, 0.85, 0.0), change=(0.0, 1.0, 1.1))
    published = SimpleNamespace(steps=6, computed=(0, 4, 5))
    variant = SimpleNamespace(id="x", step_lists=(published,), profile=profile)
    assert Speedup(2.0, forecast="reuse").schedule(variant, facts) == (0, 4, 5)
    variant.step_lists = (SimpleNamespace(steps=7, computed=(0, 4, 6)),)  # of another run
    assert Speedup(2.0, forecast="reuse").schedule(variant, facts) == (0, 1, 5), "nearly all changes in the first step"
    variant.step_lists, variant.profile = (SimpleNamespace(steps=6, computed=(0, 5)),), None
    assert Speedup(2.0, forecast="reuse").schedule(variant, facts) == (0, 2, 5), (
        "filled up in the middle of the widest gap"
    )


def test_a_profile_that_ends_before_the_run_is_an_error_with_both_spans() -> None:
    variant = SimpleNamespace(
        id="x", step_lists=(), profile=SimpleNamespace(sigma=(1.0, 0.7, 0.5), change=(0.0, 1.0, 2.0))
    )
    with pytest.raises(SettingsError) as error:
        Speedup(2.0).schedule(variant, Facts((1.0, 0.8, 0.6, 0.4, 0.2, 0.1)))
    assert "from 1 to 0.1" in str(error.value) and "from 1 to 0.5" in str(error.value)


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
