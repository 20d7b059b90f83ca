"""`apply_teacache`: from variant and adapter to a step cache in every generation of one model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mflux_teacache_plugin import report
from mflux_teacache_plugin.adapters import BUILT_IN, REFUSED, Adapter, Registry
from mflux_teacache_plugin.adapters.compiled import uncompiled
from mflux_teacache_plugin.caching.gate import GateFactory, TeaCacheGate
from mflux_teacache_plugin.caching.stats import Generation, Stats
from mflux_teacache_plugin.caching.step_cache import StepCache
from mflux_teacache_plugin.caching.taps import TappedForward, Taps, swap_call
from mflux_teacache_plugin.catalog import Catalog, Match, ModelIdentity, load_catalog
from mflux_teacache_plugin.errors import AlreadyAppliedError, ConflictError, SettingsError, UnsupportedModelError
from mflux_teacache_plugin.host.manager import load_plugins, tell
from mflux_teacache_plugin.host.watch import watch
from mflux_teacache_plugin.settings import MAX_THRESHOLD
from mflux_teacache_plugin.variants import Variant

_MARK = "_mflux_teacache"


def registry() -> Registry:
    """The built-in adapters and those that plugins contribute."""
    contributed = tell(load_plugins().manager.hook.mflux_adapters)
    return Registry([*BUILT_IN, *(adapter for adapters in contributed for adapter in adapters)], REFUSED)


def catalog(coefficients: Path | None = None, strict: bool = True) -> Catalog:
    """All coefficient files; `coefficients`, a file or folder, goes before all others."""
    contributed = tell(load_plugins().manager.hook.mflux_variants)
    return load_catalog(coefficients, [v for variants in contributed for v in variants], strict=strict)


def identity(model_config: Any, source: str | None) -> ModelIdentity:
    """What a coefficient file can match: mflux's names for a model, and where its weights came from if not by name."""
    aliases = tuple(getattr(model_config, "aliases", None) or ())
    return ModelIdentity(source, model_config.model_name, model_config.base_model, aliases)


def choose_variant(pipeline: type, model_config: Any, source: str | None, files: Catalog) -> Match:
    """The variant for a pipeline class and mflux's ModelConfig.

    Raises:
        UnsupportedModelError: no adapter serves the pipeline, or no coefficient file the model.
    """
    adapters = registry()
    if (reason := adapters.refusal(pipeline)) is not None:
        raise UnsupportedModelError(
            f"{pipeline.__name__} cannot skip steps", cause=reason, hint="run it without TeaCache"
        )
    serving = adapters.serving(pipeline)
    names = ", ".join(sorted(files.variants))
    if not serving:
        raise UnsupportedModelError(
            f"{pipeline.__name__} is not supported yet", hint=f"run it without TeaCache; supported are {names}"
        )
    model = identity(model_config, source)
    match = files.match(model, serving.keys())
    if match is None:
        one = " or ".join(f'"{id}"' for id in sorted(serving))
        raise UnsupportedModelError(
            f"there are no coefficients for {source or model.name}",
            cause=f"the coefficient files serve {names}",
            hint=f"write {files.user_folder}/<id>.toml with adapter = {one} and models = "
            f'["{source or model.name}"]; docs/coefficient-files.md shows how',
        )
    return match


