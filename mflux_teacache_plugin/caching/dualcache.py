"""DualCache: run the first blocks, and let what they did decide whether the blocks behind them run.

The rule is that of cache-dit's DBCache (vipshop/cache-dit 1.5.3, Apache-2.0), restated from its documentation and checked
against its decisions; no code is taken from there. Each list of blocks decides for itself, as cache-dit has it for FLUX.2:

```
blocks   0 … F-1          always run; what they added is compared with what they added at the last computed step
blocks   F … N-B-1        run, or are replaced by what they added at the last computed step (or a forecast of it)
blocks   N-B … N-1        always run
```

Needs no coefficients. The decision falls inside the forward, so no block runs twice; nor can the forward be compiled whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mflux_teacache_plugin.caching.forecast import Forecast
from mflux_teacache_plugin.caching.gate import Change, Run, Verdict, relative_change
from mflux_teacache_plugin.caching.stats import Decision, Generation
from mflux_teacache_plugin.caching.step_cache import Cache, CacheFault
from mflux_teacache_plugin.caching.taps import swap_call


@dataclass(frozen=True)
class DualCacheSettings:
    """cache-dit's `DBCacheConfig`, under its names in the comments, with its defaults.

    Attributes:
        F: blocks at the start of each list that always run.
        B: blocks at its end that always run.
        rdt: relative L1 change below which the middle is skipped.
        warmup: so many first steps compute.
        warmup_interval: of the warm-up's steps only each so many-th computes for certain.
        max_cached: skips in all; -1 for no limit.
        continuous: skips in a row; -1 for no limit.
        accumulated: changes read in all, from which on nothing is skipped; 0 for no limit.
        separate: each guidance branch reads its own change; otherwise the second goes by the first one's.
    """

    F: int = 8  # Fn_compute_blocks
    B: int = 0  # Bn_compute_blocks
    rdt: float = 0.08  # residual_diff_threshold
    warmup: int = 8  # max_warmup_steps
    warmup_interval: int = 1
    max_cached: int = -1  # max_cached_steps
    continuous: int = -1  # max_continuous_cached_steps
    accumulated: float = 0.0  # max_accumulated_residual_diff_threshold
    separate: bool = True  # cfg_diff_compute_separate

    def given(self) -> dict[str, Any]:
        """The settings that are not the defaults, and F, B and rdt."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name in ("F", "B", "rdt")
        }


#: Known by name: cheap and keen, dear and careful.
PRESETS = {
    "aggressive": DualCacheSettings(F=1, rdt=0.2, continuous=10),
    "conservative": DualCacheSettings(F=4, rdt=0.05, continuous=3),
}


class DualCacheGate:
    """Decides for one list of blocks and one guidance branch; `change` is since the last *computed* step."""

    def __init__(self, settings: DualCacheSettings) -> None:
        self._settings = settings
        self._cached = 0
        self._in_a_row = 0
        self._sum = 0.0

    def reset(self) -> None:
        self._in_a_row = 0

    def __call__(self, step: int, change: Change) -> Verdict:
        verdict = self._judge(step, change)
        self._cached += verdict.skip
        self._in_a_row = self._in_a_row + 1 if verdict.skip else 0
        return verdict

    def _judge(self, step: int, change: Change) -> Verdict:
        settings = self._settings
        if step < settings.warmup and step % settings.warmup_interval == 0:
            return Verdict(skip=False, reason="warm-up")
        if 0 <= settings.max_cached <= self._cached:
            return Verdict(skip=False, reason=f"{settings.max_cached} skips in all")
        if 0 <= settings.continuous <= self._in_a_row:
            return Verdict(skip=False, reason=f"{settings.continuous} skips in a row")
        if 0 < settings.accumulated <= self._sum:
            return Verdict(skip=False, reason="the accumulated change is used up", accumulated=self._sum)
        seen = change()
        if seen > 0:  # not if it is no number
            self._sum += seen
        if seen < settings.rdt:
            return Verdict(skip=True, reason="below the threshold", accumulated=self._sum)
        return Verdict(skip=False, reason="threshold reached", accumulated=self._sum)


class _Stream:
    """One list of blocks in one guidance branch: its gate, and what is kept."""

    def __init__(self, gate: DualCacheGate) -> None:
        self.gate = gate
        self.before: mx.array | None = None  # the image stream before the first block of this step
        self.after: Any = None  # what the first blocks made of the streams in this step
        self.added: mx.array | None = None  # by the first blocks to the image stream, at the last computed step
        self.change: float | None = None  # as read in this step
        self.skip = False
        self.residuals: dict[str, Forecast] = {}  # of each stream, from after the first blocks to before the last ones

    def begin(self, image: mx.array) -> None:
        """The first block is about to run."""
        self.before, self.after, self.change, self.skip = image, None, None, False


