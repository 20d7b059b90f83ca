"""The taps and the step cache on transformers of mflux's own classes, and on one small enough to reason about."""

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mflux_teacache_plugin.caching.gate import Facts, Setup, Verdict, relative_change
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.caching.step_cache import PredictionCache, StepCache
from mflux_teacache_plugin.caching.taps import TappedForward, TapPoints, Taps
from mflux_teacache_plugin.host.layers import stand_before

WIDTH = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(WIDTH, WIDTH)

    def __call__(self, hidden):
        return hidden + self.attn(hidden * 2)


class Transformer(nn.Module):
    """An embedder, blocks, a final norm and a projection: the shape that all of mflux's transformers have."""

    def __init__(self, blocks=3):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = [Block() for _ in range(blocks)]
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 4)

    def __call__(self, x):
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.norm(hidden))


POINTS = TapPoints(blocks=("blocks",), signal="blocks.0.attn", signal_argument="x", final="norm")


class Scripted:
    """A gate that skips as told, for as long as it is told, and counts what it was asked."""

    def __init__(self, *skips, forget=False):
        self.skips = list(skips)
        self.forget = forget
        self.changes = []
        self.resets = 0

    def __call__(self, step, change):
        if not self.skips:
            return Verdict(skip=False, reason="not told")
        self.changes.append(change())
        return Verdict(skip=self.skips.pop(0), reason="told so", forget=self.forget)

    def reset(self):
        self.resets += 1


@pytest.fixture
def transformer():
    mx.random.seed(0)
    model = Transformer()
    mx.eval(model.parameters())
    return model


@pytest.fixture
def taps(transformer):
    taps = Taps(transformer, POINTS)
    yield taps
    taps.remove()


def latents(seed, tokens=5):
    return mx.random.normal((1, tokens, 4), key=mx.random.key(seed))


def schedule(steps):
    """A run of so many steps, whose σ fall evenly."""
    return Facts(tuple(1 - step / steps for step in range(steps)))


def a_cache(gate, steps, order=0, **more):
    transform = {"transform": more.pop("transform")} if "transform" in more else {}
    return StepCache(gate, Setup(schedule(steps), Generation(steps), **more), order, **transform)


def run_steps(cache, forward, inputs):
    outputs = []
    for x in inputs:
        outputs.append(cache.run(forward, x))
        cache.end_step()
        mx.eval(outputs[-1])
    return outputs


def test_taps_leave_the_module_as_it_was(transformer):
    classes = {name: type(module) for name, module in transformer.named_modules()}
    keys = [key for key, _ in tree_flatten(transformer.parameters())]
    taps = Taps(transformer, POINTS)
    assert [key for key, _ in tree_flatten(transformer.parameters())] == keys
    assert isinstance(transformer.norm, nn.LayerNorm)
    taps.without_blocks(transformer, None, latents(0))
    taps.remove()
    assert {name: type(module) for name, module in transformer.named_modules()} == classes
    assert len(transformer.blocks) == 3


def test_the_lists_come_back_when_the_forward_fails(transformer, taps):
    with pytest.raises(ValueError):
        taps.without_blocks(lambda: (_ for _ in ()).throw(ValueError()), None)
    assert len(transformer.blocks) == 3 and not taps.running


def test_a_wrong_tap_point_fails_before_anything_is_swapped(transformer):
    classes = [type(module) for module in transformer.modules()]
    for wrong in ({"blocks": ("layers",)}, {"signal": "blocks.7.attn"}, {"final": "norm_out"}):
        with pytest.raises((AttributeError, IndexError)):
            Taps(transformer, TapPoints(**{**vars(POINTS), **wrong}))
    assert [type(module) for module in transformer.modules()] == classes


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compiles)])
def test_a_skipped_step_with_unchanged_inputs_is_the_full_step(transformer, taps, compiled):
    x = latents(1)
    cache = a_cache(Scripted(True), 3)
    forward = TappedForward(taps, transformer, compiled)
    first, skipped, last = run_steps(cache, forward, [x, x, x])
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, False]
    assert mx.allclose(first, skipped, atol=1e-5)
    assert mx.array_equal(first, last)


