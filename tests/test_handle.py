"""The life of a cache on one model, and the one way to stand before a model's calls, on a pipeline that is a toy."""

import threading
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pluggy
import pytest
from mflux.utils.apple_silicon import AppleSiliconUtil
from mlx.utils import tree_flatten

from mflux_teacache_plugin import apply, choose, methods
from mflux_teacache_plugin.adapters import Registry
from mflux_teacache_plugin.adapters.intercept import Interception, lists_of_blocks, uncompiled
from mflux_teacache_plugin.apply import Handle, apply_choice, facts_of, handle_of, to_method
from mflux_teacache_plugin.caching.gate import Facts, Verdict
from mflux_teacache_plugin.caching.stats import KEPT_GENERATIONS, Decision, Stats
from mflux_teacache_plugin.errors import AlreadyAppliedError, ConflictError, SettingsError, UnsupportedModelError
from mflux_teacache_plugin.host import bridge, specs
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.host.watch import Observer, watch
from mflux_teacache_plugin.methods.dualcache import DualCache, DualCacheSettings
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.seacache import SeaCache
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.methods.teacache import TeaCache
from mflux_teacache_plugin.summary import summary
from tests import toy

SEA, HALF = SeaCache(2.0), Speedup(2.0, forecast="reuse")
DUAL = DualCache(DualCacheSettings(F=1, B=0, rdt=0.999, warmup=0))
NEVER = {"sea": SeaCache(1e-9), "dual": DualCache(DualCacheSettings(F=1, B=0, rdt=1e-9, warmup=0))}


def state(model: Any) -> Any:
    classes = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
    parameters = [(name, id(array)) for name, array in tree_flatten(model.parameters())]
    callbacks = {name: list(found) for name, found in vars(model.callbacks).items()}
    return classes, parameters, callbacks, len(model.transformer.blocks)


