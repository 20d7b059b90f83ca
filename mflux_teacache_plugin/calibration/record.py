"""Watch plain generations of one model, step by step: what changes from each step to the next.

The taps are those of the step cache, and nothing is skipped. Where mflux compiles a whole step, the uncompiled one runs
while it is watched: the taps have to see every call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.adapters.intercept import Interception
from mflux_teacache_plugin.caching.taps import Forward, TappedForward
from mflux_teacache_plugin.calibration.traces import CHANGES, TraceError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.host.watch import Observer, watch

SIGNAL, OUTPUT, RESIDUAL = CHANGES


@dataclass
class Recording:
    """One generation as it was recorded.

    Attributes:
        sigma: noise level of each active step, falling.
        branches: per guidance branch the changes by the names in `CHANGES`, one less than steps each.
        prediction: changes of what the scheduler was given, the guided prediction; empty where it was not seen.
        facts: steps, width, height and guidance as mflux's Config has them.
    """

    sigma: list[float] = field(default_factory=list)
    branches: list[dict[str, list[float]]] = field(default_factory=list)
    prediction: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Recorder(Observer):
    """Records one generation after the other; `last` is the newest one.

    Args:
        adapter: where the model is tapped; with no taps only the outputs are recorded.
        on_step: called after each step.
    """

    def __init__(self, adapter: Adapter, on_step: Callable[[], object] = lambda: None) -> None:
        self.last = Recording()
        self.failed: Exception | None = None
        self._adapter = adapter
        self._on_step = on_step
        self._undo: list[Callable[[], None]] = []
        self._before: dict[tuple[int, str], mx.array] = {}
        self._now: dict[tuple[int, str], mx.array] = {}
        self._branch = 0
        self._arguments: Mapping[str, Any] = {}  # of the present call of generate_image

    def generation_called(self, model: Any, arguments: Mapping[str, Any]) -> None:
        self._release()  # a pipeline may call itself for a second try
        self._arguments = arguments
        self._interception = Interception(model, self._adapter)
        self._undo.append(self._interception.leave)

    def generation_begin(self, model: Any, seed: int, prompt: str, config: Any) -> None:
        adapter = self._adapter
        sigmas = adapter.sigmas and adapter.sigmas(model, config, self._arguments)
        facts = {"steps": config.num_inference_steps, "width": config.width, "height": config.height}
        facts["guidance"] = config.guidance
        self.last = Recording(list(apply.facts_of(config, sigmas).sigmas), facts=facts)
        self._before, self._now, self._branch = {}, {}, 0
        if adapter.taps is None:
            self._interception.predictions(self._run)
        else:
            self._interception.transformer_calls(self._run_tapped, whole_steps=False)
        self._undo.append(stand_before(config.scheduler, "step", self._scheduled))

    def step_end(self, model: Any, t: int, time_steps: Any) -> None:
        changes = {
            key: _change(now, self._before[key])
            for key, now in self._now.items()
            if key in self._before and self._before[key].shape == now.shape
        }
        mx.eval(list(changes.values()), list(self._now.values()))
        for (branch, kind), change in changes.items():
            self._row(branch, kind).append(cast(float, change.item()))
        self._before, self._now, self._branch = self._now, {}, 0
        self._on_step()

    def generation_end(self, model: Any, image: Any | None) -> None:
        self._release()

    def fault(self, model: Any, event: str, exception: Exception) -> None:
        """Kept: there is no use in a picture that was not recorded."""
        self._release()
        self.failed = self.failed or exception

    def _run(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        self._see(output)
        return output

    def _run_tapped(self, forward: TappedForward, *args: Any, **kwargs: Any) -> Any:
        output, signals, finals = forward.full(*args, **kwargs)
        _, _, without = forward.without_blocks(None, *args, **kwargs)
        self._see(output, signals[0], finals[0] - without[0])
        return output

    def _scheduled(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The scheduler is given what guidance made of the branches."""
        noise = kwargs.get("noise", args[0] if args else None)
        if isinstance(noise, mx.array):
            self._now[_PREDICTION] = noise
        return step(*args, **kwargs)

    def _see(self, output: Any, signal: mx.array | None = None, residual: mx.array | None = None) -> None:
        """One guidance branch of the step that is being taken."""
        if not isinstance(output, mx.array):
            raise TraceError(f"{self._adapter.id} cannot be recorded", cause="its output is no single array")
        for kind, value in ((SIGNAL, signal), (OUTPUT, output), (RESIDUAL, residual)):
            if value is not None:
                self._now[self._branch, kind] = value
        self._branch += 1

    def _row(self, branch: int, kind: str) -> list[float]:
        if branch == _PREDICTION[0]:
            return self.last.prediction
        while len(self.last.branches) <= branch:
            self.last.branches.append({})
        return self.last.branches[branch].setdefault(kind, [])

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._before, self._now = {}, {}


_PREDICTION = (-1, "prediction")


@contextmanager
def recording(model: Any, adapter: Adapter, on_step: Callable[[], object] = lambda: None) -> Iterator[Recorder]:
    """Record every generation of `model` in the `with` block, and leave it as it was."""
    recorder = Recorder(adapter, on_step)
    stop = watch(model, recorder)
    try:
        yield recorder
        if recorder.failed is not None:
            raise recorder.failed
    finally:
        recorder.generation_end(model, None)
        stop()


def _change(now: mx.array, before: mx.array) -> mx.array:
    """mean|now - before| / mean|before| in float32, not evaluated."""
    now, before = now.astype(mx.float32), before.astype(mx.float32)
    return mx.abs(now - before).mean() / mx.abs(before).mean()
