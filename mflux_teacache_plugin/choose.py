"""What a model will run with: adapters, coefficient files and methods from every plugin, and the choice among them."""

import inspect
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.adapters import BUILT_IN, REFUSED, Adapter, Registry
from mflux_teacache_plugin.adapters.adapter import pipeline_name
from mflux_teacache_plugin.errors import ConflictError, SettingsError, UnsupportedModelError, VariantFileError
from mflux_teacache_plugin.host.manager import contributions
from mflux_teacache_plugin.methods.method import Method, Parser
from mflux_teacache_plugin.settings import Settings, Value
from mflux_teacache_plugin.variants import Catalog, Entry, Variant, read_variant
from mflux_teacache_plugin.variants.catalog import ModelIdentity, beside_model, load_catalog

#: No hint asks for as many steps as this.
MOST_STEPS = 1000

_ANY_MODEL = "ask for a speed-up instead, such as --teacache 1.5x"


def registry() -> Registry:
    """The built-in adapters and those that plugins contribute; the newest plugin's win."""
    contributed = [adapter for adapters in reversed(contributions("mflux_adapters", _adapters)) for adapter in adapters]
    return Registry([*BUILT_IN, *contributed], REFUSED)


def _adapters(contributed: Iterable[Any]) -> list[Adapter]:
    found = list(contributed)
    if wrong := [each for each in found if not isinstance(each, Adapter)]:
        raise TypeError(f"{wrong[0]!r} is no Adapter")
    return found


def catalog(coefficients: Path | None = None, strict: bool = True) -> Catalog:
    """All coefficient files; `coefficients`, a file or folder, wins over all others."""
    contributed = [variant for variants in contributions("mflux_variants", list) for variant in variants]
    return load_catalog(coefficients, contributed, strict=strict)


def parsers() -> Mapping[str, Parser]:
    """What makes a method of the text behind `NAME:`, from every plugin; the newest plugin's wins."""
    known: dict[str, Parser] = dict(methods.BUILT_IN)
    for contributed in reversed(contributions("mflux_methods", dict)):
        known.update(contributed)
    return known


def parse(text: str) -> Value:
    """The method that a text names, of any plugin's. ArgumentTypeError, with the fix, if it names none."""
    return methods.parse(text, parsers())


@dataclass(frozen=True)
class Choice:
    """What a model will run with."""

    adapter: Adapter
    method: Method
    match: Entry | None  #: None where no coefficient file is for it and the method needs none
    problem: str | None = None  #: what is wrong with the file beside the model, in a line

    @property
    def variant(self) -> Variant | None:
        return None if self.match is None else self.match.variant


def choose(
    pipeline: type, model_config: Any, source: str | None, files: Catalog, wanted: Settings, args: Namespace | None
) -> Choice:
    """Adapter, method and variant for a pipeline class and mflux's ModelConfig.

    `source` is where the weights come from, if not by a name of mflux's; `args` are the command's, if it is one.

    UnsupportedModelError: no adapter serves the pipeline in this way, or the method needs coefficients that are not there.
    SettingsError: the method cannot run on the variant. VariantFileError: what the file recommends is no method.
    """
    name, serving = pipeline.__name__, serving_adapters(pipeline)
    match, problem = match_of(files, model_config, source, serving, wanted.variant)
    method = wanted.method
    variant = None if match is None else match.variant
    if variant is not None and variant.adapter not in serving:
        what, cause = f"the variant {variant.id} does not fit {name}", f"it is for the adapter '{variant.adapter}'"
        raise UnsupportedModelError(what, cause=cause, hint=f"a variant for {' or '.join(sorted(serving))} fits")
    adapter = next(iter(serving.values())) if variant is None else serving[variant.adapter]
    if method is None or method.skips:
        check_run(adapter, pipeline, model_config, {} if args is None else vars(args))
    else:
        match = None  # it needs no numbers
    if method is None:
        method = recommended(variant, tapped=adapter.taps is not None)
        if wanted.forecast is not None:
            method = method.with_forecast(wanted.forecast)
    if wanted.cfg_end is not None:
        method = method.with_cfg_end(wanted.cfg_end)
    if method.cfg_end is not None and (reason := why_no_cfg_end(pipeline)) is not None:
        raise UnsupportedModelError(f"there is no cfg_end for {name} here", cause=reason, hint="leave it out")
    if adapter.taps is None and method.needs_taps:
        cause = "nobody has said where its transformer's signal and blocks are"
        raise UnsupportedModelError(f"{method} does not work with {name} yet", cause=cause, hint=_ANY_MODEL)
    if match is None and method.needs_coefficients:
        name, one = source or model_config.model_name, " or ".join(f'"{id}"' for id in sorted(serving))
        cause = f"the coefficient files serve {', '.join(sorted(files.variants))}"
        file = f'{files.user_folder}/<id>.toml with adapter = {one} and models = ["{name}"]'
        hint = (
            f"{_ANY_MODEL}; or fit them, mflux-teacache calibrate, or write {file}; docs/coefficient-files.md shows how"
        )
        raise UnsupportedModelError(f"there are no coefficients for {name}", cause=cause, hint=hint)
    method.check(variant)
    return Choice(adapter, method, match, problem)


