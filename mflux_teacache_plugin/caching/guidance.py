"""Steps on the prompt alone: guidance's second prediction is answered by its first.

Guidance makes u + g (c - u), or c + g (c - u), of the prompt's prediction c and the negative prompt's u. With c in place of u
either is c, whatever g is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.caching.taps import Forward


@dataclass(frozen=True)
class SecondCall:
    """How mflux makes guidance's second prediction."""

    #: The transformer's arguments, by position or name, that hold both predictions' inputs, the negative prompt's half first;
    #: empty where the second prediction is a call of its own, after the prompt's.
    batch: tuple[int | str, ...] = ()
    #: The guidance at which mflux makes it although the result is the first prediction; None where it makes none then.
    idle: float | None = None


def cutoff(steps: int, share: float | None) -> int:
    """How many first steps run with guidance, by mflux's own rule for `cfg_end`; all of them without a share."""
    return steps if share is None else max(1, round(share * steps))


class PromptAlone:
    """Answers the second prediction from a step on; before it, every call passes."""

    def __init__(self, second: SecondCall) -> None:
        self.record: Generation | None = None
        self.begins: float = float("inf")  #: the first step on the prompt alone, counted over the active ones
        self._second = second
        self._step = 0
        self._first: mx.array | None = None  # what the first call of this step, or of this pass over it, returned

    @property
    def on(self) -> bool:
        """Whether the present step runs on the prompt alone."""
        return self._step >= self.begins

    def end_step(self) -> bool:
        """The step is done. Whether it was the last one with guidance."""
        self._step += 1
        self._first = None
        return self._step == self.begins

    def call(self, inner: Forward, *args: Any, **kwargs: Any) -> mx.array:
        """Answer one call of the transformer."""
        if not self.on:
            return inner(*args, **kwargs)
        if self._second.batch:
            return self._half(inner, *args, **kwargs)
        if self._first is None:
            self._first = inner(*args, **kwargs)
        else:
            self._left_out()
        return self._first

    def once(self, forward: Forward) -> Forward:
        """A function of one step that makes its calls anew each time it runs, however often a step runs it."""

        def run(*args: Any, **kwargs: Any) -> mx.array:
            self._first = None
            try:
                return forward(*args, **kwargs)
            finally:
                self._first = None

        return run

    def either(self, guided: Callable[..., Any], alone: Callable[..., Any]) -> Callable[..., Any]:
        """One of two functions of a step, as the step is: what is compiled cannot be both."""
        return lambda *args, **kwargs: (alone if self.on else guided)(*args, **kwargs)

    def _half(self, inner: Forward, *args: Any, **kwargs: Any) -> mx.array:
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        try:
            if len(given[self._second.batch[0]]) == 1:  # no guidance in this run
                return inner(*args, **kwargs)
            given.update((name, _prompts_half(given[name])) for name in self._second.batch)
        except Exception as exception:  # noqa: BLE001 - a newer mflux may call it otherwise; the image comes all the same
            self.begins = float("inf")
            if self.record is not None:
                self.record.fault = f"{type(exception).__name__}: {exception}"
            return inner(*args, **kwargs)
        self._left_out()
        output = inner(*(given[place] for place in range(len(args))), **{name: given[name] for name in kwargs})
        return mx.concatenate([output, output])

    def _left_out(self) -> None:
        if self.record is not None:
            self.record.alone = int(self.begins)


def _prompts_half(value: Any) -> Any:
    """The second half of a batch, or of each in a list of them."""
    return value[len(value) // 2 :] if isinstance(value, mx.array) else [_prompts_half(each) for each in value]
