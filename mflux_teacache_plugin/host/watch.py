"""See every generation of one model begin, step and end.

mflux's own callbacks tell of the loop; what they cannot tell, the finished picture and a generation that failed, a layer
before the model's `generate_image` does. An observer's fault is one line and never costs the picture.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mflux_teacache_plugin.host import faults
from mflux_teacache_plugin.host.layers import stand_before

_MARK = "_mflux_watch"


class Observer:
    """What is told; a subclass overrides what it wants to know."""

    def generation_called(self, model: Any, arguments: Mapping[str, Any]) -> None:
        """`generate_image` was called, with these arguments and its own defaults; nothing of it has run."""

    def generation_begin(self, model: Any, seed: int, prompt: str, config: Any) -> None:
        """The loop is about to begin; `config` is mflux's Config."""

    def step_end(self, model: Any, t: int, time_steps: Any) -> None:
        """Step `t` (absolute) was taken, but perhaps not evaluated; `time_steps` is the progress bar."""

    def loop_end(self, model: Any) -> None:
        """The loop is over; mflux may let the transformer go next, and then decodes."""

    def generation_interrupted(self, model: Any) -> None:
        """Ctrl-C in the loop."""

    def generation_end(self, model: Any, image: Any | None) -> None:
        """`generate_image` is over: with the GeneratedImage, or None if it raised."""

    def fault(self, model: Any, event: str, exception: Exception) -> None:
        """One of the others raised. Says so in one line, unless a subclass has a better way."""
        faults.report(f"a fault in {event}, mflux goes on without it", exception)


class Watch:
    """Passes one model's events on to its observers, in the order they came. Does not keep the model alive."""

    def __init__(self, model: Any) -> None:
        self.observers: list[Observer] = []
        self._model = weakref.ref(model)
        self._parameters = inspect.signature(model.generate_image)
        self._depth = 0  # Qwen-Image-2.1's edit calls itself for a second try
        self._leave = stand_before(model, "generate_image", self._generate)
        object.__setattr__(model, _MARK, self)
        model.callbacks.register(self)

    def stop(self) -> None:
        """Leave the model as it was."""
        self._leave()
        model = self._model()
        if model is not None and getattr(model, _MARK, None) is self:
            for name in ("before_loop", "in_loop", "after_loop", "interrupt"):
                callbacks = getattr(model.callbacks, name)
                callbacks[:] = [callback for callback in callbacks if callback is not self]
            vars(model).pop(_MARK)

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        image = None
        self._depth += 1
        try:
            with suppress(TypeError):  # generate_image says so better
                passed = self._parameters.bind(*args, **kwargs)
                passed.apply_defaults()
                self._tell("generation_called", passed.arguments)
            image = generate(*args, **kwargs)
            return image
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._tell("generation_end", image, newest_first=True)

    def _tell(self, event: str, *args: Any, newest_first: bool = False) -> None:
        """Tell every observer, whatever another one does; a Ctrl-C meanwhile is passed on once all were told."""
        model = self._model()
        interrupted: BaseException | None = None
        for observer in self.observers[:: -1 if newest_first else 1]:
            try:
                try:
                    getattr(observer, event)(model, *args)
                except Exception as exception:  # noqa: BLE001 - whatever it is, it must not cost the user the image
                    observer.fault(model, event, exception)
            except Exception as exception:  # noqa: BLE001 - not even a fault's own fault
                faults.report(f"a fault in {event}", exception)
            except BaseException as exception:  # noqa: BLE001 - Ctrl-C or an exit: raised again below
                interrupted = exception
        if interrupted is not None:
            raise interrupted

    def call_before_loop(self, seed: int, prompt: str, config: Any, **_: Any) -> None:
        self._tell("generation_begin", seed, prompt, config)

    def call_in_loop(self, t: int, time_steps: Any, **_: Any) -> None:
        self._tell("step_end", t, time_steps)

    def call_after_loop(self, **_: Any) -> None:
        self._tell("loop_end")

    def call_interrupt(self, **_: Any) -> None:
        self._tell("generation_interrupted")


def watch(model: Any, observer: Observer) -> Callable[[], None]:
    """Tell `observer` of every generation of `model` from now on; returns what ends it.

    mflux calls in the order of registration, so watch a model before mflux registers its MemorySaver.
    """
    watching: Watch = getattr(model, _MARK, None) or Watch(model)
    watching.observers.append(observer)

    def stop() -> None:
        if observer in watching.observers:
            watching.observers.remove(observer)
            if not watching.observers:
                watching.stop()

    return stop
