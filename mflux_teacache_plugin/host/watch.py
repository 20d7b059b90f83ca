"""See every generation of one model begin, step and end.

mflux's own callbacks tell of the loop; what they cannot tell, the finished picture and a generation that failed, a wrapper
around the instance's `generate_image` does.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Protocol

_MARK = "_mflux_watch"
_LISTS = ("before_loop", "in_loop", "after_loop", "interrupt")


class Observer(Protocol):
    """What is told. Exceptions propagate into mflux's loop, so an observer keeps its own faults to itself."""

    def generation_called(self, arguments: Mapping[str, Any]) -> None:
        """`generate_image` was called, with these arguments and its own defaults; nothing of it has run."""

    def generation_begin(self, seed: int, prompt: str, config: Any) -> None:
        """The loop is about to begin; `config` is mflux's Config."""

    def step_end(self, t: int, time_steps: Any) -> None:
        """Step `t` (absolute) was taken, but perhaps not evaluated; `time_steps` is the progress bar."""

    def loop_end(self) -> None:
        """The loop is over; mflux may let the transformer go next, and then decodes."""

    def generation_interrupted(self) -> None:
        """Ctrl-C in the loop."""

    def generation_end(self, image: Any | None) -> None:
        """`generate_image` is over: with the GeneratedImage, or None if it raised."""


class Watch:
    """Passes one model's events on to its observers, in the order they came."""

    def __init__(self, model: Any) -> None:
        self.observers: list[Observer] = []
        self._model = model
        generate = model.generate_image
        parameters = inspect.signature(generate)

        @wraps(generate)
        def generate_image(*args: Any, **kwargs: Any) -> Any:
            image = None
            try:
                self._called(parameters, args, kwargs)
                image = generate(*args, **kwargs)
                return image
            finally:
                for observer in reversed(self.observers):  # the last to come leaves first
                    observer.generation_end(image)

        object.__setattr__(model, "generate_image", generate_image)
        object.__setattr__(model, _MARK, self)
        model.callbacks.register(self)

    def stop(self) -> None:
        """Leave the model as it was."""
        for name in _LISTS:
            callbacks = getattr(self._model.callbacks, name)
            callbacks[:] = [callback for callback in callbacks if callback is not self]
        for name in ("generate_image", _MARK):
            self._model.__dict__.pop(name, None)

    def _called(self, parameters: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            passed = parameters.bind(*args, **kwargs)
        except TypeError:  # generate_image says so better
            return
        passed.apply_defaults()
        for observer in list(self.observers):
            observer.generation_called(passed.arguments)

    def call_before_loop(self, seed: int, prompt: str, config: Any, **_: Any) -> None:
        for observer in list(self.observers):
            observer.generation_begin(seed, prompt, config)

    def call_in_loop(self, t: int, time_steps: Any, **_: Any) -> None:
        for observer in list(self.observers):
            observer.step_end(t, time_steps)

    def call_after_loop(self, **_: Any) -> None:
        for observer in list(self.observers):
            observer.loop_end()

    def call_interrupt(self, **_: Any) -> None:
        for observer in list(self.observers):
            observer.generation_interrupted()


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
