"""A fault, wherever it happens, is one line: the picture is made, the model is left as it was, the next picture is plain mflux's.

Each test makes a picture with one thing broken, and then a plain one, which has to have the bits of the picture made before.
"""

import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tqdm
from mlx.utils import tree_flatten

from mflux_teacache_plugin import apply, apply_teacache, hookimpl
from mflux_teacache_plugin.adapters import intercept
from mflux_teacache_plugin.caching import block_cache, step_cache
from mflux_teacache_plugin.host import bridge
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.host.manager import load_plugins
from mflux_teacache_plugin.host.watch import Observer, watch
from mflux_teacache_plugin.methods.dualcache import DualCache, DualCacheSettings
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.seacache import SeaCache
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.methods.teacache import TeaCache
from tests.support import a_variant
from tests.tiny.cases import case

pytestmark = pytest.mark.usefixtures("eager")

FLUX1, BASE = case("flux1"), case("klein-base")
FLUX1_ADAPTER = apply.choose.registry().adapters["flux1"]  # Klein's lists of blocks have the same names
STEPS = 6
HERE = "mflux_teacache_plugin"


class Theirs(Exception):
    """Of somebody's plugin."""


class Speechless(Exception):
    """Whose words fail too."""

    def __str__(self) -> str:
        raise Theirs("no words")


KINDS = [ValueError("broken"), MemoryError("broken"), AssertionError("broken"), Theirs("broken"), Speechless()]

#: Skip whatever may be skipped, one way or another.
METHODS: dict[str, Method] = {
    "teacache": TeaCache(2.0, forecast="linear"),
    "speedup": Speedup(2.0, forecast="reuse"),
    "seacache": SeaCache(2.0),
    "dualcache": DualCache(DualCacheSettings(F=1, B=0, rdt=0.999, warmup=0)),
}


def generate(case: Any, model: Any, tiny: Any) -> np.ndarray:
    return case.generate(model, tiny, num_inference_steps=STEPS, width=32, height=32)


def state(model: Any, of_the_pipeline: bool = True) -> dict[str, Any]:
    """Classes, attributes, parameters and callbacks; `of_the_pipeline`: also of the pipeline itself, which is watched."""
    modules = {name: module for name, module in model.named_modules() if name or of_the_pipeline}
    found: dict[str, Any] = {name: (type(module), sorted(vars(module))) for name, module in modules.items()}
    found["parameters"] = [(name, id(value)) for name, value in tree_flatten(model.parameters())]
    found["blocks"] = {name: len(value) for name, value in intercept.lists_of_blocks(model, FLUX1_ADAPTER).items()}
    if of_the_pipeline:
        found["callbacks"] = {name: list(value) for name, value in vars(model.callbacks).items()}
    return found


@dataclass
class Subject:
    """A model, built once, with what it makes and how it looks untouched."""

    case: Any
    model: Any
    plain: np.ndarray
    before: dict[str, Any]


@pytest.fixture(scope="module")
def subjects(tiny: Any) -> Callable[[Any], Subject]:
    built: dict[str, Subject] = {}

    def subject(case: Any) -> Subject:
        if case.id not in built:
            model = case.build(tiny)
            built[case.id] = Subject(case, model, generate(case, model, tiny), state(model))
        return built[case.id]

    return subject


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What was said about a fault since the last call, a line each. The progress bar ends its lines otherwise."""

    def said() -> list[str]:
        lines = re.findall(r"(?:TeaCache|mflux): .*", capsys.readouterr().err)
        return [line for line in lines if not re.fullmatch(r"TeaCache: skipped [\d.]+ of \d+ steps \([^)]*\)", line)]

    said()
    return said


class Fails:
    """Stands in for something that is called: raises from its n-th call on."""

    def __init__(self, exception: BaseException, stock: Callable[..., Any] | None = None, call: int = 1) -> None:
        self.exception, self.stock, self.left = exception, stock, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left <= 0:
            raise self.exception
        assert self.stock is not None
        return self.stock(*args, **kwargs)

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else lambda *args, **kwargs: self(owner, *args, **kwargs)


def breaks(patch: pytest.MonkeyPatch, place: str, exception: BaseException, call: int = 1) -> None:
    """Break `module:Class.name` or `module:name` of this package from its n-th call on."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(f"{HERE}.{module}")
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    stock = owner.__dict__[name]
    if isinstance(stock, property):
        patch.setattr(owner, name, property(Fails(exception, stock.fget, call).__call__))
    else:
        patch.setattr(owner, name, Fails(exception, stock, call))


