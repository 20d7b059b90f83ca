"""The cache inside a forward, on blocks that are sums: which run, what stands in for the others, and what is recorded."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import pytest

from mflux_teacache_plugin.caching.block_cache import BlockCache
from mflux_teacache_plugin.caching.gate import Facts, Setup, Verdict
from mflux_teacache_plugin.caching.stats import Generation

STEPS = 5


class Scripted:
    """A gate that skips these steps, and notes what it was shown and how often it was passed over."""

    def __init__(self, *skipped: int, reads: bool = True) -> None:
        self.skipped, self.reads = skipped, reads
        self.changes: dict[int, float] = {}
        self.resets = 0

    def __call__(self, step: int, change: Any) -> Verdict:
        if self.reads:
            self.changes[step] = change()
        return Verdict(skip=step in self.skipped, reason="told so", accumulated=step / 10)

    def reset(self) -> None:
        self.resets += 1


class Model:
    """Lists of blocks over two streams, text and picture; each block adds its own number, times the step, to both.

    `single`: its list's blocks see one array instead.
    """

    def __init__(self, cache: BlockCache, single: tuple[str, ...] = (), lists: Mapping[str, int] | None = None) -> None:
        self.cache, self.single = cache, single
        self.ran: list[tuple[str, int]] = []
        self.layers: dict[str, list[Any]] = {}
        self.lists = dict(lists or {"double": 4})
        self.step = 1
        cache.attach(self)

    def blocks(self, layer: Any) -> None:
        self.layers = {name: [layer(name, i, count) for i in range(count)] for name, count in self.lists.items()}

    def block(self, name: str, index: int) -> Any:
        def pair(text: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array]:
            self.ran.append((name, index))
            return text + 2 * (index + 1) * self.step, hidden + (index + 1) * self.step

        def one(hidden: mx.array) -> mx.array:
            self.ran.append((name, index))
            return hidden + (index + 1) * self.step

        return one if name in self.single else pair

    def call(self, start: float = 1.0) -> tuple[float, float]:
        """One pass; gives a number of each stream. The picture's tokens go by keyword in the first list."""
        text, hidden = mx.full((2,), start), mx.full((3,), start)
        for name, layers in self.layers.items():
            for index, layer in enumerate(layers):
                if name in self.single:
                    hidden = layer(self.block(name, index), hidden)
                else:
                    text, hidden = layer(self.block(name, index), text=text, hidden=hidden)
        return text[0].item(), hidden[0].item()

    def end(self) -> None:
        self.cache.end_step()
        self.step += 1
        self.ran = []


def a_cache(*gates: Scripted, lists: Mapping[str, int] | None = None, order: int = 0, **more: Any) -> BlockCache:
    given = iter(gates)
    facts = Facts(tuple(1 - step / STEPS for step in range(STEPS)))
    branches = more.pop("branches", 1)
    setup = Setup(facts, Generation(STEPS), branches=branches, blocks=lists or {"double": 4}, stream="hidden")
    return BlockCache(lambda: next(given), setup, order, **{"first": 1, **more})


@pytest.mark.parametrize(("first", "last", "runs"), [(1, 0, [0]), (1, 1, [0, 3]), (2, 1, [0, 1, 3]), (3, 0, [0, 1, 2])])
def test_the_middle_is_replaced_by_what_it_added_to_each_stream(first, last, runs):
    model = Model(a_cache(Scripted(1, 3), first=first, last=last))
    whole = [(1 + 2 * 10 * step, 1 + 10 * step) for step in range(1, 6)]
    middle = [index for index in range(4) if index not in runs]
    for step in range(5):
        answer = model.call()
        if step in (1, 3):
            assert model.ran == [("double", index) for index in runs]
            late = sum(index + 1 for index in middle)  # which the middle added at a step that lies one back
            assert answer == (whole[step][0] - 2 * late, whole[step][1] - late)
        else:
            assert len(model.ran) == 4 and answer == whole[step]
        model.end()
    record = model.cache.record
    assert record.fault is None
    assert [decision.skipped for decision in record.decisions] == [False, True, False, True, False]
    assert record.skipped == pytest.approx(2 * len(middle) / 4)


def test_a_forecast_goes_on_along_sigma():
    model = Model(a_cache(Scripted(2), order=1))
    for _ in range(3):
        answer = model.call()
        model.end()
    assert answer == (1 + 2 * 10 * 3, 1 + 10 * 3), "what the blocks add grows evenly, so the forecast is exact"
    assert model.cache.record.fault is None and model.cache.record.decisions[2].skipped


