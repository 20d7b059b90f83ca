"""One generation: what is kept of the computed steps, and what it stands in for.

`PredictionCache` keeps what a step's calls return, and needs to see no more. `StepCache` keeps each guidance branch's
residual, which lets a gate read a signal from inside and the rest of the forward run on a skipped step:

```
compute   full forward, evaluated;  residual = h_out - h_in  is kept, one per guidance branch
skip      forward without blocks, with a residual forecast from those kept added at the final norm
```

MLX is lazy: the full forward is built on every step, and only its signal is evaluated before the gate decides. A third
cache, which decides inside the forward, is in `block_cache`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import mlx.core as mx

from mflux_teacache_plugin.caching.forecast import Forecast
from mflux_teacache_plugin.caching.gate import Change, Gate, Setup, Verdict, relative_change
from mflux_teacache_plugin.caching.stats import Decision
from mflux_teacache_plugin.caching.taps import Forward, TappedForward
from mflux_teacache_plugin.host import faults


class CacheFault(Exception):
    """The model does not behave as its adapter says; the generation goes on without the cache."""


class Calls(Protocol):
    """The places before which a cache can stand; `adapters.intercept` has them for each family."""

    def predictions(self, answer: Callable[..., Any]) -> None:
        """`answer(forward, *args)` answers each call whose result is a step's prediction, or one guidance branch's."""

    def transformer_calls(self, answer: Callable[..., Any]) -> None:
        """`answer(tapped_forward, *args)` answers each call of the transformer, or of a compiled step around it."""

    def blocks(self, layer: Callable[[str, int, int], Callable[..., Any]]) -> None:
        """`layer(list name, index, blocks)` makes what stands before that block; nothing is compiled around it."""


class Cache:
    """What all caches share: the step counter, the record, what is kept, and giving up after a fault.

    `order` is the forecasts'. As it is, it stands before no call and keeps nothing.
    """

    def __init__(self, setup: Setup, order: int) -> None:
        self.record = setup.record
        self.window = (0.0, 1.0)  #: the shares of the run between which steps may be skipped
        self._setup = setup
        self._step = 0
        self._calls = 0  # that this step has made so far
        self._kept: dict[Any, Forecast] = defaultdict(lambda: Forecast(order))  # what stands in, by its place in a step

    @property
    def sigma(self) -> float:
        """Of the present step."""
        return self._setup.facts.sigmas[min(self._step, self._setup.facts.steps - 1)]

    def attach(self, calls: Calls) -> None:
        """Stand before the calls that this cache answers."""

    def end_step(self) -> None:
        """The step is done: start evaluating what is kept, so that no graph stays alive, without waiting for it."""
        self._step += 1
        self._calls = 0
        mx.async_eval(self.kept())

    def progress(self) -> dict[str, str]:
        """What the progress bar shows."""
        return {"skipped": f"{self.record.skipped:.3g}"}

    def kept(self) -> list[mx.array]:
        """Every array that is held."""
        return [array for forecast in self._kept.values() for array in forecast.kept]

    def forget(self) -> None:
        """Drop everything that is kept."""
        self._kept.clear()

    def guidance_over(self) -> None:
        """From here on a step's function returns the prompt's prediction, where it returned one with guidance."""

    def give_up(self, exception: Exception) -> None:
        """Record a fault; from here on the model's own forward answers. Never raises."""
        self.record.fault = faults.in_words(exception)
        with suppress(Exception):  # one fault is enough
            self.forget()

    def _guarded(self, act: Callable[..., Any], *args: Any) -> Any:
        """What `act` returns, or None if it fails or the cache gives up."""
        if self.record.fault is None:
            try:
                return act(*args)
            except Exception as exception:  # noqa: BLE001 - whatever it is, it must not cost the user the image
                self.give_up(exception)
        return None

    def _count_calls(self, calls: int) -> None:
        """The step has made so many calls of the transformer; CacheFault if they are more than its branches."""
        self._calls, most = calls, self._setup.branches
        if calls > most:
            raise CacheFault(f"{calls} transformer calls in one step, where {most} were expected")

    def _decide(self, gate: Gate, change: Change, fits: bool = True, *part: Any) -> Verdict:
        """The gate's verdict, noted with the change that it read; it is not asked where what is kept does not fit.

        A step beyond the announced ones is computed, for nobody has planned it.
        """
        steps, read = self._setup.facts.steps, []

        def reading() -> float:
            read.append(change())
            return read[-1]

        start, end = (share * steps for share in self.window)
        if not fits:
            gate.reset()
            verdict = Verdict(skip=False, reason="nothing that fits is kept" if self._step else "first step")
        elif self._step >= steps:
            verdict = Verdict(skip=False, reason="beyond the announced steps")
        elif not start - 1e-9 <= self._step < end - 1e-9:
            gate.reset()
            verdict = Verdict(skip=False, reason="outside the window")
        else:
            verdict = gate(self._step, reading)
        told = (verdict.skip, verdict.reason, next(iter(read), None), verdict.accumulated)
        self.record.decisions.append(Decision(self._step, *told, *part))
        return verdict