def test_computing_only_is_bit_identical_to_the_plain_forward(transformer):
    inputs = [latents(seed) for seed in range(4)]
    plain = [transformer(x) for x in inputs]
    taps = Taps(transformer, POINTS)
    outputs = run_steps(a_cache(Scripted(False, False), 4), TappedForward(taps, transformer), inputs)
    assert all(mx.array_equal(a, b) for a, b in zip(plain, outputs, strict=True))


def test_the_signal_is_the_change_of_the_first_blocks_input(transformer, taps):
    inputs = [latents(seed) for seed in range(3)]
    gate = Scripted(False)
    run_steps(a_cache(gate, 3), TappedForward(taps, transformer), inputs)
    first, second = (2 * transformer.embed(x) for x in inputs[:2])
    assert gate.changes == pytest.approx([(mx.abs(second - first).mean() / mx.abs(first).mean()).item()])


def test_the_signal_is_refreshed_on_skipped_steps_too(transformer, taps):
    x, y = latents(1), latents(2)
    gate = Scripted(True, True)
    run_steps(a_cache(gate, 4), TappedForward(taps, transformer), [x, y, y, y])
    assert gate.changes[0] > 0 and gate.changes[1] == 0


def test_the_first_step_does_not_ask_the_gate(transformer, taps):
    gate = Scripted()
    cache = a_cache(gate, 1)
    run_steps(cache, TappedForward(taps, transformer), [latents(0)])
    assert [decision.reason for decision in cache.record.decisions] == ["first step"]
    assert not gate.changes and gate.resets == 1


def test_a_step_whose_signal_the_gate_leaves_alone_waits_for_nothing(transformer, taps, monkeypatch):
    monkeypatch.setattr("mflux_teacache_plugin.caching.step_cache.relative_change", None)  # to call it would fail
    cache = a_cache(Scripted(), 3)
    run_steps(cache, TappedForward(taps, transformer), [latents(seed) for seed in range(3)])
    assert cache.record.fault is None and cache.record.computed == 3
    assert [decision.change for decision in cache.record.decisions] == [None] * 3


def test_what_is_compared_is_what_transform_makes_of_signal_and_sigma(transformer, taps):
    seen = []

    def transform(signal, sigma):
        seen.append(sigma)
        return mx.full((1,), 1 + sigma)

    gate = Scripted(True, False)
    cache = a_cache(gate, 4, transform=transform)
    run_steps(cache, TappedForward(taps, transformer), [latents(seed) for seed in range(3)])
    assert seen == [1, 0.75, 0.5]
    assert gate.changes == pytest.approx([0.25 / 2, 0.25 / 1.75])


def test_a_skipped_step_gets_the_forecast_of_the_residuals(transformer, taps):
    """Of residuals that grow evenly, linear forecasts the next one, and reuse the last."""

    class Growing(Block):
        def __call__(self, hidden):
            return hidden + self.scale + 0 * self.attn(hidden)  # whose input is the signal

    x = latents(0)
    answers = {}
    for order in (0, 1):
        cache = a_cache(Scripted(False, True), 4, order=order)
        forward = TappedForward(taps, transformer)
        for block in transformer.blocks:
            block.__class__ = Growing
        for step in range(3):
            for block in transformer.blocks:
                block.scale = mx.arange(WIDTH, dtype=mx.float32) * step
            answers[order, step] = cache.run(forward, x)
            truth = transformer(x)
            cache.end_step()
        assert [decision.skipped for decision in cache.record.decisions] == [False, False, True]
        assert cache.record.fault is None
    assert mx.allclose(answers[1, 2], truth, atol=1e-5)
    assert mx.allclose(answers[0, 2], answers[0, 1], atol=1e-5) and not mx.allclose(answers[0, 2], truth, atol=1e-2)


