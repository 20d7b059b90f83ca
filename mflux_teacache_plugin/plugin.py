"""TeaCache as a plugin of the host: what the entry point `mflux` -> `teacache` names."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from mflux_teacache_plugin import apply, demo_model, report, settings
from mflux_teacache_plugin.adapters import BUILT_IN, Adapter
from mflux_teacache_plugin.catalog import Catalog, Match
from mflux_teacache_plugin.errors import ConflictError, TeaCacheError, UnsupportedModelError
from mflux_teacache_plugin.host.specs import hookimpl
from mflux_teacache_plugin.settings import Settings

_HELP = (
    "Skip the denoising steps that barely change the picture (TeaCache). VALUE is the threshold, above 0 and at most 2: "
    "higher skips more; 0.2 is a good start for FLUX.1. Without a value, or with 'auto', the model's own threshold; "
    "'off' goes over MFLUX_TEACACHE and a -C file. Steps are chosen while the image is made, from how much the "
    "model's input changes; mflux's own --teacache-ratio skips a fixed share of the steps, on other models."
)


@dataclass(frozen=True)
class Request:
    """What was asked for, with the coefficient files and the parser that refuses: `args.teacache_request`."""

    wanted: Settings
    files: Catalog
    parser: ArgumentParser


def impossible(wanted: Settings, parser: ArgumentParser, error: TeaCacheError) -> None:
    """Refuse with exit code 2 what was asked for in so many words; warn where the environment asks for everything."""
    if wanted.explicit:
        refuse(parser, error)
    _say_switched_off(error)


def refuse(parser: ArgumentParser, error: TeaCacheError) -> NoReturn:
    """A usage error: the message on stderr, exit code 2."""
    if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
        raise error
    parser.exit(2, f"{error}\n")


@hookimpl(optionalhook=True)
def mflux_adapters() -> Iterable[Adapter]:
    return BUILT_IN


@hookimpl(optionalhook=True)
def mflux_models() -> Mapping[str, Any]:
    try:
        return demo_model.models()
    except TeaCacheError as error:
        _say(f"{error.error}; {error.hint}")
        return {}


@hookimpl(optionalhook=True)
def mflux_add_options(parser: ArgumentParser, pipelines: list[type], rejected: MutableMapping[str, str]) -> None:
    group = parser.add_argument_group(f"TeaCache (mflux-teacache-plugin {version('mflux-teacache-plugin')})")
    group.add_argument(
        "--teacache",
        nargs="?",
        const=settings.AUTO,
        default=None,
        type=settings.threshold,
        metavar="VALUE",
        help=_HELP,
    )
    group.add_argument(
        "--teacache-coefficients",
        type=Path,
        default=None,
        metavar="PATH",
        help="A coefficient file, or a folder of them, that goes before all others; implies --teacache.",
    )
    adapters = apply.registry()
    if pipelines and not any(adapters.serving(pipeline) for pipeline in pipelines):
        reason = next(filter(None, map(adapters.refusal, pipelines)), "this model is not supported yet")
        rejected["--teacache"] = f"TeaCache: {reason}; the command exits with an error when this is set."
        rejected["--teacache-coefficients"] = rejected["--teacache"]


@hookimpl(optionalhook=True)
def mflux_options_parsed(parser: ArgumentParser, args: Namespace, command: str, pipelines: list[type]) -> None:
    args.teacache_request = None
    try:
        wanted = settings.resolve(args, os.environ)
    except TeaCacheError as error:
        refuse(parser, error)
    if wanted is None:
        return
    try:
        _check_command(args, command, pipelines)
    except TeaCacheError as error:
        return impossible(wanted, parser, error)
    try:
        args.teacache_request = Request(wanted, apply.catalog(wanted.coefficients), parser)
    except TeaCacheError as error:
        refuse(parser, error)  # a broken file of the user's is an error, whoever asked


@hookimpl(optionalhook=True)
def mflux_model_loading(pipeline: type, model_config: Any | None, source: str | None, args: Namespace | None) -> None:
    demo_model.prepare(model_config)
    request: Request | None = getattr(args, "teacache_request", None)
    if request is None or model_config is None:
        return
    try:
        _match(pipeline, model_config, source, request.wanted, request.files)
    except TeaCacheError as error:
        impossible(request.wanted, request.parser, error)
        args.teacache_request = None  # type: ignore[union-attr]


@hookimpl(optionalhook=True)
def mflux_model_loaded(model: Any, source: str | None, args: Namespace | None) -> None:
    if args is None:
        request = _ambient()
    else:
        request = getattr(args, "teacache_request", None)
    if request is None:
        return
    wanted, files = request.wanted, request.files
    try:
        match = _match(type(model), model.model_config, source, wanted, files)
        handle = apply.apply_teacache(model, threshold=wanted.threshold, variant=match.variant)
    except TeaCacheError as error:
        return impossible(request.wanted, request.parser, error)
    if wanted.coefficients is not None:  # absolute: -C may replay it from another folder
        handle.coefficients = str(wanted.coefficients.expanduser().absolute())
    _notes(match, model.model_config, source, wanted)


@hookimpl(optionalhook=True)
def mflux_generation_end(model: Any, image: Any | None) -> None:
    handle = apply.handle_of(model)
    if handle is not None and image is not None:
        _say(report.summary(handle.stats.last, handle.threshold, handle.variant))


def _ambient() -> Request | None:
    """The environment's wish for a model built in Python; what cannot be done is one warning."""
    try:
        wanted = settings.resolve(None, os.environ)
        return None if wanted is None else Request(wanted, apply.catalog(), ArgumentParser())
    except TeaCacheError as error:
        _say_switched_off(error)
        return None