@pytest.fixture
def as_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine for which mflux compiles."""
    monkeypatch.setattr(AppleSiliconUtil, "is_m1_or_m2", staticmethod(lambda: False))


ADAPTERS = {
    toy.Pipeline: {},
    toy.Compiled: {"predict": ("_predict", "_not_there")},
    toy.OnClass: {"predict": ("_predict", "_not_there"), "on_class": True},
}


def applied(method: Any, kind: type = toy.Pipeline, branches: int = 1, **more: Any) -> tuple[Any, Handle]:
    model = kind(branches)
    adapter = toy.an_adapter(kind, **{**ADAPTERS[kind], **more})
    return model, apply_choice(model, toy.a_choice(method, adapter))


# ---- what is skipped, and that nothing stays behind ------------------------------------------------------------------


@pytest.mark.usefixtures("as_a_mac")
@pytest.mark.parametrize("kind", [toy.Pipeline, toy.Compiled])
@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("branches", [1, 2])
def test_skipping_nothing_changes_nothing(kind, name, branches, monkeypatch):
    monkeypatch.setattr(mx, "compile", lambda function: function)  # whose bits differ
    model = kind(branches)
    before, plain = state(model), model.generate_image(1).latents
    adapter = toy.an_adapter(kind, **ADAPTERS[kind])
    with apply_choice(model, toy.a_choice(NEVER[name], adapter)) as handle:
        cached = model.generate_image(1).latents
    assert (handle.stats.last.fault, handle.stats.skipped, handle.stats.computed) == (None, 0, 6)
    assert mx.array_equal(cached, plain)
    assert state(model) == before
    assert mx.array_equal(model.generate_image(1).latents, plain)


@pytest.mark.usefixtures("as_a_mac")
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("branches", [1, 2])
def test_a_schedule_calls_the_transformer_on_computed_steps_only(kind, branches):
    if kind is toy.OnClass and branches > 1:
        pytest.skip("one call a step")
    model, handle = applied(HALF, kind, branches)
    calls: list[int] = []
    undo = stand_before(model.transformer, "__call__", lambda inner, x: calls.append(1) or inner(x))
    model.generate_image(1)
    undo()
    record = handle.stats.last
    assert (record.fault, record.skipped, record.computed) == (None, 3, 3)
    assert len(calls) == 3 * branches
    assert model.bar.shown == ["0", *model.bar.shown[1:-1], "3"]


@pytest.mark.usefixtures("as_a_mac")
@pytest.mark.parametrize("kind", [toy.Pipeline, toy.Compiled])
@pytest.mark.parametrize("method", [SEA, DUAL], ids=str)
def test_blocks_run_on_computed_steps_only(kind, method, monkeypatch):
    """In the uncompiled function too, where mflux would compile one."""
    monkeypatch.setattr(mx, "compile", lambda function: function)
    model, handle = applied(method, kind)
    ran: list[list[int]] = [[0, 0, 0]]

    def counted(index: int) -> Any:
        def layer(inner: Any, *args: Any) -> Any:
            ran[-1][index] += 1
            return inner(*args)

        return layer

    undo = [stand_before(block, "__call__", counted(i)) for i, block in enumerate(model.transformer.blocks)]
    watch(model, _Told(step_end=lambda *_: ran.append([0, 0, 0])))
    model.generate_image(1)
    assert [each() for each in undo] == [None] * 3
    record = handle.stats.last
    assert record.fault is None
    skipped = {decision.step for decision in record.decisions if decision.skipped}
    assert skipped >= {1, 2, 3, 4}
    for step in range(6):
        if method is DUAL:  # of the three blocks the first always runs
            assert ran[step] == ([1, 0, 0] if step in skipped else [1, 1, 1])
    if method is DUAL:
        assert record.skipped == pytest.approx(len(skipped) * 2 / 3)


class _Told(Observer):
    def __init__(self, **events: Any) -> None:
        vars(self).update(events)


def test_of_two_branches_each_has_its_share_of_the_work():
    _, alone = (found := applied(DUAL))[0].generate_image(1), found[1]
    model, both = applied(DUAL, branches=2)
    model.generate_image(1)
    assert both.stats.last.fault is None
    assert {decision.branch for decision in both.stats.last.decisions} == {0, 1}
    assert both.stats.skipped == pytest.approx(alone.stats.skipped) and both.stats.skipped > 2
    assert both.stats.skipped + both.stats.computed == pytest.approx(6)
    for step in range(6):
        shares = [decision.share for decision in both.stats.last.decisions if decision.step == step]
        assert shares == pytest.approx([1 / 3, 1 / 3])


def test_a_compiled_step_is_compiled_with_its_taps(as_a_mac, monkeypatch):
    compiled: list[Any] = []
    monkeypatch.setattr(mx, "compile", lambda function: compiled.append(function) or function)
    model, handle = applied(SEA, toy.Compiled, branches=2)
    model.generate_image(1)
    assert handle.stats.last.fault is None and handle.stats.skipped == 4
    assert len(compiled) == 3 * 6, "of each step: plain, with its blocks, and without them"


def test_what_mflux_does_not_compile_is_answered_call_by_call(monkeypatch):
    monkeypatch.setattr(AppleSiliconUtil, "is_m1_or_m2", staticmethod(lambda: True))
    monkeypatch.setattr(mx, "compile", None)
    model, handle = applied(SEA, toy.Compiled, branches=2)
    model.generate_image(1)
    assert handle.stats.last.fault is None and handle.stats.skipped == 4


def test_the_uncompiled_function_is_asked_for_and_the_machine_is_itself_again(as_a_mac):
    stock = AppleSiliconUtil.__dict__["is_m1_or_m2"]
    model = toy.Compiled()
    forward, compiled = uncompiled(model._predict, model.transformer)
    assert compiled and not isinstance(forward, toy.Shut)
    assert AppleSiliconUtil.__dict__["is_m1_or_m2"] is stock
    plain, compiled = uncompiled(lambda: forward)
    assert plain is forward and not compiled
    built: list[int] = []

    def fails() -> Any:
        built.append(1)
        if len(built) == 2:
            raise ValueError
        return toy.Shut(None)

    with pytest.raises(ValueError):
        uncompiled(fails)
    assert AppleSiliconUtil.__dict__["is_m1_or_m2"] is stock


def test_another_models_step_on_the_same_class_is_left_alone():
    model, handle = applied(HALF, toy.OnClass)
    other = toy.OnClass()
    plain = other.generate_image(2).latents
    asked: list[Any] = []

    def meanwhile(*_: Any) -> None:
        asked.append(other.generate_image(2).latents)

    stop = watch(model, _Told(step_end=meanwhile))
    model.generate_image(1)
    assert handle.stats.last.skipped == 3
    assert len(asked) == 6 and all(mx.array_equal(each, plain) for each in asked)
    stop()
    handle.restore()
    assert state(model)[0] == state(other)[0] and "_mflux" not in str(vars(toy.OnClass))


def test_a_step_function_that_outlives_its_generation_is_the_models_own():
    model, _ = applied(HALF, toy.OnClass)
    model.generate_image(1)
    calls: list[int] = []
    stand_before(model.transformer, "__call__", lambda inner, x: calls.append(1) or inner(x))
    for _ in range(4):
        model._step(mx.zeros((1, 24, 4)))
    assert len(calls) == 4


@pytest.mark.parametrize("kind", ADAPTERS)
def test_leaving_twice_and_leaving_what_was_never_attached(kind, as_a_mac):
    model = kind()
    before, own = state(model), dict(vars(kind))
    interception = Interception(model, toy.an_adapter(kind, **ADAPTERS[kind]))
    interception.leave()
    interception.leave()
    assert state(model) == before and dict(vars(kind)) == own


def test_lists_of_blocks():
    model = toy.Pipeline()
    assert {name: len(found) for name, found in lists_of_blocks(model, toy.an_adapter()).items()} == {"blocks": 3}


def test_a_fault_of_the_interception_without_a_handle_is_a_line(as_a_mac, monkeypatch, capsys):
    monkeypatch.setattr("mflux_teacache_plugin.adapters.intercept.uncompiled", lambda *_: 1 / 0)
    model = toy.Compiled()
    interception = Interception(model, toy.an_adapter(toy.Compiled, **ADAPTERS[toy.Compiled]))
    interception.transformer_calls(lambda forward, *args: forward.plain(*args))
    model.generate_image(1)
    interception.leave()
    assert "mflux: mflux runs plain: ZeroDivisionError: " in capsys.readouterr().err


def test_whole_steps_or_call_by_call(as_a_mac, monkeypatch):
    monkeypatch.setattr(mx, "compile", lambda function: function)
    for whole, calls in ((True, 6), (False, 12)):
        model, seen = toy.Compiled(2), []
        interception = Interception(model, toy.an_adapter(toy.Compiled, **ADAPTERS[toy.Compiled]))
        interception.transformer_calls(
            lambda forward, *a, s=seen: s.append(1) or forward.full(*a)[0], whole_steps=whole
        )
        model.generate_image(1)
        interception.leave()
        assert len(seen) == calls


# ---- the handle ------------------------------------------------------------------------------------------------------


def test_the_arguments_are_those_of_this_call_and_are_dropped_after_it():
    seen: list[Any] = []

    def refuses(config: Any, options: Any) -> None:
        seen.append((options.get("scheduler"), options.get("num_inference_steps")))

    model, handle = applied(HALF, refuses=refuses)
    model.generate_image(1, scheduler="euler")
    model.generate_image(1, num_inference_steps=8)
    assert seen == [("euler", 6), ("linear", 8)]
    assert handle._arguments == {} and handle._cache is None and handle._interception is None


def test_what_an_adapter_refuses_in_a_call_is_said_before_the_loop(capsys):
    order: list[str] = []
    model, handle = applied(HALF, refuses=lambda config, options: "it adds noise")
    watch(model, _Told(step_end=lambda *_: order.append(capsys.readouterr().err)))
    image = model.generate_image(1)
    assert order[0] == "TeaCache: this picture is plain mflux: Pipeline cannot skip steps in this run (it adds noise)\n"
    assert set(order[1:]) == {""} and capsys.readouterr().err == ""
    assert image.generation_parameters == {"seed": 1, "teacache_method": "off"}
    assert handle.finished is None and handle.stats.last.fault.startswith("Pipeline cannot skip steps")


def test_sigmas_of_the_adapter_go_before_the_schedulers():
    class Sees(Speedup):
        def check_steps(self, steps: int | None) -> None:
            pass

        def schedule(self, variant: Any, facts: Facts) -> tuple[int, ...]:
            seen.append(facts)
            return (0, facts.steps - 1)

    seen: list[Facts] = []
    model, handle = applied(Sees(2.0), sigmas=lambda model, config, arguments: [4.0, 3.0, 2.0])
    model.generate_image(1, num_inference_steps=3)
    assert seen[-1].sigmas == (4.0, 3.0, 2.0) and handle.stats.last.steps == 3
    model.generate_image(1, num_inference_steps=3, init_time_step=1)
    assert seen[-1].sigmas == (3.0, 2.0) and handle.stats.last.steps == 2


def test_the_facts_of_a_run():
    sigmas = SimpleNamespace(tolist=lambda: [1.0, 0.75, 0.5, 0.25, 0.0])
    config = SimpleNamespace(
        num_inference_steps=4, init_time_step=1, height=96, width=64, scheduler=SimpleNamespace(sigmas=sigmas)
    )
    assert facts_of(config) == Facts((0.75, 0.5, 0.25), (6, 4), first=1), "rows first"
    assert facts_of(config, [3, 2, 1, 0]).sigmas == (2.0, 1.0, 0.0)


def test_metadata_and_what_finished():
    model, handle = applied(HALF)
    handle.coefficients = "/some/where"
    image = model.generate_image(5)
    assert image.generation_parameters == {
        "seed": 5,
        "teacache_method": "2x+reuse",
        "teacache_variant": "",
        "teacache_numbers": "",
        "teacache_skipped": 3,
        "teacache_computed": 3,
        "teacache_coefficients": "/some/where",
    }
    assert handle.finished is handle.stats.last
    model.generate_image = lambda *_: 1 / 0  # somebody else's


def test_a_picture_without_parameters_gets_ours():
    model, handle = applied(HALF)
    image = SimpleNamespace(generation_parameters=None)
    handle.generation_end(model, image)
    assert image.generation_parameters == {"teacache_method": "off"}, "no loop was seen"


def test_a_generation_that_raised_records_nothing_and_the_next_is_new():
    model, handle = applied(HALF)
    stop = watch(model, _Told(step_end=_raise_interrupt))
    with pytest.raises(RuntimeError, match="stopped"):
        model.generate_image(1)
    assert handle.finished is None and handle.stats.last.taken == 1
    stop()
    model.generate_image(1)
    assert handle.finished is handle.stats.last and handle.finished.taken == 6


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_with_and_restore_and_repr():
    model = toy.Pipeline()
    before = state(model)
    with apply_choice(model, toy.a_choice(HALF, toy.an_adapter())) as handle:
        assert handle_of(model) is handle
        assert repr(handle).startswith("TeaCache 2x+reuse")
    assert handle_of(model) is None and state(model) == before
    handle.restore()
    second = apply_choice(model, toy.a_choice(HALF, toy.an_adapter()))
    handle.restore()
    assert handle_of(model) is second, "an old handle takes nothing away from a new one"
    second.restore()
    assert state(model) == before


def test_what_cannot_be_applied():
    model, handle = applied(HALF)
    with pytest.raises(AlreadyAppliedError):
        apply_choice(model, toy.a_choice(HALF, toy.an_adapter()))
    handle.restore()
    with pytest.raises(SettingsError, match="F=4 is more than there is"):
        apply_choice(model, toy.a_choice(DualCache(DualCacheSettings(F=4)), toy.an_adapter()))
    for wrong in ({"signal": "blocks.9.attn"}, {"final": "no_such"}, {"blocks": ("no_such",)}):
        taps = type(toy.TAPS)(**{**vars(toy.TAPS), **wrong})
        with pytest.raises(UnsupportedModelError, match="this version of mflux") as error:
            apply_choice(model, toy.a_choice(SEA, toy.an_adapter(taps=taps)))
        assert "the adapter 'toy' do not fit Pipeline" in error.value.cause
    object.__setattr__(model, "_teacache_handle", object())
    with pytest.raises(ConflictError, match="mlx-teacache"):
        apply_choice(model, toy.a_choice(HALF, toy.an_adapter()))
    vars(model).pop("_teacache_handle")
    assert handle_of(model) is None and "_mflux_watch" not in vars(model)


def test_what_python_may_give_as_a_method():
    assert to_method(None) is None and to_method("auto") is None
    assert to_method(HALF) is HALF and to_method("2x+reuse") == HALF
    assert to_method(1) == TeaCache(1.0) and to_method(0.25) == TeaCache(0.25)
    for wrong in ("off", "nothing", 0, float("nan")):
        with pytest.raises(SettingsError) as error:
            to_method(wrong)
        assert error.value.hint


# ---- a cache within its generation -----------------------------------------------------------------------------------


def test_a_step_beyond_the_announced_ones_is_computed_at_the_last_sigma():
    """Some pipeline may take more steps than its config says."""
    for method in (HALF, SEA, DUAL):
        model, handle = applied(method, sigmas=lambda model, config, arguments: [1.0, 0.8, 0.7, 0.6, 0.5, 0.4])
        model.generate_image(1, num_inference_steps=8)
        record = handle.stats.last
        assert record.fault is None, str(method)
        beyond = [decision for decision in record.decisions if decision.step >= 6]
        assert {decision.step for decision in beyond} == {6, 7}
        assert not any(decision.skipped for decision in beyond)
        assert {decision.reason for decision in beyond} == {"beyond the announced steps"}


# ---- watching --------------------------------------------------------------------------------------------------------


def test_observers_are_told_in_order_and_of_the_end_in_reverse():
    """So that who came first, and stands innermost, is told of the end last."""
    model, told = toy.Pipeline(), []
    events = ("generation_called", "generation_begin", "step_end", "loop_end", "generation_end")
    for name in "ab":
        watch(
            model, _Told(**{event: lambda *_, name=name, event=event: told.append((event, name)) for event in events})
        )
    model.generate_image(1, num_inference_steps=1)
    assert told == [(event, name) for event in events[:-1] for name in "ab"] + [
        ("generation_end", "b"),
        ("generation_end", "a"),
    ]


def test_a_generation_within_a_generation_ends_once():
    model, told = toy.Pipeline(), []
    watch(model, _Told(generation_end=lambda model, image: told.append(image)))
    nested: list[Any] = []

    def twice(inner: Any, seed: int, **options: Any) -> Any:
        if not nested:
            nested.append(1)
            nested.append(model.generate_image(seed + 1, **options))
        return inner(seed, **options)

    stand_before(model, "generate_image", twice)  # stands outside of the watch: two generations, one after the other
    image = model.generate_image(1)
    assert [each.generation_parameters["seed"] for each in told] == [2, 1] and told[-1] is image

    class Tries(toy.Pipeline):
        def generate_image(self, seed: int, again: bool = True) -> Any:
            return self.generate_image(seed + 1, again=False) if again else super().generate_image(seed)

    model, told = Tries(), []
    handle = apply_choice(model, toy.a_choice(HALF, toy.an_adapter(Tries)))
    watch(model, _Told(generation_end=lambda model, image: told.append(image)))
    image = model.generate_image(1)
    assert told == [image] and image.generation_parameters["teacache_skipped"] == 3
    assert len(handle.stats.generations) == 1


def test_arguments_that_do_not_fit_are_the_models_to_complain_of():
    model, handle = applied(HALF)
    with pytest.raises(TypeError, match="no_such"):
        model.generate_image(1, no_such=2)
    assert handle.finished is None
    model.generate_image(1)
    assert handle.stats.last.skipped == 3


def test_loading_is_remembered_for_the_thread_and_not_for_the_process():
    """A model that another thread loads meanwhile is a model of its own."""
    told: list[str] = []

    class Plugin:
        @specs.hookimpl
        def mflux_model_loading(self, pipeline: type) -> None:
            told.append(f"{pipeline.__name__} loading")
            if pipeline is First:
                thread = threading.Thread(target=Second)
                thread.start()
                thread.join()

        @specs.hookimpl
        def mflux_model_loaded(self, model: Any) -> None:
            told.append(f"{type(model).__name__} loaded")

    class First(toy.Pipeline):
        def __init__(self) -> None:
            super().__init__()

    class Second(First):
        def __init__(self) -> None:
            super().__init__()

    manager = pluggy.PluginManager("mflux")
    manager.add_hookspecs(specs)
    manager.register(Plugin())
    bridged = bridge.Bridge(manager.hook)
    stock = First.__init__, Second.__init__
    for pipeline in (First, Second):
        bridged._patch_pipeline(pipeline)
        bridged._patch_pipeline(pipeline)  # applying it twice is the same as once
    model = First()
    assert told == ["First loading", "Second loading", "Second loaded", "First loaded"]
    del model
    bridged.uninstall()
    assert (First.__init__, Second.__init__) == stock


# ---- what plugins bring ----------------------------------------------------------------------------------------------


def test_the_newest_plugins_methods_and_adapters_go_before_others(monkeypatch):
    """`contributions` gives the newest plugin's first, and built-in ones come last of all."""
    newest, oldest, mine = (toy.an_adapter(branches=n) for n in (3, 2, 1))
    builtin = type(mine)(**{**vars(mine), "id": "flux1"})
    given = {
        "mflux_methods": [{"a": "newest", "teacache": "theirs"}, {"a": "oldest", "b": "oldest"}],
        "mflux_adapters": [[newest], [oldest, builtin]],
        "mflux_variants": [],
    }
    monkeypatch.setattr(choose, "contributions", lambda name, kind=None: given[name])
    found = choose.parsers()
    assert (found["a"], found["b"], found["teacache"]) == ("newest", "oldest", "theirs")
    assert found["seacache"] is methods.BUILT_IN["seacache"]
    adapters = choose.registry().adapters
    assert adapters["toy"] is newest and adapters["flux1"] is builtin


