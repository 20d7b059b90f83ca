"""One generation: keep each guidance branch's residual, and let it stand in for the blocks on a skipped step.

```
compute   full forward, evaluated;  residual = h_out - h_in  is kept, one per guidance branch
skip      forward without blocks, with the kept residual added at the final norm
```

MLX is lazy: the full forward is built on every step, and only its signal is evaluated before the gate decides.
"""

from typing import Any, cast

import mlx.core as mx

from mflux_teacache_plugin.caching.gate import Gate, Verdict
from mflux_teacache_plugin.caching.stats import Decision, Generation
from mflux_teacache_plugin.caching.taps import TappedForward


class CacheFault(Exception):
    """The model does not behave as its adapter says; the generation goes on without the cache."""


def relative_change(current: mx.array, previous: mx.array) -> float:
    """mean|current - previous| / mean|previous| over all elements, reduced in float32. Waits for the device."""
    current, previous = current.astype(mx.float32), previous.astype(mx.float32)
    return cast(float, (mx.abs(current - previous).mean() / mx.abs(previous).mean()).item())


class StepCache:
    """Runs the steps of one generation.

    Args:
        gate: a new gate.
        record: a new record, which says how many steps are active (image-to-image starts late).
        guard: so many first and last active steps always compute.
        branches: how often the transformer runs within a step at most: 2 with classifier-free guidance.
    """

    def __init__(self, gate: Gate, record: Generation, guard: tuple[int, int] = (1, 1), branches: int = 1) -> None:
        self.record = record
        self._gate = gate
        self._first, self._last = guard
        self._branches = branches
        self._signal: mx.array | None = None  # of the step before, skipped or not
        self._residuals: dict[int, mx.array] = {}  # by guidance branch; (batch, image tokens, width), the model's dtype
        self._branch = 0  # branches that this step has run so far
        self._skip = False  # this step's decision, taken on its first (conditional) branch

    def run(self, forward: TappedForward, *args: Any, **kwargs: Any) -> mx.array:
        """Answer one call of `forward`, which covers one guidance branch or all of a step's."""
        if self.record.fault is None:
            try:
                return self._run(forward, *args, **kwargs)
            except Exception as exception:  # noqa: BLE001 - whatever it is, it must not cost the user the image
                self.record.fault = f"{type(exception).__name__}: {exception}"
                self.forget()
        return forward.plain(*args, **kwargs)  # raises again what was not our fault

    def end_step(self) -> None:
        """The step is done: start evaluating what is kept, so that no graph stays alive, without waiting for it."""
        self._branch = 0
        kept = [*self._residuals.values(), *([] if self._signal is None else [self._signal])]
        mx.async_eval(kept)

    def forget(self) -> None:
        """Drop everything that is kept."""
        self._signal = None
        self._residuals = {}

    def _run(self, forward: TappedForward, *args: Any, **kwargs: Any) -> mx.array:
        output, signals, finals = forward.full(*args, **kwargs)
        if not len(signals) == len(finals) >= 1:
            raise CacheFault(f"the taps saw {len(signals)} signals and {len(finals)} final norms in one call")
        covered = range(self._branch, self._branch + len(finals))
        if covered.stop > self._branches:
            raise CacheFault(f"{covered.stop} transformer calls in one step, where {self._branches} were expected")
        kept = [self._residuals[branch] for branch in covered if branch in self._residuals]
        fitting = [residual.shape for residual in kept] == [final.shape for final in finals]
        if self._branch == 0:
            self._skip = self._decide(signals[0], fitting)
        self._branch = covered.stop
        if self._skip and fitting:  # a branch that only starts now is computed, whatever was decided
            return forward.without_blocks(kept, *args, **kwargs)[0]
        _, _, without = forward.without_blocks(None, *args, **kwargs)
        for branch, h_out, h_in in zip(covered, finals, without, strict=True):
            if h_out.shape != h_in.shape:
                raise CacheFault(f"the final norm sees {h_out.shape} with blocks and {h_in.shape} without")
            self._residuals[branch] = h_out - h_in
        return output

    def _decide(self, signal: mx.array, fitting: bool) -> bool:
        previous, self._signal = self._signal, signal
        step = len(self.record.decisions)
        change = None
        if step < self._first or step >= self.record.steps - self._last:
            verdict = self._compute("first step" if step < self._first else "last step")
        elif not fitting or previous is None or previous.shape != signal.shape:
            verdict = self._compute("nothing that fits is kept")
            self._residuals = {}
        else:
            change = relative_change(signal, previous)
            verdict = self._gate(change)
            if verdict.forget:
                self.forget()
        accumulated = verdict.accumulated if change is not None else None
        self.record.decisions.append(Decision(step, verdict.skip, verdict.reason, change, accumulated))
        return verdict.skip

    def _compute(self, reason: str) -> Verdict:
        self._gate.reset()
        return Verdict(skip=False, reason=reason)
