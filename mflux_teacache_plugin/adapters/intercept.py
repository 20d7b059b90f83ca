"""Stand before the calls of one model, and leave again: the one way in for caching and for calibration.

mflux either calls the transformer from plain Python, or compiles a function of one step, made by a method that the adapter
names in `predict`. No gate can live in a compiled function, so it is asked for the uncompiled one, and what is compiled
instead has the taps as further outputs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.caching.guidance import PromptAlone
from mflux_teacache_plugin.caching.taps import TappedForward, Taps
from mflux_teacache_plugin.host import faults
from mflux_teacache_plugin.host.layers import stand_before


class Interception:
    """What stands before one model's calls during one generation, until `leave()`. Keeps the model alive until then.

    `on_fault` is told of what failed here within the loop; the model's own function answers then. `alone` are the steps on the
    prompt alone, if there may be some; they begin with `leave_out_second_calls`.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        on_fault: Callable[[Exception], None] = lambda fault: faults.report("mflux runs plain", fault),
        alone: PromptAlone | None = None,
    ) -> None:
        self._model, self._adapter, self._on_fault, self._alone = model, adapter, on_fault, alone
        self._undo: list[Callable[[], None]] = []
        self._stands_before_predict = adapter.on_class
        self._answer: Callable[..., Any] | None = None  # of predictions, where mflux looks for them on the class
        if adapter.on_class:  # mflux makes the function before its loop begins
            for name in adapter.predict:
                if hasattr(model, name):
                    self._undo.append(stand_before(type(model), name, self._on_class))

    @property
    def transformer(self) -> Any:
        """The model's, or whatever is called in its place."""
        return getattr(self._model, self._adapter.transformer)

    def leave(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        self._answer = None
        while self._undo:
            self._undo.pop()()

    def predictions(self, answer: Callable[..., Any]) -> None:
        """`answer(forward, *args)` answers each call whose result is a step's prediction, or one guidance branch's."""
        if self._adapter.on_class:
            self._answer = answer
        elif not self._adapter.predict:
            self._before(self.transformer, "__call__", answer)
        else:
            self._before_predict(lambda build, *args: partial(answer, self._built(build, *args)))

    def transformer_calls(self, answer: Callable[..., Any], whole_steps: bool = True) -> None:
        """`answer(tapped_forward, *args)` answers each call of the transformer; with `whole_steps`, where mflux compiles a whole
        step, it answers the step in place of its calls, and what answers is compiled.
        """
        assert self._adapter.taps is not None  # `choose` has seen to it
        taps = Taps(self.transformer, self._adapter.taps)
        self._undo.append(taps.remove)

        def call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if taps.running:
                return inner(*args, **kwargs)
            return answer(TappedForward(taps, inner), *args, **kwargs)

        def predict(forward: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
            if not (compiled and whole_steps):
                return forward  # its calls of the transformer are answered one by one
            guided = partial(answer, TappedForward(taps, forward, compiled=True))
            if self._alone is None:
                return guided
            once = self._alone.once(forward)
            return self._alone.either(guided, partial(answer, TappedForward(taps, once, compiled=True)))

        self._before(self.transformer, "__call__", call)
        self._before_predict(partial(self._uncompiled, predict))

    def blocks(self, layer: Callable[[str, int, int], Callable[..., Any]]) -> None:
        """`layer(list name, index, blocks)` makes what stands before that block; nothing is compiled around it."""
        for name, blocks in lists_of_blocks(self._model, self._adapter).items():
            for index, block in enumerate(blocks):
                self._before(block, "__call__", layer(name, index, len(blocks)))
        self._before_predict(partial(self._uncompiled, lambda forward, compiled: forward))

    def leave_out_second_calls(self) -> None:
        """Where the steps are to run on the prompt alone, they do; after every other way in."""
        assert self._alone is not None
        if self._adapter.predict and not self._stands_before_predict:
            self._before_predict(self._built)
        self._before(self.transformer, "__call__", self._alone.call)

    def _built(self, build: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        """A step's function, as mflux makes it; and another one for steps on the prompt alone, where there are some."""
        forward = build(*args)
        return forward if self._alone is None else self._alone.either(forward, self._alone.once(build(*args)))

    def _before(self, target: Any, name: str, layer: Callable[..., Any]) -> None:
        self._undo.append(stand_before(target, name, layer))

    def _before_predict(self, layer: Callable[..., Any]) -> None:
        self._stands_before_predict = True
        for name in self._adapter.predict:
            if hasattr(self._model, name):  # an adapter's pipelines need not have all of its methods
                self._before(self._model, name, layer)

    def _uncompiled(
        self, make: Callable[[Callable[..., Any], bool], Callable[..., Any]], build: Callable[..., Any], *args: Any
    ) -> Callable[..., Any]:
        """What `make` makes of a step's uncompiled function, and of whether mflux compiles it."""
        try:
            return make(*uncompiled(build, *args))
        except Exception as exception:  # noqa: BLE001 - another mflux may not be asked like this
            self._on_fault(exception)
            return build(*args)

    def _on_class(self, build: Callable[..., Any], transformer: Any, *args: Any) -> Callable[..., Any]:
        """A step's function; for this model's transformer alone, and only while there is an answer."""
        if transformer is not self.transformer:
            return build(transformer, *args)
        forward = self._built(build, transformer, *args)

        def step(*a: Any, **k: Any) -> Any:
            return forward(*a, **k) if self._answer is None else self._answer(forward, *a, **k)

        return step


def lists_of_blocks(model: Any, adapter: Adapter) -> Mapping[str, Any]:
    """The transformer's lists of blocks by name. AttributeError where it has none of that name."""
    assert adapter.taps is not None  # `choose` has seen to it
    transformer = getattr(model, adapter.transformer)
    return {name: getattr(transformer, name) for name in adapter.taps.blocks}


def uncompiled(build: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], bool]:
    """The step function that `build(*args)` makes, uncompiled, and whether mflux would have compiled it.

    mflux leaves it uncompiled on a plain or Pro M1 or M2, so for the moment of building this machine is one.
    """
    built = build(*args)
    if type(built) is FunctionType:  # isinstance is no use: a compiled function claims its original's class
        return built, False
    from mflux.utils.apple_silicon import AppleSiliconUtil

    stock = AppleSiliconUtil.__dict__["is_m1_or_m2"]
    AppleSiliconUtil.is_m1_or_m2 = staticmethod(lambda: True)
    try:
        return build(*args), True
    finally:
        AppleSiliconUtil.is_m1_or_m2 = stock