def survives(subject: Subject, tiny: Any, method: Method, said: Callable[[], list[str]]) -> list[str]:
    """One picture with this method while something is broken; gives what was said."""
    variant = a_variant(subject.case)
    handle = apply_teacache(subject.model, method, variant=variant)
    try:
        picture = generate(subject.case, subject.model, tiny)
        lines = said()
        within = state(subject.model, of_the_pipeline=False)
        assert all(subject.before[name] == found for name, found in within.items()), "left as soon as the loop is over"
    finally:
        handle.restore()
    assert picture.shape == subject.plain.shape
    if handle.stats.skipped == 0:
        assert np.array_equal(picture, subject.plain)
    assert state(subject.model) == subject.before
    return lines


def assert_next_is_plain(subject: Subject, tiny: Any) -> None:
    assert np.array_equal(generate(subject.case, subject.model, tiny), subject.plain)
    assert state(subject.model) == subject.before


# ---- the engine, piece by piece --------------------------------------------------------------------------------------

#: Method, what is broken, and from which call on; calls are counted from 1, so that 3 is in the middle of the loop.
PIECES = [
    ("teacache", "methods.method:Method.cache", 1),
    ("teacache", "methods.teacache:TeaCache.gate", 1),
    ("teacache", "methods.teacache:TeaCacheGate.__init__", 1),
    ("teacache", "methods.teacache:TeaCacheGate.__call__", 1),
    ("teacache", "methods.teacache:TeaCacheGate.__call__", 3),
    ("teacache", "methods.teacache:TeaCacheGate.reset", 1),
    ("teacache", "methods.teacache:TeaCacheGate.reset", 2),
    ("teacache", "caching.step_cache:relative_change", 1),
    ("teacache", "caching.step_cache:relative_change", 3),
    ("teacache", "caching.step_cache:StepCache.__init__", 1),
    ("teacache", "caching.step_cache:StepCache.attach", 1),
    ("teacache", "caching.step_cache:StepCache.kept", 1),
    ("teacache", "caching.step_cache:StepCache.forget", 1),
    ("teacache", "caching.step_cache:Cache.end_step", 1),
    ("teacache", "caching.step_cache:Cache.end_step", 3),
    ("teacache", "caching.taps:Taps.__init__", 2),  # the first call is apply_teacache's own check
    ("teacache", "caching.taps:Taps.full", 1),
    ("teacache", "caching.taps:Taps.full", 3),
    ("teacache", "caching.taps:Taps.without_blocks", 1),
    ("teacache", "caching.taps:Taps.without_blocks", 2),
    ("teacache", "caching.forecast:Forecast.learn", 1),
    ("teacache", "caching.forecast:Forecast.at", 1),
    ("teacache", "caching.forecast:Forecast.at", 2),
    ("teacache", "caching.gate:Facts.__init__", 1),
    ("teacache", "apply:facts_of", 1),
    ("teacache", "apply:lists_of_blocks", 2),
    ("teacache", "choose:check_run", 2),
    ("teacache", "caching.stats:Stats.begin", 1),
    ("teacache", "adapters.intercept:Interception.__init__", 1),
    ("teacache", "adapters.intercept:Interception.transformer_calls", 1),
    ("teacache", "adapters.intercept:stand_before", 1),
    ("teacache", "summary:metadata", 1),
    ("speedup", "methods.speedup:Speedup.schedule", 1),
    ("speedup", "methods.speedup:ScheduleGate.__call__", 1),
    ("speedup", "methods.speedup:ScheduleGate.__call__", 4),
    ("speedup", "caching.step_cache:PredictionCache.attach", 1),
    ("speedup", "caching.step_cache:Cache.kept", 2),
    ("speedup", "caching.step_cache:PredictionCache.forget", 1),
    ("speedup", "caching.step_cache:PredictionCache._ask", 2),
    ("speedup", "caching.forecast:Forecast.learn", 1),
    ("speedup", "caching.forecast:Forecast.at", 1),
    ("speedup", "adapters.intercept:Interception.predictions", 1),
    ("seacache", "methods.seacache:sea_filter", 1),
    ("seacache", "methods.seacache:sea_filter", 3),
    ("dualcache", "methods.dualcache:DualCache.cache", 1),
    ("dualcache", "methods.dualcache:DualCacheGate.__init__", 1),
    ("dualcache", "methods.dualcache:DualCacheGate.__call__", 1),
    ("dualcache", "methods.dualcache:DualCacheGate.__call__", 4),
    ("dualcache", "caching.block_cache:relative_change", 2),
    ("dualcache", "caching.block_cache:BlockCache._begin", 3),
    ("dualcache", "caching.step_cache:Cache._decide", 3),
    ("dualcache", "caching.block_cache:BlockCache._learn", 1),
    ("dualcache", "caching.block_cache:BlockCache._stand_in", 2),
    ("dualcache", "caching.block_cache:BlockCache.end_step", 2),
    ("dualcache", "caching.block_cache:BlockCache.attach", 1),
    ("dualcache", "adapters.intercept:Interception.blocks", 1),
    ("dualcache", "adapters.intercept:stand_before", 3),
]