class Handle:
    """TeaCache on one model, until `restore()` or the end of the `with` block.

    Between generations the model is as mflux made it but for a watched `generate_image`; nothing is kept from one
    generation to the next, and nothing holds the transformer once the loop is over.

    Attributes:
        variant: the numbers in use.
        threshold: the accumulated estimate from which a step is computed.
        stats: what was skipped and computed, over all generations.
    """

    def __init__(self, model: Any, adapter: Adapter, variant: Variant, threshold: float, gate: GateFactory) -> None:
        self.variant = variant
        self.threshold = threshold
        self.stats = Stats()
        self.coefficients: str | None = None  #: the file that was asked for, recorded in metadata
        self._model = model
        self._adapter = adapter
        self._gate = gate
        self._cache: StepCache | None = None
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

    def generation_begin(self, seed: int, prompt: str, config: Any) -> None:
        steps = config.num_inference_steps - config.init_time_step
        guard = (self.variant.guard.first, self.variant.guard.last)
        record = Generation(steps)
        self.stats.generations.append(record)
        try:
            gate = self._gate(self.variant.polynomial, self.threshold, self.variant.range)
            self._cache = StepCache(gate, record, guard, self._adapter.branches)
            self._intercept(self._cache)
        except Exception as exception:  # noqa: BLE001 - an unexpected model or gate must not cost the user the image
            record.fault = f"{type(exception).__name__}: {exception}"
            self._release()

    def step_end(self, t: int, time_steps: Any) -> None:
        if self._cache is not None:
            self._cache.end_step()
            time_steps.set_postfix(skipped=self._cache.record.skipped, refresh=False)

    def loop_end(self) -> None:
        self._release()

    def generation_interrupted(self) -> None:
        self._release()

    def generation_end(self, image: Any | None) -> None:
        self._release()
        if image is not None:
            keys = report.metadata(self.stats.last, self.threshold, self.variant, self.coefficients)
            image.generation_parameters = {**image.generation_parameters, **keys}

    def _intercept(self, cache: StepCache) -> None:
        """Tap the transformer, and have the cache answer its calls."""
        transformer = getattr(self._model, self._adapter.transformer)
        taps = Taps(transformer, self._adapter.taps)
        self._undo.append(taps.remove)

        def call(base_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if taps.running:
                return base_call(*args, **kwargs)
            return cache.run(TappedForward(taps, base_call), *args, **kwargs)

        self._undo.append(swap_call(transformer, call))
        if self._adapter.predict is not None:
            self._intercept_predict(cache, taps, self._adapter.predict)

    def _intercept_predict(self, cache: StepCache, taps: Taps, name: str) -> None:
        """Where mflux compiles a whole step, compile it with the taps as extra outputs and the gate outside of it."""
        build = getattr(self._model, name)

        def predict(*args: Any) -> Callable[..., Any]:
            forward, compiled = uncompiled(build, *args)
            if not compiled:
                return forward  # its calls of the transformer are answered one by one
            tapped = TappedForward(taps, forward, compiled=True)
            return lambda *a, **k: cache.run(tapped, *a, **k)

        object.__setattr__(self._model, name, predict)
        self._undo.append(lambda: self._model.__dict__.pop(name, None))

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        if self._cache is not None:
            self._cache.forget()
            self._cache = None


def handle_of(model: Any) -> Handle | None:
    """The handle that is active on a model, or None."""
    return getattr(model, _MARK, None)


def apply_teacache(
    model: Any,
    *,
    threshold: float | None = None,
    coefficients: Sequence[float] | None = None,
    range: tuple[float, float] | None = None,
    variant: Variant | str | None = None,
) -> Handle:
    """Make an mflux pipeline skip the denoising steps that barely change the picture.

    Args:
        model: a pipeline, such as `Flux1` or `Flux2Klein`.
        threshold: in (0, 2]; higher skips more. Default: the variant's own.
        coefficients: a polynomial of your own, five numbers, highest power first.
        range: the changes that `coefficients` were fitted on; without it they hold everywhere.
        variant: a Variant, or the id of a coefficient file. Default: the one that matches the model.

    Returns:
        A handle, also for `with`: `handle.stats`, `handle.restore()`.

    Raises:
        AlreadyAppliedError, ConflictError, UnsupportedModelError, SettingsError, VariantFileError.
    """
    if handle_of(model) is not None:
        raise AlreadyAppliedError(
            "TeaCache is already active on this model",
            hint="call handle.restore() first, or unset MFLUX_TEACACHE if that applied it",
        )
    if getattr(model, "_teacache_handle", None) is not None:  # mlx-teacache's mark on a model that it patched
        raise ConflictError("mlx-teacache is active on this model", hint="call restore() on its handle first")
    if not isinstance(variant, Variant):
        files = catalog()
        if variant is not None:
            match = by_id(files, variant)
        else:
            match = choose_variant(type(model), model.model_config, None, files)
        variant = match.variant
    if coefficients is not None:
        variant = variant.replace(polynomial=tuple(coefficients), range=range, path=None)
    elif range is not None:
        raise SettingsError("range was given without coefficients", hint="give both, or a Variant")
    if threshold is None:
        threshold = variant.threshold
    elif not (math.isfinite(threshold) and 0 < threshold <= MAX_THRESHOLD):
        raise SettingsError(f"threshold {threshold} is not above 0 and at most {MAX_THRESHOLD:g}", hint="try 0.2")
    return Handle(model, adapter_for(type(model), variant), variant, threshold, gate_for(variant))


def by_id(files: Catalog, id: str) -> Match:
    """The variant of that id, for whatever model. Raises UnsupportedModelError naming those there are."""
    if id not in files.variants:
        raise UnsupportedModelError(
            f"there is no variant '{id}'",
            hint=f"known are {', '.join(sorted(files.variants))}; see mflux-teacache variants",
        )
    entry = files.variants[id]
    return Match(entry.variant, entry.origin, exact=True)


def adapter_for(pipeline: type, variant: Variant) -> Adapter:
    """The adapter that a variant names, for this pipeline class. Raises UnsupportedModelError if it does not fit."""
    serving = registry().serving(pipeline)
    if variant.adapter not in serving:
        raise UnsupportedModelError(
            f"the variant {variant.id} does not fit {pipeline.__name__}",
            cause=f"it is for the adapter '{variant.adapter}'",
            hint=f"a variant for {' or '.join(sorted(serving)) or 'another pipeline'} fits",
        )
    return serving[variant.adapter]


def gate_for(variant: Variant) -> GateFactory:
    """The gate that a variant names. Raises UnsupportedModelError if nobody brings it."""
    gates: dict[str, GateFactory] = {"teacache": TeaCacheGate}
    for contributed in tell(load_plugins().manager.hook.mflux_gates):
        gates.update(contributed)
    if variant.gate not in gates:
        raise UnsupportedModelError(
            f"{variant.path or variant.id}: gate: there is no gate '{variant.gate}'",
            hint=f"known are {', '.join(sorted(gates))}; install the plugin that brings it",
        )
    return gates[variant.gate]