def test_a_changed_shape_computes_and_starts_anew(transformer, taps):
    cache = a_cache(Scripted(True), 4)
    inputs = [latents(0), latents(0, tokens=7), latents(1, tokens=7), latents(2, tokens=7)]
    outputs = run_steps(cache, TappedForward(taps, transformer), inputs)
    assert [decision.skipped for decision in cache.record.decisions] == [False, False, True, False]
    assert "fits" in cache.record.decisions[1].reason
    assert outputs[2].shape == (1, 7, 4)


def test_forgetting_computes_the_next_step_as_well(transformer, taps):
    cache = a_cache(Scripted(False, forget=True), 5)
    run_steps(cache, TappedForward(taps, transformer), [latents(seed) for seed in range(3)])
    assert [decision.reason for decision in cache.record.decisions[1:]] == ["told so", "nothing that fits is kept"]


def test_two_branches_share_a_decision_and_keep_a_residual_each(transformer, taps):
    cond, uncond = latents(1), latents(2)
    gate = Scripted(True)
    cache = a_cache(gate, 3, branches=2)
    forward = TappedForward(taps, transformer)
    for _ in range(3):
        outputs = [cache.run(forward, cond), cache.run(forward, uncond)]
        cache.end_step()
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, False]
    assert len(gate.changes) == 1
    for x, output in zip((cond, uncond), outputs, strict=True):
        assert mx.array_equal(output, transformer(x))


def test_two_branches_in_one_call_are_as_two_calls(transformer, taps):
    def both(cond, uncond):
        a, b = transformer(cond), transformer(uncond)
        return b + 4 * (a - b)

    cond, uncond = latents(1), latents(2)
    cache = a_cache(Scripted(True), 3, branches=2)
    forward = TappedForward(taps, both)
    outputs = []
    for _ in range(3):
        outputs.append(cache.run(forward, cond, uncond))
        cache.end_step()
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, False]
    assert mx.allclose(outputs[0], outputs[1], atol=1e-4)


@pytest.mark.parametrize("branches", [1, 2])
def test_more_calls_than_branches_give_up_without_costing_the_output(transformer, taps, branches):
    cache = a_cache(Scripted(), 4, branches=branches)
    forward = TappedForward(taps, transformer)
    x = latents(3)
    outputs = [cache.run(forward, x) for _ in range(branches + 1)]
    assert "expected" in cache.record.fault
    assert all(mx.array_equal(output, transformer(x)) for output in outputs)


def test_a_transformer_whose_blocks_change_the_width_gives_up(transformer, taps):
    class Doubling(Block):
        def __call__(self, hidden):
            return mx.concatenate([super().__call__(hidden)] * 2, axis=1)

    for block in transformer.blocks[:1]:
        block.__class__ = Doubling
    cache = a_cache(Scripted(), 3)
    output = cache.run(TappedForward(taps, transformer), latents(0))
    assert "without" in cache.record.fault and output.shape == (1, 10, 4)


def test_an_error_of_the_model_is_the_models(transformer, taps):
    cache = a_cache(Scripted(), 3)
    with pytest.raises(ValueError):
        cache.run(TappedForward(taps, transformer), mx.zeros((1, 5, 3)))


def test_the_residual_keeps_the_models_dtype_and_the_change_is_reduced_in_float32(transformer, taps):
    transformer.set_dtype(mx.bfloat16)
    cache = a_cache(Scripted(False), 3)
    cache.run(TappedForward(taps, transformer), latents(0).astype(mx.bfloat16))
    assert [array.dtype for array in cache.kept()[:-1]] == [mx.bfloat16]
    current, previous = mx.full((100_000,), 1.0, mx.bfloat16), mx.full((100_000,), 2.0, mx.bfloat16)
    assert relative_change(current, previous) == 0.5  # a bfloat16 sum of as many ones would stop at 256


def test_swapping_a_call_is_undone_in_any_class(transformer):
    seen = []

    def call(base_call, *args, **kwargs):
        seen.append(args)
        return base_call(*args, **kwargs)

    undo = stand_before(transformer.embed, "__call__", call)
    x = latents(0)
    transformer(x)
    undo()
    transformer(x)
    assert len(seen) == 1 and type(transformer.embed) is nn.Linear