def match_of(
    files: Catalog, model_config: Any, source: str | None, serving: Mapping[str, Adapter], id: str | None
) -> tuple[Entry | None, str | None]:
    """The variant for a model, or of that id, also from a file beside its weights; and what is wrong with that file."""
    beside, problem = None, None
    try:
        if (path := beside_model(source or model_config.model_name)) is not None:
            beside = read_variant(path)
    except VariantFileError as error:
        problem = VariantFileError(f"{error.error}, so it is not used", cause=error.cause).in_line
    if id is not None:
        if beside is not None and beside.id == id:
            return Entry(beside, "model"), None
        return files.by_id(id) if id else None, None
    aliases = tuple(getattr(model_config, "aliases", None) or ())
    identity = ModelIdentity(source, model_config.model_name, model_config.base_model, aliases)
    return files.match(identity, serving.keys(), beside), problem


def check_run(adapter: Adapter, pipeline: type, model_config: Any | None, options: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError or ConflictError where a run with these options cannot skip steps."""
    if adapter.refuses is not None and (reason := adapter.refuses(model_config, options)) is not None:
        what = f"{pipeline.__name__} cannot skip steps in this run"
        raise UnsupportedModelError(what, cause=reason, hint="run it so, or without TeaCache")
    ratios = (options.get("step_cache_ratio"), options.get("teacache_ratio"))
    if any(ratio is not None for ratio in ratios) or options.get("use_step_cache"):
        raise ConflictError("mflux's own step cache is asked for too", hint="use either --teacache or mflux's option")


def why_no_cfg_end(pipeline: type) -> str | None:
    """Why `cfg_end` is not for a pipeline, or None."""
    if "cfg_end" in inspect.signature(pipeline.generate_image).parameters:  # type: ignore[attr-defined]
        return "mflux has the option itself: give --cfg-end alone, or generate_image(cfg_end=...)"
    if any(adapter.second_call is not None for adapter in registry().serving(pipeline).values()):
        return None
    return "its guidance makes no second prediction that could be left out"


def active_steps(adapter: Adapter, pipeline: type, args: Any | None, steps: int | None = None) -> int | None:
    """How many steps of a command, or of so many `steps`, call the model (image to image: not the first); None if not known yet."""
    if steps is None:
        steps = getattr(args, "steps", None) if adapter.steps is None or args is None else adapter.steps(args)
    strength = getattr(args, "image_strength", None) if getattr(args, "image_path", None) else None
    if (edited := getattr(args, "strength", None)) is not None:  # Qwen-Image-2.1's edit: how much is made new
        strength = 1 - edited
    if steps is None or strength is None or strength <= 0 or pipeline_name(pipeline) in adapter.takes_all_steps:
        return steps
    return steps - max(1, int(steps * min(1.0, strength)))


def check_steps(method: Method, adapter: Adapter, pipeline: type, args: Any | None) -> None:
    """Raise SettingsError where the method makes no sense with a command's steps. The hint counts as `--steps` does."""
    steps = active_steps(adapter, pipeline, args)
    try:
        return method.check_steps(steps)
    except SettingsError as error:
        given = getattr(args, "steps", None)
        if given is None or steps == given:
            raise
        cause = f"of {given} steps the strength leaves {steps}" + (f"; {error.cause}" if error.cause else "")
        hint = "no number of steps will do at this strength; give another one"
        for more in range(given + 1, MOST_STEPS):
            with suppress(SettingsError):
                method.check_steps(active_steps(adapter, pipeline, args, more))
                hint = re.sub(r"\d+(?= --steps)", str(more), error.hint or f"take {more} --steps")
                break
        raise SettingsError(error.error, cause=cause, hint=hint) from None


def serving_adapters(pipeline: type) -> dict[str, Adapter]:
    """The adapters for a pipeline class, by id. Raises UnsupportedModelError if there are none."""
    adapters, name, hint = registry(), pipeline.__name__, "run it without TeaCache"
    if (reason := adapters.refusal(pipeline)) is not None:
        raise UnsupportedModelError(f"{name} cannot skip steps", cause=reason, hint=hint)
    if serving := adapters.serving(pipeline):
        return serving
    cause, hint = "no adapter says where its transformer is", f"{hint}, or write one: docs/add-a-family.md"
    raise UnsupportedModelError(f"{name} is not supported yet", cause=cause, hint=hint)


def recommended(variant: Variant | None, tapped: bool = True) -> Method:
    """What `auto` means: the file's word, else its threshold, else 1.5x. VariantFileError if its word is no method."""
    word = "1.5x" if variant is None or variant.threshold is None or not tapped else repr(variant.threshold)
    if variant is not None and variant.recommended is not None:
        word = variant.recommended
    try:
        found = parse(word)
        if not isinstance(found, str):
            return found.as_recommended(variant)
        problem = f"'{found}' is no method"
    except ArgumentTypeError as error:
        problem = str(error)
    place = "" if variant is None else variant.path or variant.id
    raise VariantFileError(f"{place}: recommended: {problem}", hint='write a method such as "2x" or "0.2"')
