"""Watch plain generations of one model, step by step: what changes from each step to the next.

The taps are those of the step cache, and nothing is skipped. Where mflux compiles a whole step, the uncompiled one runs
while it is watched: the taps have to see every call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import mlx.core as mx

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.adapters.compiled import uncompiled
from mflux_teacache_plugin.caching.taps import Taps, swap_call
from mflux_teacache_plugin.calibration.traces import CHANGES, TraceError
from mflux_teacache_plugin.host.watch import watch

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


class Recorder:
    """An observer (see `host.watch`) that records one generation after the other; `last` is the newest one.

    Args:
        model: the pipeline.
        adapter: where it is tapped; with no taps only the outputs are recorded.
        on_step: called after each step.
    """

    def __init__(self, model: Any, adapter: Adapter, on_step: Callable[[], object] = lambda: None) -> None:
        self.last = Recording()
        self._model = model
        self._adapter = adapter
        self._on_step = on_step
        self._undo: list[Callable[[], None]] = []
        self._before: dict[tuple[int, str], mx.array] = {}
        self._now: dict[tuple[int, str], mx.array] = {}
        self._branch = 0
        self._arguments: Mapping[str, Any] = {}  # of the present call of generate_image

    def generation_called(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        if self._adapter.on_class:
            self._watch_predict()

    def generation_begin(self, seed: int, prompt: str, config: Any) -> None:
        adapter = self._adapter
        sigmas = adapter.sigmas and adapter.sigmas(self._model, config, self._arguments)
        self.last = Recording(list(apply.run_of(config, sigmas).sigmas), facts=_facts(config))
        self._before, self._now, self._branch = {}, {}, 0
        if adapter.taps is not None or not adapter.predict:
            self._tap_transformer()
        if not adapter.on_class:
            self._watch_predict()
        scheduler = config.scheduler
        step = scheduler.step

        def taken(*args: Any, **kwargs: Any) -> Any:
            noise = kwargs.get("noise", args[0] if args else None)
            if isinstance(noise, mx.array):
                self._now[_PREDICTION] = noise
            return step(*args, **kwargs)

        scheduler.step = taken  # of this run's own scheduler

    def step_end(self, t: int, time_steps: Any) -> None:
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

    def loop_end(self) -> None:
        self._release()

    def generation_interrupted(self) -> None:
        self._release()

    def generation_end(self, image: Any | None) -> None:
        self._release()

    def _tap_transformer(self) -> None:
        adapter = self._adapter
        transformer = getattr(self._model, adapter.transformer)
        taps = None if adapter.taps is None else Taps(transformer, adapter.taps)
        if taps is not None:
            self._undo.append(taps.remove)

        def call(base_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if taps is None:
                output = base_call(*args, **kwargs)
                self._see(output)
                return output
            if taps.running:
                return base_call(*args, **kwargs)
            output, signals, finals = taps.full(base_call, *args, **kwargs)
            _, _, without = taps.without_blocks(base_call, None, *args, **kwargs)
            self._see(output, signals[0], finals[0] - without[0])
            return output

        self._undo.append(swap_call(transformer, call))

    def _watch_predict(self) -> None:
        """Stand before the methods that make a step's function, on the model, or on the class where mflux looks there."""
        for name in self._adapter.predict:
            owner: Any = self._model
            if self._adapter.on_class:
                owner = next(cls for cls in type(self._model).__mro__ if name in vars(cls))
            if not hasattr(owner, name):  # an adapter's pipelines need not have all of its methods
                continue
            build = partial(self._build, getattr(owner, name))
            if owner is self._model:
                object.__setattr__(owner, name, build)
                self._undo.append(partial(self._model.__dict__.pop, name, None))
            else:
                self._undo.append(partial(setattr, owner, name, vars(owner)[name]))
                setattr(owner, name, staticmethod(build))

    def _build(self, build: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        """A step's function: uncompiled for the taps; without taps its results are what is seen."""
        if self._adapter.taps is not None:
            return uncompiled(build, *args)[0]
        forward = build(*args)

        def predict(*a: Any, **k: Any) -> Any:
            output = forward(*a, **k)
            self._see(output)
            return output

        return predict

    def _see(self, output: Any, signal: mx.array | None = None, residual: mx.array | None = None) -> None:
        """One guidance branch of the step that is being taken."""
        if not isinstance(output, mx.array):
            raise TraceError(f"{type(self._model).__name__} cannot be recorded", cause="its output is no single array")
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
    recorder = Recorder(model, adapter, on_step)
    stop = watch(model, recorder)
    try:
        yield recorder
    finally:
        recorder.generation_end(None)
        stop()


def _change(now: mx.array, before: mx.array) -> mx.array:
    """mean|now - before| / mean|before| in float32, not evaluated."""
    now, before = now.astype(mx.float32), before.astype(mx.float32)
    return mx.abs(now - before).mean() / mx.abs(before).mean()


def _facts(config: Any) -> dict[str, Any]:
    steps = config.num_inference_steps
    return {"steps": steps, "width": config.width, "height": config.height, "guidance": config.guidance}
