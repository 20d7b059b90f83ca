"""`apply_teacache`: from method, variant and adapter to a cache in every generation of one model."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from mflux_teacache_plugin import choices, methods, report
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.adapters.compiled import uncompiled
from mflux_teacache_plugin.caching.dualcache import BlockCache
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Run
from mflux_teacache_plugin.caching.stats import Generation, Stats
from mflux_teacache_plugin.caching.step_cache import Cache, PredictionCache, StepCache
from mflux_teacache_plugin.caching.taps import TappedForward, Taps, swap_call
from mflux_teacache_plugin.catalog import Entry, Match
from mflux_teacache_plugin.choices import Choice
from mflux_teacache_plugin.errors import (
    AlreadyAppliedError,
    ConflictError,
    SettingsError,
    TeaCacheError,
)
from mflux_teacache_plugin.host.watch import watch
from mflux_teacache_plugin.methods import Method
from mflux_teacache_plugin.variants import Variant

_MARK = "_mflux_teacache"


class Handle:
    """Step caching on one model, until `restore()` or the end of the `with` block.

    Between generations the model is as mflux made it but for a watched `generate_image`; nothing is kept from one
    generation to the next, and nothing holds the transformer once the loop is over.

    Attributes:
        method: what decides, with its setting.
        variant: the numbers in use, if any.
        stats: what was skipped and computed, over all generations.
    """

    def __init__(self, model: Any, choice: Choice) -> None:
        self.method = choice.method
        self.variant = choice.variant
        self.stats = Stats()
        self.coefficients: str | None = None  #: the file that was asked for, recorded in metadata
        self._model = model
        self._adapter = choice.adapter
        self._arguments: Mapping[str, Any] = {}  # of the present call of generate_image
        self._cache: Cache | None = None
        self._undo: list[Callable[[], None]] = []
        object.__setattr__(model, _MARK, self)
        self._stop_watching = watch(model, self)

    def restore(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        self._release()
        self._stop_watching()
        if getattr(self._model, _MARK, None) is self:
            self._model.__dict__.pop(_MARK)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, kind: type | None, exception: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    # What the watch tells. Faults are recorded in the generation; they never reach mflux's loop.

    def generation_called(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        if self._adapter.on_class and self.method.keeps == "prediction":
            for name in filter(partial(hasattr, self._model), self._adapter.predict):
                self._replace_on_class(name)

    def generation_begin(self, seed: int, prompt: str, config: Any) -> None:
        record = Generation(config.num_inference_steps - config.init_time_step)
        self.stats.generations.append(record)
        try:
            choices.check_run(self._adapter, type(self._model), self._model.model_config, self._arguments)
            run = run_of(config, self._adapter.sigmas and self._adapter.sigmas(self._model, config, self._arguments))
            record.steps = run.steps
            self._begin(run, record)
        except TeaCacheError as error:
            record.fault = f"{error.error} ({error.cause})" if error.cause else error.error
            self._release()
        except Exception as exception:  # noqa: BLE001 - an unexpected model or gate must not cost the user the image
            record.fault = f"{type(exception).__name__}: {exception}"
            self._release()

    def step_end(self, t: int, time_steps: Any) -> None:
        if self._cache is not None:
            self._cache.end_step()
            time_steps.set_postfix(skipped=f"{self._cache.record.skipped:.3g}", refresh=False)

    def loop_end(self) -> None:
        self._release()

    def generation_interrupted(self) -> None:
        self._release()

    def generation_end(self, image: Any | None) -> None:
        self._release()
        self._arguments = {}
        if image is not None:
            keys = report.metadata(self.stats.last, self.method, self.variant, self.coefficients)
            image.generation_parameters = {**image.generation_parameters, **keys}

    def _begin(self, run: Run, record: Generation) -> None:
        """Make this generation's cache, and have it answer the model's calls."""
        method, adapter, order = self.method, self._adapter, ORDERS[self.method.forecast]
        if method.keeps == "prediction":
            cache = PredictionCache(method.gate(self.variant, run), run, order, record, adapter.condition)
            self._cache = cache
            self._intercept_predictions(cache)
            return
        assert adapter.taps is not None  # `choose` has seen to it
        transformer = getattr(self._model, adapter.transformer)
        if isinstance(method, methods.DualCache):
            fitted = method.fit(blocks_of(self._model, adapter))
            taps, branches = adapter.taps, adapter.branches
            block_cache = BlockCache(
                transformer, taps.blocks, fitted, run, order, record, taps.stream or taps.signal_argument, branches
            )
            self._cache = block_cache
            self._undo.append(block_cache.remove)
            for name in adapter.predict:
                self._replace(name, lambda build: lambda *args: uncompiled(build, *args)[0])
            return
        gate = method.gate(self.variant, run)
        look = partial(method.look, run=run)
        step_cache = StepCache(gate, run, order, record, adapter.branches, look)
        self._cache = step_cache
        self._intercept_transformer(step_cache, transformer)

    def _intercept_predictions(self, cache: PredictionCache) -> None:
        """Have the cache answer each call whose result is a step's prediction, or one guidance branch's."""
        if not self._adapter.predict:
            self._undo.append(swap_call(getattr(self._model, self._adapter.transformer), cache.run))
        elif not self._adapter.on_class:
            for name in self._adapter.predict:
                self._replace(name, lambda build: lambda *args: partial(cache.run, build(*args)))

    def _intercept_transformer(self, cache: StepCache, transformer: Any) -> None:
        """Tap the transformer, and have the cache answer its calls."""
        assert self._adapter.taps is not None
        taps = Taps(transformer, self._adapter.taps)
        self._undo.append(taps.remove)

        def call(base_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if taps.running:
                return base_call(*args, **kwargs)
            return cache.run(TappedForward(taps, base_call), *args, **kwargs)

        self._undo.append(swap_call(transformer, call))

        def replaced(build: Callable[..., Any]) -> Callable[..., Any]:
            """Where mflux compiles a whole step, compile it with the taps as extra outputs and the gate outside of it."""

            def predict(*args: Any) -> Callable[..., Any]:
                forward, compiled = uncompiled(build, *args)
                if not compiled:
                    return forward  # its calls of the transformer are answered one by one
                return partial(cache.run, TappedForward(taps, forward, compiled=True))

            return predict

        for name in self._adapter.predict:
            self._replace(name, replaced)

    def _replace(self, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let the model's own attribute stand before its method."""
        if not hasattr(self._model, name):  # an adapter's pipelines need not have all of its methods
            return
        object.__setattr__(self._model, name, wrap(getattr(self._model, name)))
        self._undo.append(lambda: self._model.__dict__.pop(name, None))

    def _replace_on_class(self, name: str) -> None:
        """Stand before a method that mflux looks up on the class, for calls about this model's transformer alone.

        It may be called before the loop begins and with it the cache, so the function it makes asks for the cache each time.
        """
        owner = next(cls for cls in type(self._model).__mro__ if name in vars(cls))
        stock, build = vars(owner)[name], getattr(owner, name)

        def predict(transformer: Any, *args: Any) -> Callable[..., Any]:
            forward = build(transformer, *args)
            if transformer is not getattr(self._model, self._adapter.transformer):
                return forward

            def step(*a: Any, **k: Any) -> Any:
                cache = self._cache
                return cache.run(forward, *a, **k) if isinstance(cache, PredictionCache) else forward(*a, **k)

            return step

        setattr(owner, name, staticmethod(predict))
        self._undo.append(lambda: setattr(owner, name, stock))

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        if self._cache is not None:
            self._cache.forget()
            self._cache = None