# ---- the cache that keeps what a step's calls return -----------------------------------------------------------------


def predictions(gate, steps, order=0, **more):
    return PredictionCache(gate, Setup(schedule(steps), Generation(steps), **more), order)


class Counted:
    """What a step calls: its n-th answer is n everywhere."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1
        return mx.full((2,), float(self.calls))


class Told:
    """A gate that skips these steps, and must not be shown a signal."""

    def __init__(self, *skipped):
        self.skipped = skipped

    def __call__(self, step, change):
        return Verdict(skip=step in self.skipped, reason="told so")

    def reset(self):
        pass


@pytest.mark.parametrize("calls", [1, 2])
def test_a_skipped_step_calls_nothing_and_each_call_gets_its_own_prediction(calls):
    forward, cache = Counted(), predictions(Told(1, 2), 4)
    answers = []
    for _ in range(4):
        answers.append([cache.run(forward).tolist()[0] for _ in range(calls)])
        cache.end_step()
    first, last = list(range(1, calls + 1)), list(range(calls + 1, 2 * calls + 1))
    assert answers == [first, first, first, last]
    assert forward.calls == 2 * calls
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, True, False]


def test_a_linear_forecast_goes_on_along_sigma():
    forward, cache = Counted(), predictions(Told(2), 4, order=1)
    answers = []
    for _ in range(4):
        answers.append(cache.run(forward).tolist()[0])
        cache.end_step()
    assert answers == pytest.approx([1, 2, 3, 3])


def test_a_condition_that_changed_is_computed():
    forward, cache = Counted(), predictions(Told(1, 2, 3), 4, condition=0)
    prompt, other = mx.zeros(1), mx.zeros(1)
    answers = []
    for condition in (prompt, prompt, other, other):
        answers.append(cache.run(forward, condition).tolist()[0])
        cache.end_step()
    assert answers == [1, 1, 2, 2]
    assert [decision.reason for decision in cache.record.decisions][2] == "nothing that fits is kept"


def test_a_gate_that_asks_for_a_signal_where_there_is_none_costs_the_gain():
    forward, cache = Counted(), predictions(Scripted(True), 2)
    for _ in range(2):
        cache.run(forward)
        cache.end_step()
    assert forward.calls == 2
    assert "signal" in cache.record.fault


@pytest.mark.parametrize("order", [0, 1])
def test_a_call_that_only_starts_now_is_computed_though_the_step_is_skipped(order):
    forward, cache = Counted(), predictions(Told(1, 2), 3, order=order)
    answers = []
    for calls in (1, 2, 2):
        answers.append([cache.run(forward).tolist()[0] for _ in range(calls)])
        cache.end_step()
    assert answers == [[1], [1, 2], [1, 2]]
    assert cache.record.fault is None


def test_a_branch_that_only_starts_now_is_computed_though_the_step_is_skipped(transformer, taps):
    """As where guidance begins later than the first step."""
    cond, uncond = latents(1), latents(2)
    cache, forward = a_cache(Scripted(True, True), 4, branches=2), TappedForward(taps, transformer)
    cache.run(forward, cond)
    cache.end_step()
    late = []
    for _ in range(2):
        cache.run(forward, cond)
        late.append(cache.run(forward, uncond))
        cache.end_step()
    assert cache.record.fault is None
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, True]
    assert mx.array_equal(late[0], transformer(uncond)), "computed"
    assert mx.allclose(late[1], late[0], atol=1e-5) and not mx.array_equal(late[1], late[0]), "and then skipped"


@pytest.mark.parametrize("order", [0, 1])
def test_steps_beyond_the_announced_ones_are_computed(order):
    forward, cache = Counted(), predictions(Told(1, 3, 4), 3, order=order)
    for _ in range(5):
        cache.run(forward)
        cache.end_step()
    assert cache.record.fault is None and forward.calls == 4
    assert [decision.skipped for decision in cache.record.decisions] == [False, True, False, False, False]
    assert cache.sigma == pytest.approx(1 / 3), "the last one's, to the end"


def test_a_call_that_passes_no_tap_gives_up(transformer, taps):
    cache = a_cache(Scripted(True), 3)
    output = cache.run(TappedForward(taps, lambda x: x + 1), mx.zeros((1, 5, 4)))
    assert cache.record.fault == "CacheFault: the taps saw 0 signals and 0 final norms in one call"
    assert mx.array_equal(output, mx.ones((1, 5, 4)))


@pytest.mark.parametrize(
    ("part", "saw"),
    [
        (lambda own, x: own.blocks[0](own.embed(x)), "1 signals and 0 final norms"),
        (lambda own, x: own.out(own.norm(own.embed(x))), "0 signals and 1 final norms"),
        (lambda own, x: own.out(own.norm(own.blocks[0](own.blocks[0](own.embed(x))))), "2 signals and 1 final norms"),
    ],
)
def test_a_call_that_passes_one_tap_of_two_gives_up(part, saw, transformer, taps):
    cache, x = a_cache(Scripted(True), 3, branches=2), latents(0)
    output = cache.run(TappedForward(taps, lambda x: part(transformer, x)), x)
    assert cache.record.fault == f"CacheFault: the taps saw {saw} in one call"
    assert mx.array_equal(output, part(transformer, x))


class Heavy(Block):
    """Makes a large array, which the graph of what it returns holds until it is evaluated."""

    def __call__(self, hidden=None):
        large = mx.random.normal((512, 1024))
        mx.eval(large)
        return large.sum(keepdims=True) if hidden is None else super().__call__(hidden) + large.sum() * 0


def test_what_is_kept_is_evaluated_at_the_end_of_its_step(transformer, taps):
    """Nobody waits for it, and no graph stays alive with all that it was made of."""
    heavy = Heavy()
    for block in transformer.blocks:
        block.__class__ = Heavy
    residuals, x = a_cache(Scripted(), 3), latents(0)
    for cache, forward, args in (
        (predictions(Told(), 3), lambda *_: heavy(), ()),
        (residuals, TappedForward(taps, transformer), (x,)),
    ):
        stock = mx.get_active_memory()
        cache.run(forward, *args)
        assert mx.get_active_memory() - stock > 2**20
        cache.end_step()
        mx.synchronize()
        assert cache.record.fault is None and len(cache.kept()) > 0
        assert mx.get_active_memory() - stock < 2**20


def test_after_a_fault_nothing_is_kept_and_everything_is_the_models_own(transformer, taps):
    forward, cache = TappedForward(taps, transformer), a_cache(Scripted(True, True), 5)
    x = latents(0)
    cache.run(forward, x)
    cache.end_step()
    assert len(cache.kept()) == 2, "a signal and a residual"
    cache.give_up(ValueError("enough"))
    assert cache.kept() == [] and cache.record.fault == "ValueError: enough"
    assert mx.array_equal(cache.run(forward, x), transformer(x))
    cache.end_step()
    assert len(cache.record.decisions) == 1


def test_outside_the_window_everything_is_computed():
    forward, cache = Counted(), predictions(Told(*range(1, 10)), 10)
    cache.window = (0.3, 0.7)
    for _ in range(10):
        cache.run(forward)
        cache.end_step()
    assert [each.step for each in cache.record.decisions if each.skipped] == [3, 4, 5, 6]
    assert [each.reason for each in cache.record.decisions][7:] == ["outside the window"] * 3


def test_the_change_that_is_recorded_is_what_the_gate_read_last(transformer, taps):
    """A gate may read it more than once; each reading is the same."""

    class Twice(Scripted):
        def __call__(self, step, change):
            assert change() == change()
            return super().__call__(step, change)

    gate = Twice(True)
    cache = a_cache(gate, 3)
    run_steps(cache, TappedForward(taps, transformer), [latents(0), latents(1)])
    assert cache.record.fault is None
    assert cache.record.decisions[1].change == gate.changes[0] > 0
