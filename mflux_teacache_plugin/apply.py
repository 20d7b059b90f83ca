"""`apply_teacache`: from method, variant and adapter to a cache in every generation of one model."""

import weakref
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mflux_teacache_plugin import choose, methods, settings, summary
from mflux_teacache_plugin.adapters.intercept import Interception, lists_of_blocks
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.caching.guidance import PromptAlone, cutoff
from mflux_teacache_plugin.caching.stats import Generation, Stats
from mflux_teacache_plugin.caching.step_cache import Cache
from mflux_teacache_plugin.caching.taps import Taps
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.errors import (
    AlreadyAppliedError,
    ConflictError,
    SettingsError,
    TeaCacheError,
    UnsupportedModelError,
)
from mflux_teacache_plugin.host import faults
from mflux_teacache_plugin.host.watch import Observer, watch
from mflux_teacache_plugin.methods.method import Method, Setup
from mflux_teacache_plugin.variants import Catalog, Entry, Provenance, Variant

_MARK = "_mflux_teacache"

#: For coefficients that come without one.
DEFAULT_THRESHOLD = 0.2


class Handle(Observer):
    """Step caching on one model, until `restore()` or the end of the `with` block.

    Between generations the model is as mflux made it but for a watched `generate_image`; nothing is kept from one
    generation to the next, and nothing holds the transformer once the loop is over. The handle does not keep the model.

    Attributes:
        method: decides, with its setting.
        variant: the numbers in use, if any.
        stats: what was skipped and computed, over all generations.
    """

    def __init__(self, model: Any, choice: Choice) -> None:
        self.method, self.variant, self._adapter = choice.method, choice.variant, choice.adapter
        self.stats = Stats()
        self.coefficients: str | None = None  #: the file that was asked for, recorded in metadata
        self._model = weakref.ref(model)
        self._arguments: Mapping[str, Any] = {}  # of the present call of generate_image
        self._interception: Interception | None = None
        self._cache: Cache | None = None
        self._alone: PromptAlone | None = None
        self._record: Generation | None = None  # of the present generation, once its loop has begun
        self._refused = False  # the present generation is plain mflux from its beginning, and that was said
        #: Of the generation that ended last; None where a fault was said instead.
        self.finished: Generation | None = None
        self._stop_watching = watch(model, self)
        object.__setattr__(model, _MARK, self)

    def restore(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        self._release()
        self._stop_watching()
        model = self._model()
        if model is not None and handle_of(model) is self:
            vars(model).pop(_MARK)

    def kept(self) -> list[Any]:
        """The arrays that the cache holds now; none between generations."""
        return [] if self._cache is None else self._cache.kept()

    def __repr__(self) -> str:
        """Such as `TeaCache 2x on flux2-klein-base-4b, 12 of 25 steps skipped`."""
        on = "" if self.variant is None else f" on {self.variant.id}"
        return f"TeaCache {self.method}{on}, {self.stats}"

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def generation_called(self, model: Any, arguments: Mapping[str, Any]) -> None:
        self._release()
        self._record, self._refused, self.finished = None, False, None
        self._arguments = arguments
        self._intercept(model)

    def generation_begin(self, model: Any, seed: int, prompt: str, config: Any) -> None:
        if self._refused:
            return
        adapter = self._adapter
        if config.num_inference_steps <= config.init_time_step:
            cause = f"{config.num_inference_steps} in all, and none is left to take"
            raise SettingsError("it takes no step", cause=cause)
        record = self._record = self.stats.begin(config.num_inference_steps - config.init_time_step)
        facts = facts_of(config, adapter.sigmas and adapter.sigmas(model, config, self._arguments))
        record.steps, record.guidance = facts.steps, facts.guidance
        setup = Setup(facts, record, self.variant, adapter.branches, adapter.condition)
        if self.method.needs_taps and adapter.taps is not None:
            blocks = {name: len(blocks) for name, blocks in lists_of_blocks(model, adapter).items()}
            setup = replace(setup, blocks=blocks, stream=adapter.taps.stream or adapter.taps.signal_argument)
        interception = self._interception or self._intercept(model)
        try:
            if self.method.skips:
                choose.check_run(adapter, type(model), model.model_config, self._arguments)
            self._cache = self.method.cache(setup)
        except TeaCacheError as error:  # no step can be skipped; what guidance can do without is left out all the same
            if self._alone is None:
                raise
            record.fault = error.in_line
            self._cache = methods.CUTS.cache(setup)
        self._cache.window = self.method.window
        self._cache.attach(interception)
        if self._alone is not None and adapter.second_call is not None:
            record.idle = config.guidance is not None and config.guidance == adapter.second_call.idle
            guided = 0 if record.idle else cutoff(config.num_inference_steps, self.method.cfg_end)
            self._alone.record, self._alone.begins = record, max(0, guided - config.init_time_step)
            if self._alone.begins < facts.steps:
                interception.leave_out_second_calls()

    def step_end(self, model: Any, t: int, time_steps: Any) -> None:
        if self._cache is not None:
            self._cache.end_step()
            if self._alone is not None and self._alone.end_step() and self._adapter.guided_at_once:
                self._cache.guidance_over()
            time_steps.set_postfix(**self._cache.progress(), refresh=False)

    def loop_end(self, model: Any) -> None:
        self._release()

    generation_interrupted = loop_end

    def generation_end(self, model: Any, image: Any | None) -> None:
        self._release()
        record, refused = self._record, self._refused
        self._arguments, self._record, self._refused = {}, None, False
        if image is None:
            return
        keys: dict[str, Any] = {settings.METHOD_KEY: settings.OFF}  # a picture that was plain from its beginning
        if record is not None and not refused:
            if record.fault is not None:
                summary.say(summary.summary(record, self.method, self.variant))
            else:
                self.finished = record
            keys = summary.metadata(record, self.method, self.variant, self.coefficients)
        image.generation_parameters = {**(image.generation_parameters or {}), **keys}

    def fault(self, model: Any, event: str, exception: Exception) -> None:
        """From here on the model's own calls answer; one line says so, at once or after the picture."""
        self._release()
        words = exception.in_line if isinstance(exception, TeaCacheError) else faults.in_words(exception)
        if self._record is not None and self._record.fault is None:
            self._record.fault = words
        if event in ("generation_called", "generation_begin") and not self._refused:
            self._refused = True
            summary.say(f"this picture is plain mflux: {words}")
        elif self._record is None:
            faults.report("TeaCache stopped", exception)

    def _intercept(self, model: Any) -> Interception:
        second = self._adapter.second_call
        if second is not None and (self.method.cfg_end is not None or second.idle is not None):
            self._alone = PromptAlone(second)
        self._interception = Interception(model, self._adapter, partial(self.fault, model, "step"), self._alone)
        return self._interception

    def _release(self) -> None:
        """Leave the model's calls, and forget what was kept."""
        self._alone = None
        if self._interception is not None:
            self._interception.leave()
            self._interception = None
        cache, self._cache = self._cache, None
        if cache is not None:
            with suppress(Exception):  # it is dropped anyway
                cache.forget()


def handle_of(model: Any) -> Handle | None:
    """The handle that is active on a model, or None."""
    return getattr(model, _MARK, None)


def facts_of(config: Any, sigmas: Sequence[float] | None = None) -> Facts:
    """The active steps of mflux's Config; `sigmas` of those that call the model, where they are not its scheduler's."""
    if sigmas is None:
        sigmas = config.scheduler.sigmas.tolist()[: config.num_inference_steps]  # one more than steps, the last 0
    sigmas = [float(sigma) for sigma in sigmas][config.init_time_step :]  # image-to-image starts later
    grid = (config.height // 16, config.width // 16)
    return Facts(tuple(sigmas), grid, config.init_time_step, getattr(config, "guidance", None))


def apply_teacache(
    model: Any,
    method: Method | str | float | None = None,
    *,
    threshold: float | None = None,
    coefficients: Sequence[float] | None = None,
    range: tuple[float, float] | None = None,
    variant: Variant | str | None = None,
    cfg_end: float | None = None,
) -> Handle:
    """Make an mflux pipeline skip the denoising steps that barely change the picture.

    Args:
        model: a pipeline, such as `Flux1` or `Flux2Klein`.
        method: as `--teacache` takes it: "1.5x", "dualcache:aggressive", 0.2; None or "auto": what the variant recommends.
        threshold: in (0, 2]; higher skips more. The same as a number for `method`.
        coefficients: a polynomial of your own, five numbers, highest power first.
        range: the changes that `coefficients` were fitted on; without it they hold everywhere.
        variant: a Variant, or the id of a coefficient file. Default: the one that matches the model.
        cfg_end: the share of the steps, above 0, that run with guidance; with "off" for `method` nothing else changes.

    Returns:
        A handle, also for `with`: `handle.stats`, `handle.restore()`.

    Raises:
        AlreadyAppliedError, ConflictError, UnsupportedModelError, SettingsError, VariantFileError.
    """
    if method is not None and threshold is not None:
        raise SettingsError("method and threshold were given", hint="give one of them")
    if range is not None and coefficients is None:
        raise SettingsError("range was given without coefficients", hint="give both, or a Variant")
    if isinstance(method, str) and method.strip().lower() == methods.OFF and cfg_end is not None:
        method = methods.CUTS
    wanted = to_method(method if threshold is None else threshold)
    files = choose.catalog()
    if isinstance(variant, Variant):
        files.explicit = Entry(variant, "option")
        variant = None
    if coefficients is not None:
        files.explicit = Entry(_own(model, files, variant, polynomial=tuple(coefficients), range=range), "option")
        variant = None
        if wanted is None:
            wanted = to_method(files.explicit.variant.threshold)
        elif not wanted.needs_coefficients:
            error = f"coefficients were given, but {wanted} uses none"
            raise SettingsError(error, hint="give a threshold, such as 0.2")
    try:
        asked = settings.Settings(wanted, "Python", True, cfg_end=cfg_end, variant=variant)
        choice = choose.choose(type(model), model.model_config, None, files, asked, None)
    except ArgumentTypeError as fault:
        raise SettingsError(f"cfg_end: {fault}") from None
    return apply_choice(model, choice)


def _own(model: Any, files: Catalog, id: str | None, **own: Any) -> Variant:
    """The model's variant, or a new one, with coefficients of one's own."""
    serving = choose.serving_adapters(type(model))
    found, _ = choose.match_of(files, model.model_config, None, serving, id)
    if found is not None:
        threshold = found.variant.threshold or DEFAULT_THRESHOLD
        return found.variant.replace(**own, threshold=threshold, recommended=None, path=None)
    own |= {"id": "own", "adapter": next(iter(serving)), "models": (model.model_config.model_name,)}
    source = Provenance(source="coefficients given in Python")
    return Variant(**own, threshold=DEFAULT_THRESHOLD, weights_licence="unknown", provenance=source)


def apply_choice(model: Any, choice: Choice) -> Handle:
    """Put what was chosen to work. TeaCacheError: a cache is active already, or the method's taps or blocks are not there."""
    if handle_of(model) is not None:
        hint = "call handle.restore() first, or unset MFLUX_TEACACHE if that applied it"
        raise AlreadyAppliedError("TeaCache is already active on this model", hint=hint)
    if getattr(model, "_teacache_handle", None) is not None:  # mlx-teacache's mark on a model that it patched
        raise ConflictError("mlx-teacache is active on this model", hint="call restore() on its handle first")
    adapter = choice.adapter
    if choice.method.needs_taps and adapter.taps is not None:
        try:
            Taps(getattr(model, adapter.transformer), adapter.taps).remove()
            blocks = {name: len(blocks) for name, blocks in lists_of_blocks(model, adapter).items()}
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            what = f"{choice.method} does not work with this version of mflux"
            cause = f"the taps of the adapter '{adapter.id}' do not fit {type(model).__name__}: {error}"
            hint = "ask for a speed-up, such as 1.5x, which needs no taps; mflux-teacache doctor names tested versions"
            raise UnsupportedModelError(what, cause=cause, hint=hint) from error
        choice.method.check(choice.variant, blocks)
    return Handle(model, choice)


def to_method(method: Method | str | float | None) -> Method | None:
    """What Python may give as a method; None stands for what is recommended. SettingsError if it names none."""
    if method is None or isinstance(method, Method):
        return method
    if isinstance(method, bool) or not isinstance(method, (str, int, float)):
        raise SettingsError(f"{method!r} is no method", hint='give a method such as "1.5x" or 0.2')
    try:
        found = choose.parse(method if isinstance(method, str) else repr(float(method)))
    except ArgumentTypeError as error:
        raise SettingsError(str(error), hint='give a method such as "1.5x" or 0.2') from None
    if found == methods.OFF:
        raise SettingsError("'off' was given", hint="do not apply it then")
    return None if isinstance(found, str) else found