def handle_of(model: Any) -> Handle | None:
    """The handle that is active on a model, or None."""
    return getattr(model, _MARK, None)


def run_of(config: Any, sigmas: Sequence[float] | None = None) -> Run:
    """The active steps of mflux's Config; `sigmas` of those that call the model, where they are not its scheduler's."""
    if sigmas is None:
        sigmas = config.scheduler.sigmas.tolist()[: config.num_inference_steps]  # one more than steps, the last 0
    sigmas = [float(sigma) for sigma in sigmas][config.init_time_step :]  # image-to-image starts later
    return Run(tuple(sigmas), (config.height // 16, config.width // 16))


def apply_teacache(
    model: Any,
    method: Method | str | float | None = None,
    *,
    threshold: float | None = None,
    coefficients: Sequence[float] | None = None,
    range: tuple[float, float] | None = None,
    variant: Variant | str | None = None,
) -> Handle:
    """Make an mflux pipeline skip the denoising steps that barely change the picture.

    Args:
        model: a pipeline, such as `Flux1` or `Flux2Klein`.
        method: as `--teacache` takes it: "1.5x", "dualcache:aggressive", 0.2, "auto". Default: what the variant
            recommends.
        threshold: in (0, 2]; higher skips more. The same as a number for `method`.
        coefficients: a polynomial of your own, five numbers, highest power first.
        range: the changes that `coefficients` were fitted on; without it they hold everywhere.
        variant: a Variant, or the id of a coefficient file. Default: the one that matches the model.

    Returns:
        A handle, also for `with`: `handle.stats`, `handle.restore()`.

    Raises:
        AlreadyAppliedError, ConflictError, UnsupportedModelError, SettingsError, VariantFileError.
    """
    if method is not None and threshold is not None:
        raise SettingsError("method and threshold were given", hint="give one of them")
    if range is not None and coefficients is None:
        raise SettingsError("range was given without coefficients", hint="give both, or a Variant")
    wanted = to_method(method if threshold is None else threshold)
    files = choices.catalog()
    if isinstance(variant, Variant):
        files.explicit = Entry(variant, "option")
        variant = None
    choice = choices.choose(type(model), model.model_config, None, files, method=wanted, id=variant)
    if coefficients is not None:
        if choice.variant is None:
            raise SettingsError("coefficients were given for a model without a variant", hint="give a Variant")
        own = choice.variant.replace(polynomial=tuple(coefficients), range=range, path=None)
        choice = replace(choice, match=Match(own, "option", exact=True))
    return apply_choice(model, choice)


def apply_choice(model: Any, choice: Choice) -> Handle:
    """Put what was chosen to work. AlreadyAppliedError, ConflictError, or SettingsError if the model has too few blocks."""
    if handle_of(model) is not None:
        raise AlreadyAppliedError(
            "TeaCache is already active on this model",
            hint="call handle.restore() first, or unset MFLUX_TEACACHE if that applied it",
        )
    if getattr(model, "_teacache_handle", None) is not None:  # mlx-teacache's mark on a model that it patched
        raise ConflictError("mlx-teacache is active on this model", hint="call restore() on its handle first")
    if isinstance(choice.method, methods.DualCache):
        choice.method.fit(blocks_of(model, choice.adapter))
    return Handle(model, choice)


def blocks_of(model: Any, adapter: Adapter) -> dict[str, int]:
    """How many blocks each list of the transformer has."""
    assert adapter.taps is not None  # `choose` has seen to it
    transformer = getattr(model, adapter.transformer)
    return {name: len(getattr(transformer, name)) for name in adapter.taps.blocks}


def to_method(method: Method | str | float | None) -> Method | None:
    """What Python may give as a method; None stands for what is recommended. SettingsError if it names none."""
    if method is None or not isinstance(method, (str, int, float)):
        return method
    try:
        found = methods.parse(method if isinstance(method, str) else repr(float(method)), choices.parsers())
    except ArgumentTypeError as error:
        raise SettingsError(str(error), hint='give a method such as "1.5x" or 0.2') from None
    if found == methods.OFF:
        raise SettingsError("'off' was given", hint="do not apply it then")
    return None if isinstance(found, str) else found