def test_the_change_is_of_what_the_first_blocks_add_since_the_last_computed_step():
    gate = Scripted(2)
    model = Model(a_cache(gate))
    for _ in range(4):
        model.call()
        model.end()
    # they add 1, 2, 3, 4 times the same; step 2 is skipped, so that step 3 is compared with step 1
    assert gate.changes == pytest.approx({1: 1.0, 2: 0.5, 3: 1.0})
    assert gate.resets == 1, "at the first step, which has nothing to compare with"
    decisions = model.cache.record.decisions
    assert [decision.change for decision in decisions] == pytest.approx([None, 1.0, 0.5, 1.0])
    assert [decision.reason for decision in decisions] == ["first step", "told so", "told so", "told so"]
    assert [decision.accumulated for decision in decisions] == [None, 0.1, 0.2, 0.3]
    assert [(decision.branch, decision.blocks, decision.share) for decision in decisions] == [(0, "double", 0.75)] * 4


def test_a_gate_that_reads_nothing():
    model = Model(a_cache(Scripted(1, reads=False)))
    for _ in range(2):
        model.call()
        model.end()
    assert [decision.change for decision in model.cache.record.decisions] == [None, None]
    assert model.cache.record.skipped == 0.75


def test_each_list_decides_for_itself_and_has_its_share():
    lists = {"double": 2, "single": 3}
    model = Model(a_cache(Scripted(1), Scripted(2), lists=lists), single=("single",), lists=lists)
    ran = []
    for _ in range(4):
        model.call()
        ran.append(list(model.ran))
        model.end()
    everything = [("double", 0), ("double", 1), ("single", 0), ("single", 1), ("single", 2)]
    assert ran == [everything, everything[:1] + everything[2:], everything[:3], everything]
    record = model.cache.record
    assert record.fault is None
    assert [(d.step, d.blocks, round(d.share, 3)) for d in record.decisions if d.skipped] == [
        (1, "double", 0.2),
        (2, "single", 0.4),
    ]
    assert record.skipped == pytest.approx(0.6) and record.computed == pytest.approx(3.4)


@pytest.mark.parametrize("separate", [True, False])
def test_two_branches(separate):
    """Each keeps what is its own; the second reads its own change, or goes by the first one's."""
    gates = Scripted(1), Scripted(1)
    model = Model(a_cache(*gates, separate=separate, branches=2))
    for step in range(3):
        answers = [model.call(1.0), model.call(5.0)]
        if step == 1:
            assert model.ran == [("double", 0)] * 2
            assert [answer[1] for answer in answers] == [1 + 2 + 9, 5 + 2 + 9]
        if step == 2:
            model.ran = []
        model.end()
    record = model.cache.record
    assert record.fault is None and record.skipped == pytest.approx(0.75)
    assert [d.branch for d in record.decisions] == [0, 1] * 3
    assert gates[0].changes == gates[1].changes


def test_what_the_second_branch_reads(monkeypatch):
    read = iter([0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr("mflux_teacache_plugin.caching.block_cache.relative_change", lambda *_: next(read))
    for separate, seen in ((True, [0.1, 0.2]), (False, [0.3, 0.3])):
        gates = Scripted(), Scripted()
        model = Model(a_cache(*gates, separate=separate, branches=2))
        for _ in range(2):
            model.call()
            model.call()
            model.end()
        assert [gate.changes[1] for gate in gates] == seen


def test_more_calls_than_branches_give_up():
    model = Model(a_cache(Scripted(1), Scripted(1)))
    assert model.call() == model.call() == (21.0, 11.0)
    assert model.cache.record.fault == "CacheFault: 2 transformer calls in one step, where 1 were expected"
    model.end()
    assert model.call() == (41.0, 21.0) and len(model.ran) == 4 and model.cache.kept() == []


def test_another_shape_is_computed_and_starts_anew():
    gate = Scripted(1, 2)
    cache = a_cache(gate)
    layers: list[Any] = []
    cache.attach(
        type("Calls", (), {"blocks": lambda self, layer: layers.extend(layer("double", i, 4) for i in range(4))})()
    )
    for tokens in (3, 4, 4):
        hidden = mx.ones((tokens,))
        for layer in layers:
            hidden = layer(lambda hidden: hidden + 1, hidden)
        assert hidden.tolist() == [5.0] * tokens
        cache.end_step()
    assert [decision.skipped for decision in cache.record.decisions] == [False, False, True]
    assert cache.record.fault is None and gate.resets == 2


def test_what_is_kept_and_forgotten():
    model = Model(a_cache(Scripted(1)))
    assert model.cache.kept() == []
    model.call()
    assert len(model.cache.kept()) == 3, "a residual of each stream, and what the first blocks added"
    model.end()
    model.cache.forget()
    assert model.cache.kept() == []


def test_as_many_first_blocks_as_there_are_leave_nothing_to_skip():
    model = Model(a_cache(Scripted(1, 2), first=9, last=9))
    for _ in range(3):
        model.call()
        assert len(model.ran) == 4
        model.end()
    assert model.cache.record.fault is None and model.cache.record.skipped == 0