def test_decisions_of_a_record():
    record = apply.Stats().begin(3)
    record.decisions += [
        Decision(0, False, "a"),
        Decision(1, True, "b", change=0.5),
        Decision(2, True, "c", share=0.25),
    ]
    assert (record.taken, record.skipped, record.computed, record.changes) == (3, 1.25, 1.75, [0.5])
    assert Verdict(skip=False, reason="x").forget is False


# ---- answers that were wrong once ------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    """The toy has an adapter, and no coefficient file is for it."""
    monkeypatch.setattr(choose, "registry", lambda: Registry([toy.an_adapter()], {}))
    return toy.Pipeline()


def test_coefficients_of_ones_own_need_no_file(served):
    own = [0, 0, 0, 1, 0]
    for arguments, threshold in (({"method": 0.4}, 0.4), ({"threshold": 0.4}, 0.4), ({}, apply.DEFAULT_THRESHOLD)):
        with apply.apply_teacache(served, **arguments, coefficients=own, range=(0, 5)) as handle:
            assert handle.method == TeaCache(threshold)
            assert (handle.variant.polynomial, handle.variant.range) == ((0, 0, 0, 1, 0), (0, 5))
            assert (handle.variant.id, handle.variant.models) == ("own", ("toy",))
            served.generate_image(1)
            assert handle.stats.last.fault is None and handle.stats.last.changes