class PredictionCache(Cache):
    """Keeps what the calls of a step return; for gates that read no signal, unless a subclass has one for them."""

    def __init__(self, gate: Gate, setup: Setup, order: int) -> None:
        super().__init__(setup, order)
        self._gate = gate
        self._conditions: dict[int, Any] = {}  # by call within the step
        self._skip = False

    def attach(self, calls: Calls) -> None:
        calls.predictions(self.run)

    def run(self, forward: Forward, *args: Any, **kwargs: Any) -> mx.array:
        """Answer one call, which is one of a step's, always in the same order."""
        prediction, stand_in = self._guarded(self._ask, args, kwargs) or (None, None)
        if stand_in is not None:
            return stand_in
        output = forward(*args, **kwargs)
        if prediction is not None:
            self._guarded(self._learn, prediction, output, args, kwargs)
        return output

    def _ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Forecast, mx.array | None]:
        """This call's forecast, and what stands in for the call if it is not to be made."""
        if self._setup.condition is not None:
            condition = args[self._setup.condition]
            if self._conditions.setdefault(self._calls, condition) is not condition:
                self._conditions[self._calls] = condition
                self._kept.pop(self._calls, None)
        prediction = self._kept[self._calls]
        fits = prediction.shape is not None
        if self._calls == 0:
            self._skip = self._decide(self._gate, self._change(args, kwargs), fits).skip
        self._calls += 1
        # a call that only starts now is computed, whatever was decided
        return prediction, self._stand_in(prediction, args, kwargs) if self._skip and fits else None

    def _change(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Change:
        """What the gate may read at the step's first call."""
        return _unread

    def _learn(self, kept: Forecast, output: mx.array, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keep what a computed call returned."""
        kept.learn(self.sigma, output)

    def _stand_in(self, kept: Forecast, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> mx.array:
        """What stands in for a skipped call."""
        return kept.at(self.sigma)

    def guidance_over(self) -> None:
        self.forget()

    def forget(self) -> None:
        super().forget()
        self._conditions.clear()


class StepCache(Cache):
    """Keeps the residual of each guidance branch.

    `transform` makes of a signal, (batch, tokens, width), and its σ what the gate compares between neighbouring steps.
    """

    def __init__(
        self,
        gate: Gate,
        setup: Setup,
        order: int,
        transform: Callable[[mx.array, float], mx.array] = lambda signal, sigma: signal,
    ) -> None:
        super().__init__(setup, order)
        self._gate, self._transform = gate, transform
        self._signal: mx.array | None = None  # of the step before, skipped or not
        self._skip = False  # this step's decision, taken on its first (conditional) branch

    def attach(self, calls: Calls) -> None:
        calls.transformer_calls(self.run)

    def run(self, forward: TappedForward, *args: Any, **kwargs: Any) -> mx.array:
        """Answer one call of `forward`, which covers one guidance branch or all of a step's."""
        output = self._guarded(self._answer, forward, args, kwargs)
        return forward.plain(*args, **kwargs) if output is None else output  # raises again what was not our fault

    def kept(self) -> list[mx.array]:
        return super().kept() + ([] if self._signal is None else [self._signal])

    def forget(self) -> None:
        super().forget()
        self._signal = None

    def _answer(self, forward: TappedForward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> mx.array:
        output, signals, finals = forward.full(*args, **kwargs)
        if not len(signals) == len(finals) >= 1:
            raise CacheFault(f"the taps saw {len(signals)} signals and {len(finals)} final norms in one call")
        covered = range(self._calls, self._calls + len(finals))
        self._count_calls(covered.stop)
        residuals = [self._kept[branch] for branch in covered]
        fitting = [residual.shape for residual in residuals] == [tuple(final.shape) for final in finals]
        if covered.start == 0:
            self._skip = self._judge(signals[0], fitting)
        if self._skip and fitting:  # a branch that only starts now is computed, whatever was decided
            return forward.without_blocks([residual.at(self.sigma) for residual in residuals], *args, **kwargs)[0]
        _, _, without = forward.without_blocks(None, *args, **kwargs)
        for branch, h_out, h_in in zip(covered, finals, without, strict=True):
            if h_out.shape != h_in.shape:
                raise CacheFault(f"the final norm sees {h_out.shape} with blocks and {h_in.shape} without")
            self._kept[branch].learn(self.sigma, h_out - h_in)
        return output

    def _judge(self, signal: mx.array, fitting: bool) -> bool:
        previous, current = self._signal, self._transform(signal, self.sigma)
        self._signal = current
        if previous is None or previous.shape != current.shape:
            previous, fitting = current, False
        if not fitting:
            self._kept.clear()
        verdict = self._decide(self._gate, lambda: relative_change(current, previous), fitting)
        if verdict.forget:
            self.forget()
        return verdict.skip


def _unread() -> float:
    raise CacheFault("a gate that was said to read no signal asked for one")