def _check_command(args: Namespace, command: str, pipelines: list[type]) -> None:
    """Raise UnsupportedModelError or ConflictError for what can be told before the model is known."""
    adapters = apply.registry()
    for pipeline in pipelines:
        if (reason := adapters.refusal(pipeline)) is not None:
            raise UnsupportedModelError(f"{command} cannot skip steps", cause=reason, hint="run it without --teacache")
    if not any(adapters.serving(pipeline) for pipeline in pipelines):
        supported = ", ".join(sorted(name.partition(":")[2] for name in adapters.pipelines()))
        raise UnsupportedModelError(
            f"{command} is not supported yet",
            cause=f"there is no adapter for {', '.join(pipeline.__name__ for pipeline in pipelines)}",
            hint=f"run it without --teacache; supported are the commands that build one of {supported}",
        )
    if getattr(args, "step_cache_ratio", None) is not None or getattr(args, "use_step_cache", False):
        raise ConflictError("mflux's own step cache is asked for too", hint="use either --teacache or mflux's option")


def _match(pipeline: type, model_config: Any, source: str | None, wanted: Settings, files: Catalog) -> Match:
    """The recorded run's variant under -C, otherwise the one that fits the model. Refuses what cannot be applied."""
    if wanted.variant is not None:
        match = apply.by_id(files, wanted.variant)
    else:
        match = apply.choose_variant(pipeline, model_config, source, files)
    apply.adapter_for(pipeline, match.variant)
    apply.gate_for(match.variant)
    return match


def _notes(match: Match, model_config: Any, source: str | None, wanted: Settings) -> None:
    """What is worth a line before the run."""
    variant = match.variant
    if wanted.numbers is not None and wanted.numbers != variant.digest:
        _say(f"the numbers of {variant.id} changed since {wanted.origin} was recorded; the image may differ")
    if not match.exact:
        taken = "" if source is None else f" (mflux takes it for {model_config.base_model or model_config.model_name})"
        _say(
            f"{source or model_config.model_name}{taken} is not what {variant.id} was calibrated for; "
            "look at the pictures before you trust the threshold"
        )
    if variant.distilled:
        _say(f"{variant.id} is distilled: its few steps are too large to skip any, so expect no gain")


def _say_switched_off(error: TeaCacheError) -> None:
    cause = f" ({'; '.join(error.cause.splitlines())})" if error.cause else ""
    _say(f"switched off for this run: {error.error}{cause}")


def _say(text: str) -> None:
    print(f"TeaCache: {text}", file=sys.stderr)