class BlockCache(Cache):
    """Answers the blocks of one transformer during one generation.

    Args:
        transformer: whose lists of blocks it serves.
        lists: their names.
        settings: for each of them.
        image: the keyword under which a block takes the image stream; it is the last of what the block returns.
        branches: how often the transformer runs within a step at most.
    """

    def __init__(
        self,
        transformer: Any,
        lists: tuple[str, ...],
        settings: DualCacheSettings,
        run: Run,
        order: int,
        record: Generation,
        image: str = "hidden_states",
        branches: int = 1,
    ) -> None:
        super().__init__(run, order, record)
        self._settings = settings
        self._image = image
        self._branches = branches
        self._streams: dict[tuple[int, str], _Stream] = {}
        self._work = sum(len(getattr(transformer, name)) for name in lists)
        self._first = lists[0]
        self._undo = [
            swap_call(block, self._answer(name, index, len(blocks)))
            for name in lists
            for blocks in [getattr(transformer, name)]
            for index, block in enumerate(blocks)
        ]

    def remove(self) -> None:
        """Give the blocks their own classes back."""
        while self._undo:
            self._undo.pop()()

    def end_step(self) -> None:
        """Now it is known how many branches the step had, so each is given its share of the work."""
        decisions, calls = self.record.decisions, self._calls
        for place in range(len(decisions) - 1, -1, -1):
            if decisions[place].step != self._step:
                break
            decisions[place] = replace(decisions[place], share=decisions[place].share / max(calls, 1))
        super().end_step()

    def kept(self) -> list[mx.array]:
        arrays = [array for stream in self._streams.values() for f in stream.residuals.values() for array in f.kept]
        return arrays + [stream.added for stream in self._streams.values() if stream.added is not None]

    def forget(self) -> None:
        self._streams.clear()

    def _answer(self, name: str, index: int, blocks: int) -> Callable[..., Any]:
        first = min(self._settings.F, blocks)
        last = blocks - min(self._settings.B, blocks - first)  # the first of the last blocks

        def call(base_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.record.fault is not None:
                return base_call(*args, **kwargs)
            if index == 0:
                if name == self._first:
                    self._calls += 1
                self._stream(name).begin(kwargs[self._image] if self._image in kwargs else args[0])
            stream = self._stream(name)
            if index == first < last and stream.skip:
                self._guarded(self._stand_in, stream)
            if stream.skip and first <= index < last and self.record.fault is None:
                return stream.after
            output = base_call(*args, **kwargs)
            if index == first - 1:
                self._guarded(self._decide, name, stream, output, (last - first) / self._work)
            if index == last - 1 and not stream.skip and stream.after is not None and index >= first:
                self._guarded(self._learn, stream, output)
            return output

        return call

    def _guarded(self, act: Callable[..., None], *args: Any) -> None:
        try:
            act(*args)
        except Exception as exception:  # noqa: BLE001 - whatever it is, it must not cost the user the image
            self.stand_aside(exception)

    def _stream(self, name: str) -> _Stream:
        key = (self._calls - 1, name)
        if key not in self._streams:
            self._streams[key] = _Stream(DualCacheGate(self._settings))
        return self._streams[key]

    def _decide(self, name: str, stream: _Stream, output: Any, share: float) -> None:
        assert stream.before is not None  # the first block has run
        branch = self._calls - 1
        if branch >= self._branches:
            raise CacheFault(f"{branch + 1} transformer calls in one step, where {self._branches} were expected")
        stream.after = output
        added = _image_of(output) - stream.before

        def change() -> float:
            cond = self._streams.get((0, name))
            if branch > 0 and not self._settings.separate and cond is not None and cond.change is not None:
                stream.change = cond.change
            elif stream.added is not None:
                stream.change = relative_change(added, stream.added)
            return float("nan") if stream.change is None else stream.change

        if stream.added is None or stream.added.shape != added.shape:
            stream.gate.reset()
            verdict = Verdict(skip=False, reason="nothing that fits is kept")
        else:
            verdict = stream.gate(self._step, change)
        stream.skip = verdict.skip
        if not verdict.skip:
            stream.added = added
        reason, accumulated = verdict.reason, verdict.accumulated
        self.record.decisions.append(
            Decision(self._step, verdict.skip, reason, stream.change, accumulated, branch, name, share)
        )

    def _learn(self, stream: _Stream, output: Any) -> None:
        """Keep what the middle blocks added to each stream."""
        for (key, after), (_, before) in zip(_leaves(output), _leaves(stream.after), strict=True):
            stream.residuals.setdefault(key, Forecast(self._order)).learn(self.sigma, after - before)

    def _stand_in(self, stream: _Stream) -> None:
        """Let the streams be what the middle blocks would return."""
        leaves = [(key, array + stream.residuals[key].at(self.sigma)) for key, array in _leaves(stream.after)]
        stream.after = leaves[0][1] if leaves[0][0] == "" else type(stream.after)(tree_unflatten(leaves))


def _leaves(streams: Any) -> list[tuple[str, mx.array]]:
    """What a block returns, one array or a sequence of them, as (key, array); the key of a lone array is empty."""
    return [("", streams)] if isinstance(streams, mx.array) else tree_flatten(streams)


def _image_of(streams: Any) -> mx.array:
    return streams if isinstance(streams, mx.array) else streams[-1]