#: What is dropped anyway, whether it can say so or not.
SILENT = (":StepCache.forget", ":PredictionCache.forget")


@pytest.mark.parametrize(("method", "place", "call"), PIECES, ids=[f"{m}-{p}-{c}" for m, p, c in PIECES])
def test_a_piece_that_fails_costs_no_picture(method, place, call, subjects, tiny, said, monkeypatch):
    exception = KINDS[PIECES.index((method, place, call)) % len(KINDS)]
    subject = subjects(FLUX1)
    with monkeypatch.context() as patch:
        breaks(patch, place, exception, call)
        lines = survives(subject, tiny, METHODS[method], said)
    if place.endswith(SILENT):
        assert lines == []
    else:
        (line,) = lines
        assert type(exception).__name__ in line
        assert isinstance(exception, Speechless) or "broken" in line
    assert_next_is_plain(subject, tiny)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("method", "place", "call"),
    [
        ("teacache", "adapters.intercept:uncompiled", 1),  # another mflux may not be asked like this
        ("teacache", "caching.step_cache:relative_change", 2),
        ("dualcache", "adapters.intercept:uncompiled", 1),
    ],
)
def test_where_mflux_compiles_too(method, place, call, tiny, said, monkeypatch, request):
    mx.enable_compile()
    model = BASE.build(tiny)
    subject = Subject(BASE, model, generate(BASE, model, tiny), state(model))
    with monkeypatch.context() as patch:
        breaks(patch, place, Theirs("broken"), call)
        (line,) = survives(subject, tiny, METHODS[method], said)
    assert "Theirs: broken" in line
    assert_next_is_plain(subject, tiny)


@pytest.mark.parametrize("verdict", [None, "skip", 1.0])
def test_a_gate_that_answers_with_something_else(verdict, subjects, tiny, said, monkeypatch):
    subject = subjects(FLUX1)
    monkeypatch.setattr(f"{HERE}.methods.teacache.TeaCacheGate.__call__", lambda *_: verdict)
    (line,) = survives(subject, tiny, METHODS["teacache"], said)
    assert "AttributeError" in line and "stopped" in line


