"""A cache inside the forward: the first blocks run, and what they did decides whether the blocks behind them run.

```
blocks   0 … F-1          always run; what they added is compared with what they added at the last computed step
blocks   F … N-B-1        run, or are replaced by what they added at the last computed step (or a forecast of it)
blocks   N-B … N-1        always run
```

Each list of blocks decides for itself, in each guidance branch. The decision falls inside the forward, so no block runs
twice; nor can the forward be compiled whole.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mflux_teacache_plugin.caching.gate import Gate, Setup, relative_change
from mflux_teacache_plugin.caching.step_cache import Cache, Calls


class _Stream:
    """One list of blocks in one guidance branch: its gate, and what is kept."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.before: mx.array | None = None  # the image stream before the first block of this step
        self.after: Any = None  # what the first blocks made of the streams in this step
        self.added: mx.array | None = None  # by the first blocks to the image stream, at the last computed step
        self.change: float | None = None  # as read in this step
        self.skip = False

    def begin(self, image: mx.array) -> None:
        """The first block is about to run."""
        self.before, self.after, self.change, self.skip = image, None, None, False


class BlockCache(Cache):
    """Answers the blocks of one transformer during one generation."""

    def __init__(
        self,
        gate: Callable[[], Gate],  # for one list in one branch; `change` is since the last computed step
        setup: Setup,
        order: int,
        *,
        first: int,  # so many blocks at the start of each list always run (F)
        last: int = 0,  # so many at its end (B)
        separate: bool = True,  # each guidance branch reads its own change; otherwise the second goes by the first one's
    ) -> None:
        super().__init__(setup, order)
        self._gate, self._separate = gate, separate
        self._first_run, self._last_run = first, last
        self._streams: dict[tuple[int, str], _Stream] = {}
        self._work, self._first = sum(setup.blocks.values()), next(iter(setup.blocks))

    def attach(self, calls: Calls) -> None:
        calls.blocks(self._answer)

    def end_step(self) -> None:
        """Now it is known how many branches the step had, so each is given its share of the work."""
        calls = max(self._calls, 1)
        for place, each in enumerate(self.record.decisions):
            if each.step == self._step:
                self.record.decisions[place] = replace(each, share=each.share / calls)
        super().end_step()

    def kept(self) -> list[mx.array]:
        return super().kept() + [stream.added for stream in self._streams.values() if stream.added is not None]

    def forget(self) -> None:
        super().forget()
        self._streams.clear()

    def _answer(self, name: str, index: int, blocks: int) -> Callable[..., Any]:
        first = min(self._first_run, blocks)
        last = blocks - min(self._last_run, blocks - first)  # the first of the last blocks

        def call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.record.fault is not None:
                return inner(*args, **kwargs)
            if index == 0:
                self._guarded(self._begin, name, args, kwargs)
            stream = self._streams.get((self._calls - 1, name))
            if stream is None:  # after a fault
                return inner(*args, **kwargs)
            if index == first < last and stream.skip:
                self._guarded(self._stand_in, name, stream)
            if stream.skip and first <= index < last and self.record.fault is None:
                return stream.after
            output = inner(*args, **kwargs)
            if index == first - 1:
                self._guarded(self._judge, name, stream, output, (last - first) / self._work)
            if index == last - 1 and not stream.skip and stream.after is not None and index >= first:
                self._guarded(self._learn, name, stream, output)
            return output

        return call

    def _begin(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first block of a list is about to run."""
        if name == self._first:
            self._count_calls(self._calls + 1)
        key = (self._calls - 1, name)
        if key not in self._streams:
            self._streams[key] = _Stream(self._gate())
        self._streams[key].begin(kwargs[self._setup.stream] if self._setup.stream in kwargs else args[0])

    def _judge(self, name: str, stream: _Stream, output: Any, share: float) -> None:
        assert stream.before is not None  # the first block has run
        branch, stream.after = self._calls - 1, output
        added, before = (output if isinstance(output, mx.array) else output[-1]) - stream.before, stream.added
        cond = stream if self._separate else self._streams.get((0, name), stream)

        def change() -> float:
            assert before is not None  # nothing fits otherwise
            stream.change = relative_change(added, before) if cond.change is None else cond.change
            return stream.change

        fits = before is not None and before.shape == added.shape
        stream.skip = self._decide(stream.gate, change, fits, branch, name, share).skip
        if not stream.skip:
            stream.added = added

    def _learn(self, name: str, stream: _Stream, output: Any) -> None:
        """Keep what the middle blocks added to each stream."""
        for (key, after), (_, before) in zip(_leaves(output), _leaves(stream.after), strict=True):
            self._kept[self._calls, name, key].learn(self.sigma, after - before)

    def _stand_in(self, name: str, stream: _Stream) -> None:
        """Let the streams be what the middle blocks would return."""
        leaves = [(k, array + self._kept[self._calls, name, k].at(self.sigma)) for k, array in _leaves(stream.after)]
        stream.after = leaves[0][1] if leaves[0][0] == "" else type(stream.after)(tree_unflatten(leaves))


def _leaves(streams: Any) -> list[tuple[str, mx.array]]:
    """What a block returns, one array or a sequence of them, as (key, array); the key of a lone array is empty."""
    return [("", streams)] if isinstance(streams, mx.array) else tree_flatten(streams)
