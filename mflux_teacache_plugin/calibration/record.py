"""Watch plain generations of one model, step by step: what changes from each step to the next.

The taps are those of the step cache, and nothing is skipped. Where mflux compiles a whole step, the uncompiled one runs
while it is watched: the taps have to see every call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.adapters.intercept import Interception
from mflux_teacache_plugin.caching.gate import lazy_change
from mflux_teacache_plugin.caching.taps import Forward, TappedForward
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.host.watch import Observer, watch

#: So many elements of every prediction are multiplied at a time, so that no second copy of all of them is made.
AT_A_TIME = 1 << 16

#: So few steps have nothing between the first and the last, which always compute.
FEWEST_STEPS = 4


class Recorder(Observer):
    """Records one generation after the other; what it holds is of the newest one.

    The predictions of all steps are kept, in their own type, until the next generation begins: 50 steps of two branches at
    1024x1024 are 79 MB on FLUX.1, 157 MB on FLUX.2 Klein base.
    """

    def __init__(self, adapter: Adapter, on_step: Callable[[], object] = lambda: None) -> None:
        self.sigma: list[float] = []  #: noise level of each active step, falling
        #: `output`, `signal`, `prediction`, `growth` if seen, as in a `Trace`.
        self.changes: dict[str, list[float]] = {}
        self.failed: Exception | None = None  #: what went wrong; a picture that was not recorded is of no use
        self._adapter, self._on_step = adapter, on_step
        self._undo: list[Callable[[], None]] = []
        self._before, self._now = dict[str, mx.array](), dict[str, mx.array]()  # of the last step and of this one
        self._calls: list[mx.array] = []  # the outputs of this step's calls
        self._predictions: list[list[mx.array]] = []  # a step's guided one and its calls'
        self._model: Any = None  # of the newest generation, and mflux's config of it
        self._config: Any = None
        self._arguments: Mapping[str, Any] = {}  # of the present call of generate_image

    def generation_called(self, model: Any, arguments: Mapping[str, Any]) -> None:
        self._release()  # a pipeline may call itself for a second try
        self._arguments = arguments
        self._interception = Interception(model, self._adapter)
        self._undo.append(self._interception.leave)

    def generation_begin(self, model: Any, seed: int, prompt: str, config: Any) -> None:
        sigmas = self._adapter.sigmas and self._adapter.sigmas(model, config, self._arguments)
        self.sigma, self.changes, self._predictions = list(apply.facts_of(config, sigmas).sigmas), {}, []
        self._model, self._config = model, config
        if self._adapter.taps is None:
            self._interception.predictions(self._run)
        else:
            self._interception.transformer_calls(self._run_tapped, whole_steps=False)
        self._undo.append(stand_before(config.scheduler, "step", self._scheduled))

    def step_end(self, model: Any, t: int, time_steps: Any) -> None:
        before, now = self._before, self._now
        same = [kind for kind in now if kind in before and now[kind].shape == before[kind].shape]
        changes = {kind: lazy_change(now[kind], before[kind]) for kind in same if kind != "residual"}
        if "residual" in same:
            length, before_it = (mx.linalg.norm(each["residual"].astype(mx.float32), axis=-1) for each in (now, before))
            changes["growth"] = (length / before_it).mean()
        if self._calls:
            self._predictions.append([now.get("prediction", now["output"]), *self._calls])
        mx.eval(list(changes.values()), list(now.values()), self._calls)
        self._calls = []
        for kind, change in changes.items():
            self.changes.setdefault(kind, []).append(cast(float, change.item()))
        self._before, self._now = now, {}
        self._on_step()

    def generation_end(self, model: Any, image: Any | None) -> None:
        self._release()

    def fault(self, model: Any, event: str, exception: Exception) -> None:
        self._release()
        self.failed = self.failed or exception

    def trace(self, command: str, prompt: str, seed: int, seconds: float) -> Trace:
        """The newest generation. TraceError if it tells nothing."""
        config, rows, steps = self._config, self.changes, len(self.sigma)
        if steps < FEWEST_STEPS:
            raise TraceError(f"{steps} steps tell nothing", hint=f"take --steps {FEWEST_STEPS} or more")
        usable = {kind: tuple(row) for kind, row in rows.items() if len(row) == steps - 1 and np.isfinite(row).all()}
        if not {"output", "prediction"} & usable.keys():
            cause = f"{steps} steps gave {sorted({len(row) for row in rows.values()})} changes"
            hint = "its adapter does not fit, or it takes its steps in another way"
            raise TraceError(f"{type(self._model).__name__} cannot be recorded", cause=cause, hint=hint)
        usable.setdefault("output", usable.get("prediction", ()))
        bits, loras = getattr(self._model, "bits", None), getattr(self._model, "lora_paths", None)
        recipe = [f"{config.num_inference_steps} steps", f"{config.width}x{config.height}"]
        recipe += [] if config.guidance is None else [f"guidance {config.guidance:g}"]
        recipe += [f"q{bits}"] if bits else []
        recipe += [f"LoRA {', '.join(map(str, loras))}"] if loras else []
        return Trace(
            command=command,
            mflux=version("mflux"),
            prompt=prompt,
            recipe=", ".join([*recipe, f"seed {seed}"]),
            steps=config.num_inference_steps,
            guidance=None if config.guidance is None else float(config.guidance),
            sigma=tuple(self.sigma),
            seconds=round(seconds, 3),
            gram=self.gram(),
            **usable,
        )

    def gram(self) -> np.ndarray | None:
        """As `Trace.gram` has it; None if the predictions are not of one size."""
        rows = self._predictions
        both = all(len(row) == 3 and len({each.size for each in row}) == 1 for row in rows)
        kept = [row[kind].reshape(-1) for kind in range(3 if both else 1) for row in rows]
        if len(rows) != len(self.sigma) or len({each.size for each in kept}) != 1:
            return None
        total = mx.zeros((len(kept), len(kept)))
        for begin in range(0, kept[0].size, AT_A_TIME):
            part = mx.stack([each[begin : begin + AT_A_TIME] for each in kept]).astype(mx.float32)
            total = total + part @ part.T
            mx.eval(total)
        found = np.array(total, dtype=np.float64)
        return found / found.diagonal()[: len(rows)].mean()

    def _run(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        self._see(output=output)
        return output

    def _run_tapped(self, forward: TappedForward, *args: Any, **kwargs: Any) -> Any:
        output, signals, finals = forward.full(*args, **kwargs)
        residual = {}
        if not self._calls and finals:  # MagCache's ratios are of the first branch
            _, _, without = forward.without_blocks(None, *args, **kwargs)
            residual = {"residual": finals[0] - without[0]}
        self._see(output=output, signal=signals[0], **residual)
        return output

    def _scheduled(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The scheduler is given what guidance made of the branches."""
        noise = kwargs.get("noise", args[0] if args else None)
        if isinstance(noise, mx.array):
            self._now["prediction"] = noise
        return step(*args, **kwargs)

    def _see(self, **seen: Any) -> None:
        """A guidance branch of the step that is being taken; the first one counts."""
        if not isinstance(seen["output"], mx.array):
            raise TraceError(f"{self._adapter.id} cannot be recorded", cause="its output is no single array")
        self._now = {**seen, **self._now}
        self._calls.append(seen["output"])

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._before, self._now, self._calls = {}, {}, []


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