def test_coefficients_beside_a_method_that_uses_none_are_refused(served):
    for method in ("2x", "seacache:0.3", "dualcache:F=1"):
        with pytest.raises(SettingsError, match=r"coefficients were given, but .* uses none"):
            apply.apply_teacache(served, method, coefficients=[0, 0, 0, 1, 0])
    for arguments in ({"range": (0, 1)}, {"method": "2x", "threshold": 0.2}):
        with pytest.raises(SettingsError) as error:
            apply.apply_teacache(served, **arguments)
        assert error.value.hint
    assert handle_of(served) is None


def test_coefficients_go_before_those_of_a_variant(served):
    variant = apply.Variant(
        id="theirs",
        adapter="toy",
        models=("toy",),
        polynomial=(0, 0, 0, 0, 1),
        threshold=0.3,
        recommended="2x",
        weights_licence="none",
        provenance=apply.Provenance(source="a test"),
    )
    with apply.apply_teacache(served, variant=variant, coefficients=[0, 0, 0, 1, 0]) as handle:
        assert handle.method == TeaCache(0.3) and handle.variant.polynomial == (0, 0, 0, 1, 0)
        assert (handle.variant.id, handle.variant.range) == ("theirs", None)
    with apply.apply_teacache(served, variant=variant) as handle:
        assert handle.method == Speedup(2.0) and handle.variant is variant