@pytest.mark.parametrize("exception", KINDS, ids=lambda exception: type(exception).__name__)
def test_the_progress_bar_fails(exception, subjects, tiny, said, monkeypatch):
    subject = subjects(FLUX1)
    with monkeypatch.context() as patch:
        patch.setattr(tqdm.tqdm, "set_postfix", Fails(exception))
        (line,) = survives(subject, tiny, METHODS["teacache"], said)
    assert type(exception).__name__ in line and "stopped after step 1" in line
    assert_next_is_plain(subject, tiny)


@pytest.mark.parametrize("fault", ["summary:summary", "summary:say"])
def test_not_even_the_line_about_a_fault_may_fail(fault, subjects, tiny, said, monkeypatch):
    subject = subjects(FLUX1)
    with monkeypatch.context() as patch:
        breaks(patch, fault, Theirs("broken"))
        breaks(patch, "methods.teacache:TeaCacheGate.__call__", ValueError("the first"))
        (line,) = survives(subject, tiny, METHODS["teacache"], said)
    assert line.startswith("mflux: TeaCache stopped: Theirs: broken")
    assert_next_is_plain(subject, tiny)


def test_without_a_standard_error(subjects, tiny, monkeypatch):
    """As under pythonw, or where it was closed."""
    subject = subjects(FLUX1)
    variant = a_variant(FLUX1)
    breaks(monkeypatch, "methods.teacache:TeaCacheGate.__call__", Theirs("broken"))
    with apply_teacache(subject.model, METHODS["teacache"], variant=variant) as handle:
        closed = io.StringIO()
        closed.close()
        stock = sys.stderr
        watch_stop = watch(subject.model, _At("loop_end", lambda: monkeypatch.setattr(sys, "stderr", closed)))
        try:
            picture = generate(FLUX1, subject.model, tiny)
        finally:
            monkeypatch.setattr(sys, "stderr", stock)
            watch_stop()
    assert np.array_equal(picture, subject.plain) and handle.stats.last.fault == "Theirs: broken"
    assert state(subject.model) == subject.before


# ---- observers of one model ------------------------------------------------------------------------------------------

EVENTS = ["generation_called", "generation_begin", "step_end", "loop_end", "generation_end"]