@pytest.mark.usefixtures("as_a_mac")
@pytest.mark.parametrize("name", ["generate_image", "_predict"])
def test_what_stood_on_the_instance_before_stands_there_afterwards(name):
    model, calls = toy.Compiled(), []
    stock = getattr(model, name)

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return stock(*args, **kwargs)

    object.__setattr__(model, name, theirs)
    with apply_choice(model, toy.a_choice(HALF, toy.an_adapter(toy.Compiled, **ADAPTERS[toy.Compiled]))) as handle:
        model.generate_image(1)
        assert handle.stats.last.skipped == 3 and calls
    assert vars(model)[name] is theirs
    calls.clear()
    model.generate_image(1)
    assert calls


def test_why_nothing_was_skipped_where_a_gate_estimates_nothing():
    class Plain(Method):
        setting = "plain"

    variant = SimpleNamespace(distilled=False, id="x", guard=SimpleNamespace(first=1, last=1), range=None)

    def why(method: Method, *decisions: Decision, variant: Any = variant) -> str:
        record = apply.Stats().begin(9)
        record.decisions += decisions
        assert summary(record, method, None).startswith("skipped 0 of 9 steps (")
        return method.why_nothing(record, variant)

    read = Decision(1, False, "x", change=0.25), Decision(2, False, "x", change=0.125)
    assert why(Plain()) == "no step's signal could be compared with the step before"
    assert why(Plain(), *read) == "the smallest change between two steps was 0.125"
    assert why(TeaCache(0.001), *read) == "the smallest change between two steps was 0.125"
    estimated = Decision(3, False, "x", change=0.25, accumulated=0.04), Decision(4, False, "x", 0.25, accumulated=0.03)
    assert (
        why(TeaCache(0.001), *read, *estimated)
        == "the smallest estimated change was 0.03; a threshold above that skips"
    )
    distilled = SimpleNamespace(**{**vars(variant), "distilled": True})
    assert "use a base model" in why(TeaCache(0.001), *read, variant=distilled)
    assert why(HALF) == "the speed-up leaves no step out; ask for a higher one"


def test_a_record_that_stood_aside_says_after_which_step():
    record = apply.Stats().begin(6)
    record.decisions += [Decision(0, False, "x"), Decision(1, True, "x")]
    record.fault = "ValueError: x"
    assert summary(record, HALF, None) == (
        "skipped 1 of 6 steps (2x+reuse); it stopped after step 2, and mflux went on alone: ValueError: x"
    )


def test_stats_keep_the_newest_generations_and_count_all() -> None:
    stats = Stats()
    for index in range(KEPT_GENERATIONS + 20):
        record = stats.begin(4)
        record.decisions += [Decision(step, skipped=step == index % 2, reason="") for step in range(4)]
    assert len(stats.generations) == KEPT_GENERATIONS
    assert stats.last is record
    assert (stats.skipped, stats.computed) == (KEPT_GENERATIONS + 20, 3 * (KEPT_GENERATIONS + 20))
    assert stats.speedup_estimate == pytest.approx(4 / 3)


def test_stats_of_nothing() -> None:
    stats = Stats()
    assert (stats.skipped, stats.computed, stats.speedup_estimate) == (0, 0, 1.0)
    with pytest.raises(IndexError):
        _ = stats.last