class _At(Observer):
    """Does something when told of one event, from its n-th time on."""

    def __init__(self, event: str, act: Callable[[], Any], call: int = 1) -> None:
        self.seen: list[str] = []
        self.left = call

        def told(model: Any, *_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                act()

        setattr(self, event, told)


def raising(exception: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise exception

    return act


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_an_observer_that_fails_keeps_no_other_from_being_told(event, first, subjects, tiny, said):
    subject = subjects(FLUX1)
    exception = KINDS[EVENTS.index(event) % len(KINDS)]
    observer = _At(event, raising(exception))
    stop = watch(subject.model, observer) if first else None
    handle = apply_teacache(subject.model, METHODS["teacache"], variant=a_variant(FLUX1))
    stop = stop or watch(subject.model, observer)
    generate(FLUX1, subject.model, tiny)
    (line,) = said()
    handle.restore()
    stop()
    assert line.startswith(f"mflux: a fault in {event}, mflux goes on without it: {type(exception).__name__}")
    assert handle.stats.last.fault is None and handle.stats.skipped == STEPS - 2
    assert_next_is_plain(subject, tiny)


def test_an_observer_whose_own_way_with_faults_fails_too(subjects, tiny, said):
    class Helpless(Observer):
        def step_end(self, model, t, time_steps):
            if t == 2:
                raise ValueError("broken")

        def fault(self, model, event, exception):
            raise Theirs("this too")

    subject = subjects(FLUX1)
    stop = watch(subject.model, Helpless())
    assert np.array_equal(generate(FLUX1, subject.model, tiny), subject.plain)
    stop()
    assert said() == ["mflux: a fault in step_end: Theirs: this too (MFLUX_TEACACHE_DEBUG=1 shows where)"]
    assert state(subject.model) == subject.before


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(subject: Subject, tiny: Any, method: Method) -> None:
    """Make a picture that Ctrl-C ends; mflux makes an exception of its own of one in the loop."""
    from mflux.utils.exceptions import StopImageGenerationException

    with apply_teacache(subject.model, method, variant=a_variant(subject.case)):
        with pytest.raises((KeyboardInterrupt, StopImageGenerationException)):
            generate(subject.case, subject.model, tiny)
        within = state(subject.model, of_the_pipeline=False)
        assert all(subject.before[name] == found for name, found in within.items())
    assert_next_is_plain(subject, tiny)


@pytest.mark.parametrize("step", range(STEPS))
def test_ctrl_c_at_each_step(step, subjects, tiny, said):
    subject = subjects(FLUX1)
    stop = watch(subject.model, _At("step_end", raising(KeyboardInterrupt()), call=step + 1))
    try:
        method = list(METHODS.values())[step % len(METHODS)]
        with apply_teacache(subject.model, method, variant=a_variant(FLUX1)) as handle:
            with pytest.raises(Exception, match=f"Stopping image generation at step {step + 1}/{STEPS}"):
                generate(FLUX1, subject.model, tiny)
            within = state(subject.model, of_the_pipeline=False)
            assert all(subject.before[name] == found for name, found in within.items())
        assert handle.stats.last.taken == step + 1 and handle.stats.last.fault is None
    finally:
        stop()
    assert said() == []
    assert_next_is_plain(subject, tiny)


@pytest.mark.parametrize(
    ("method", "place", "call"),
    [
        ("teacache", "methods.teacache:TeaCacheGate.__call__", 2),
        ("teacache", "caching.taps:Taps._on_final", 4),
        ("teacache", "caching.taps:Taps.without_blocks", 2),
        ("teacache", "caching.forecast:Forecast.at", 1),
        ("teacache", "apply:facts_of", 1),
        ("speedup", "caching.step_cache:PredictionCache._ask", 3),
        ("dualcache", "caching.step_cache:Cache._decide", 3),
    ],
)
def test_ctrl_c_in_the_middle_of_ours(method, place, call, subjects, tiny, monkeypatch):
    subject = subjects(FLUX1)
    with monkeypatch.context() as patch:
        breaks(patch, place, KeyboardInterrupt(), call)
        stock = generate

        def once(*args: Any) -> Any:  # the picture afterwards is made without the break
            try:
                return stock(*args)
            finally:
                patch.undo()

        patch.setattr(f"{__name__}.generate", once)
        interrupted(subject, tiny, METHODS[method])


@pytest.mark.parametrize("event", ["generation_called", "generation_begin", "loop_end", "generation_end"])
def test_ctrl_c_outside_of_the_loop_reaches_everybody_and_is_passed_on(event, subjects, tiny):
    subject = subjects(FLUX1)
    told = []
    stops = [
        watch(subject.model, _At(event, raising(KeyboardInterrupt()))),
        watch(subject.model, _At("generation_end", lambda: told.append("end"))),
    ]
    with apply_teacache(subject.model, METHODS["teacache"], variant=a_variant(FLUX1)):
        with pytest.raises(KeyboardInterrupt):
            generate(FLUX1, subject.model, tiny)
        assert told == ["end"]
        within = state(subject.model, of_the_pipeline=False)
        assert all(subject.before[name] == found for name, found in within.items())
    for stop in stops:
        stop()
    assert_next_is_plain(subject, tiny)


# ---- the model's own faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("call", [1, 3])
def test_a_transformer_that_raises_is_mfluxs_and_passed_on(name, call, subjects, tiny, said):
    subject = subjects(FLUX1)
    own = RuntimeError("mflux's own")
    called: list[int] = []

    def layer(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        called.append(1)
        if len(called) >= call:
            raise own
        return inner(*args, **kwargs)

    with apply_teacache(subject.model, METHODS[name], variant=a_variant(FLUX1)):
        undo = stand_before(subject.model.transformer.x_embedder, "__call__", layer)
        with pytest.raises(RuntimeError) as raised:
            generate(FLUX1, subject.model, tiny)
        undo()
        assert raised.value is own
    assert said() == []
    assert state(subject.model) == subject.before
    assert_next_is_plain(subject, tiny)


NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("name", ["teacache", "seacache", "dualcache"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_change_that_is_no_number_is_computed(name, value, subjects, tiny, said, monkeypatch):
    subject = subjects(FLUX1)
    with monkeypatch.context() as patch:
        for module in (step_cache, block_cache):
            patch.setattr(module, "relative_change", lambda *_: value)
        with apply_teacache(subject.model, METHODS[name], variant=a_variant(FLUX1)) as handle:
            picture = generate(FLUX1, subject.model, tiny)
    assert said()[1:] == [] and handle.stats.last.fault is None
    if name != "dualcache" or value != float("-inf"):  # no change is below none
        assert handle.stats.skipped == 0 and np.array_equal(picture, subject.plain)
    assert_next_is_plain(subject, tiny)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", NOT_FINITE[:2])
def test_a_prediction_that_is_not_finite_is_as_it_is_in_plain_mflux(name, value, subjects, tiny, said):
    """One such value, in a middle step: whatever plain mflux makes of it, the cache makes a picture too."""
    subject = subjects(FLUX1)
    calls: list[int] = []

    def layer(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        output = inner(*args, **kwargs)
        return output + (value if len(calls) == 3 else 0)

    undo = stand_before(subject.model.transformer.norm_out, "__call__", layer)
    try:
        handle = apply_teacache(subject.model, METHODS[name], variant=a_variant(FLUX1))
        with np.errstate(invalid="ignore"), handle:
            picture = generate(FLUX1, subject.model, tiny)
    finally:
        undo()
    assert picture.shape == subject.plain.shape and handle.stats.last.fault is None
    assert_next_is_plain(subject, tiny)


# ---- hooks of plugins ------------------------------------------------------------------------------------------------


class Saboteur:
    """A plugin with every hook, each of which does what `acts` says of it: nothing, raise, or return a result."""

    def __init__(self) -> None:
        self.acts: dict[str, Any] = {}

    def act(self, hook: str) -> Any:
        what = self.acts.get(hook)
        if isinstance(what, BaseException):
            raise what
        return what

    @hookimpl
    def mflux_pipelines(self) -> Any:
        return self.act("mflux_pipelines")

    @hookimpl
    def mflux_models(self) -> Any:
        return self.act("mflux_models")

    @hookimpl
    def mflux_adapters(self) -> Any:
        return self.act("mflux_adapters")

    @hookimpl
    def mflux_variants(self) -> Any:
        return self.act("mflux_variants")

    @hookimpl
    def mflux_methods(self) -> Any:
        return self.act("mflux_methods")

    @hookimpl
    def mflux_add_options(self) -> Any:
        return self.act("mflux_add_options")

    @hookimpl
    def mflux_options_parsed(self) -> Any:
        return self.act("mflux_options_parsed")

    @hookimpl
    def mflux_model_loading(self) -> Any:
        return self.act("mflux_model_loading")

    @hookimpl
    def mflux_model_loaded(self) -> Any:
        return self.act("mflux_model_loaded")

    @hookimpl
    def mflux_generation_begin(self) -> Any:
        return self.act("mflux_generation_begin")

    @hookimpl
    def mflux_step_end(self, t: int) -> Any:
        return self.act("mflux_step_end") if t in (1, STEPS - 1) else None

    @hookimpl
    def mflux_loop_end(self) -> Any:
        return self.act("mflux_loop_end")

    @hookimpl
    def mflux_generation_interrupted(self) -> Any:
        return self.act("mflux_generation_interrupted")

    @hookimpl
    def mflux_generation_end(self) -> Any:
        return self.act("mflux_generation_end")


@pytest.fixture(scope="module")
def saboteur() -> Iterator[Saboteur]:
    """Connected to mflux together with the installed plugins."""
    load_plugins.cache_clear()
    loaded = load_plugins()
    plugin = Saboteur()
    loaded.manager.register(plugin, name="saboteur")
    bridge.install()
    yield plugin
    bridge.uninstall()
    load_plugins.cache_clear()


@pytest.fixture
def ambient(saboteur, tiny, monkeypatch) -> Subject:
    """A model that a script built while the environment variable was set, and what plain mflux makes of it."""
    monkeypatch.setenv("MFLUX_TEACACHE", "seacache:2")
    model = FLUX1.build(tiny)
    monkeypatch.delenv("MFLUX_TEACACHE")
    assert apply.handle_of(model) is not None
    handle = apply.handle_of(model)
    yielded = Subject(FLUX1, model, np.zeros(0), state(model))
    yield yielded
    saboteur.acts = {}
    handle.restore()
    assert state(model, of_the_pipeline=False) == {
        name: found for name, found in yielded.before.items() if name not in ("", "callbacks")
    }


GENERATION_HOOKS = [
    "mflux_generation_begin",
    "mflux_step_end",
    "mflux_loop_end",
    "mflux_generation_end",
    "mflux_generation_interrupted",
]


@pytest.mark.parametrize("hook", GENERATION_HOOKS)
@pytest.mark.parametrize("exception", KINDS, ids=lambda exception: type(exception).__name__)
def test_a_hook_that_fails_in_a_generation(hook, exception, ambient, saboteur, tiny, said, subjects):
    saboteur.acts = {hook: exception}
    if hook == "mflux_generation_interrupted":
        saboteur.acts["mflux_step_end"] = KeyboardInterrupt()
        with pytest.raises(Exception, match="Stopping image generation at step 2"):
            generate(FLUX1, ambient.model, tiny)
    else:
        assert generate(FLUX1, ambient.model, tiny).any()
    lines = said()
    assert len(lines) == (2 if hook == "mflux_step_end" else 1), "one each time"
    words = f"mflux: the plugin 'saboteur' failed in {hook}: {type(exception).__name__}: "
    assert all(line.startswith(words) for line in lines)
    handle = apply.handle_of(ambient.model)
    assert handle.stats.last.fault is None
    assert handle.stats.skipped == (1 if hook == "mflux_generation_interrupted" else STEPS - 2)
    saboteur.acts = {}
    handle.restore()
    assert np.array_equal(generate(FLUX1, ambient.model, tiny), subjects(FLUX1).plain)


@pytest.mark.parametrize("place", ["summary:summary", "methods.method:Method.details", "methods.method:Method.label"])
def test_the_line_after_the_picture_fails(place, ambient, tiny, said, monkeypatch):
    with monkeypatch.context() as patch:
        breaks(patch, place, Theirs("broken"))
        image = FLUX1.generate_image(ambient.model, tiny, num_inference_steps=STEPS, width=32, height=32)
    assert said() == [
        "mflux: the plugin 'teacache' failed in mflux_generation_end: Theirs: broken "
        "(MFLUX_TEACACHE_DEBUG=1 shows where)"
    ]
    assert image.generation_parameters["teacache_skipped"] == STEPS - 2


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("caching.stats:Stats.begin", "TeaCache: this picture is plain mflux: Theirs: broken"),
        ("adapters.intercept:Interception.__init__", "TeaCache: this picture is plain mflux: Theirs: broken"),
        ("methods.teacache:TeaCacheGate.__call__", "TeaCache: skipped 0 of 6 steps"),
    ],
)
def test_a_fault_of_ours_is_one_line_in_a_command_too(place, words, ambient, tiny, said, monkeypatch):
    """Where the plugin would say what was skipped."""
    with monkeypatch.context() as patch:
        breaks(patch, place, Theirs("broken"))
        image = FLUX1.generate_image(ambient.model, tiny, num_inference_steps=STEPS, width=32, height=32)
    (line,) = said()
    assert line.startswith(words) and "Theirs: broken" in line
    if "plain" in words:
        assert image.generation_parameters["teacache_method"] == "off", "for -C"
    generate(FLUX1, ambient.model, tiny)
    assert said() == [] and apply.handle_of(ambient.model).stats.last.skipped == STEPS - 2, "and then it skips again"


def _fails_midway() -> Iterator[Any]:
    yield from ()
    raise Theirs("broken")


RESULTS = [
    ("mflux_adapters", 5, "TypeError"),
    ("mflux_adapters", [5], "TypeError: 5 is no Adapter"),
    ("mflux_adapters", "midway", "Theirs: broken"),
    ("mflux_variants", 5, "TypeError"),
    ("mflux_variants", "midway", "Theirs: broken"),
    ("mflux_methods", 5, "TypeError"),
    ("mflux_methods", ["no pairs"], "ValueError"),
]


@pytest.mark.parametrize(("hook", "result", "words"), RESULTS)
def test_a_hook_with_a_result_that_is_of_no_use(hook, result, words, saboteur, tiny, said, monkeypatch):
    """It counts as a fault of its plugin; everybody else's contributions are there."""
    saboteur.acts = {hook: _fails_midway() if result == "midway" else result}
    monkeypatch.setenv("MFLUX_TEACACHE", "seacache:2")
    try:
        model = FLUX1.build(tiny)
        assert apply.handle_of(model) is not None
    finally:
        saboteur.acts = {}
    lines = said()
    assert lines and all(line.startswith(f"mflux: the plugin 'saboteur' failed in {hook}: {words}") for line in lines)


@pytest.mark.parametrize("hook", ["mflux_model_loading", "mflux_model_loaded"])
def test_a_hook_that_fails_while_a_model_loads(hook, saboteur, tiny, said, monkeypatch):
    saboteur.acts = {hook: MemoryError("broken")}
    monkeypatch.setenv("MFLUX_TEACACHE", "seacache:2")
    try:
        model = FLUX1.build(tiny)
    finally:
        saboteur.acts = {}
    assert apply.handle_of(model) is not None
    (line,) = said()
    assert line.startswith(f"mflux: the plugin 'saboteur' failed in {hook}: MemoryError: broken")


@pytest.mark.parametrize("place", ["apply:apply_choice", "choose:choose", "apply:Handle.__init__", "host.watch:watch"])
def test_ours_fails_while_a_model_loads(place, saboteur, tiny, said, monkeypatch, subjects):
    monkeypatch.setenv("MFLUX_TEACACHE", "seacache:2")
    with monkeypatch.context() as patch:
        breaks(patch, place, Theirs("broken"))
        if place == "host.watch:watch":
            patch.setattr(f"{HERE}.host.bridge.watch", Fails(Theirs("broken")))
        model = FLUX1.build(tiny)
    assert apply.handle_of(model) is None and not hasattr(model, "_mflux_teacache")
    (line,) = said()
    assert "Theirs: broken" in line
    assert np.array_equal(generate(FLUX1, model, tiny), subjects(FLUX1).plain)


def test_a_plugins_method_that_cannot_read_its_setting_says_so(saboteur, tiny, said, monkeypatch):
    saboteur.acts = {"mflux_methods": {"theirs": lambda setting: {}[setting]}}
    monkeypatch.setenv("MFLUX_TEACACHE", "theirs:1")
    try:
        model = FLUX1.build(tiny)
    finally:
        saboteur.acts = {}
    assert apply.handle_of(model) is None
    (line,) = said()
    assert line.startswith("TeaCache: switched off for this run: MFLUX_TEACACHE: 'theirs:1': 'theirs' cannot read its")
    assert "KeyError: '1'" in line
