"""TeaCache as a plugin of the host: what the entry point `mflux` -> `teacache` names."""

import os
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from mflux_teacache_plugin import apply, choose, hooks, methods, settings, summary
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError, UnsupportedModelError
from mflux_teacache_plugin.host import faults, versions
from mflux_teacache_plugin.host.specs import hookimpl
from mflux_teacache_plugin.methods.method import Method, to_share
from mflux_teacache_plugin.settings import OPTIONS, Settings
from mflux_teacache_plugin.variants import Catalog

_HELP = (
    "Skip the denoising steps that barely change the picture. VALUE is a speed-up such as 1.5x, with as many steps computed "
    "as give it; or TeaCache's threshold, above 0 and at most 2: higher skips more, steps are chosen while the image is "
    "made, 0.2 is a good start for FLUX.1. Without a value, or with 'auto', what is recommended for the model; 'off' overrides "
    "MFLUX_TEACACHE and a -C file. mflux's own --teacache-ratio skips a fixed share of the steps, on some models."
)
_FORECAST_HELP = (
    "What stands in for a skipped step: the last computed one, or what the last two or three lead to. "
    "Default: linear for schedules, unless the model's file says otherwise; reuse for the others."
)
_COEFFICIENTS_HELP = "A coefficient file, or a folder of them, that goes before all others; implies --teacache."
_CFG_END_HELP = (
    "Share of the steps, above 0, that run with guidance; the others run on the prompt alone, which takes half as long. "
    "Works with and without --teacache. Only where guidance makes two predictions; FIBO 2 and Ideogram 4 have mflux's own."
)


@dataclass(frozen=True)
class Request:
    """What was asked for, with the coefficient files and the parser that refuses: `args.teacache_request`."""

    wanted: Settings
    files: Catalog
    parser: ArgumentParser

    def with_method(self, method: Method) -> "Request":
        """The same with a method, whatever was asked for."""
        return replace(self, wanted=replace(self.wanted, method=method))

    def choose(self, pipeline: type, model_config: Any, source: str | None, args: Namespace | None) -> Choice:
        """What the model will run with. Raises what `choose.choose` does."""
        choice = choose.choose(pipeline, model_config, source, self.files, self.wanted, args)
        choose.check_steps(choice.method, choice.adapter, pipeline, args)
        return choice


def impossible(wanted: Settings, parser: ArgumentParser, error: TeaCacheError) -> None:
    """Refuse with exit code 2 what was asked for explicitly; warn where the environment asks for everything."""
    if wanted.explicit:
        refuse(parser, error)
    summary.say(f"switched off for this run: {error.in_line}")


def refuse(parser: ArgumentParser, error: TeaCacheError) -> NoReturn:
    """A usage error: the message on stderr, exit code 2."""
    if faults.debugging():
        traceback.print_exception(error)
    parser.exit(2, f"{error}\n")


@hookimpl(optionalhook=True)
def mflux_hookspecs() -> Any:
    return hooks


@hookimpl(optionalhook=True)
def mflux_pipelines() -> Iterable[str]:
    return choose.registry().pipelines()


@hookimpl(optionalhook=True)
def mflux_add_options(parser: ArgumentParser, pipelines: list[type], rejected: MutableMapping[str, str]) -> None:
    add = parser.add_argument_group(f"TeaCache (mflux-teacache-plugin {version('mflux-teacache-plugin')})").add_argument
    known = choose.parsers()

    def value_of(name: str, prefix: str) -> Callable[[str], settings.Value]:
        def value(text: str) -> settings.Value:
            return methods.parse(prefix + text, known)

        value.__name__ = name  # argparse names it in errors
        return value

    method = value_of("method", "")
    add("--teacache", nargs="?", const=settings.AUTO, type=method, metavar="VALUE", help=_HELP)
    for name, (metavar, what) in methods.OPTIONS.items():
        add(f"--{name}", type=value_of(name, f"{name}:"), metavar=metavar, help=what)
    add("--teacache-forecast", choices=list(ORDERS), help=_FORECAST_HELP)
    add("--teacache-coefficients", type=Path, metavar="PATH", help=_COEFFICIENTS_HELP)
    if not pipelines or any(choose.why_no_cfg_end(pipeline) is None for pipeline in pipelines):
        add("--cfg-end", dest="teacache_cfg_end", type=to_share, metavar="SHARE", help=_CFG_END_HELP)
    if pipelines and (reason := _why_not(pipelines)) is not None:
        for option in OPTIONS:
            rejected[option] = f"TeaCache: {reason}; the command exits with an error when this is set."


@hookimpl(optionalhook=True)
def mflux_options_parsed(parser: ArgumentParser, args: Namespace, command: str, pipelines: list[type]) -> None:
    args.teacache_request = None
    try:
        wanted = settings.resolve(args, os.environ, choose.parse)
    except TeaCacheError as error:
        refuse(parser, error)
    if wanted is None:
        return
    try:
        _check_command(args, command, pipelines, wanted)
    except TeaCacheError as error:
        return impossible(wanted, parser, error)
    _say_if_untested()
    try:
        args.teacache_request = Request(wanted, choose.catalog(wanted.coefficients), parser)
    except TeaCacheError as error:
        refuse(parser, error)  # a broken file of the user's is an error, whoever asked


@hookimpl(optionalhook=True)
def mflux_model_loading(pipeline: type, model_config: Any | None, source: str | None, args: Namespace | None) -> None:
    request: Request | None = getattr(args, "teacache_request", None)
    if request is None or model_config is None or args is None:
        return
    args.teacache_request = None  # nor is it asked again if something fails here
    if (choice := _choose(request, pipeline, model_config, source, args)) is not None:
        # with a method that skips nothing the reason was said already
        args.teacache_request = request if choice.method.skips else request.with_method(choice.method)


@hookimpl(optionalhook=True)
def mflux_model_loaded(model: Any, source: str | None, args: Namespace | None) -> None:
    request: Request | None = _ambient() if args is None else getattr(args, "teacache_request", None)
    if request is None or (choice := _choose(request, type(model), model.model_config, source, args)) is None:
        return
    try:
        handle = apply.apply_choice(model, choice)
    except TeaCacheError as error:
        return impossible(request.wanted, request.parser, error)
    coefficients = request.wanted.coefficients
    if coefficients is not None:  # absolute: -C may replay it from another folder
        handle.coefficients = str(coefficients.expanduser().absolute())
    _notes(choice, model.model_config, source, request.wanted)


@hookimpl(optionalhook=True)
def mflux_generation_end(model: Any, image: Any | None) -> None:
    if image is None:
        return
    handle = apply.handle_of(model)
    if handle is None:  # for -C: this picture stays plain, whatever the environment asks for then
        keys = {settings.METHOD_KEY: settings.OFF}
        image.generation_parameters = {**(image.generation_parameters or {}), **keys}
    elif handle.finished is not None:
        summary.say(summary.summary(handle.finished, handle.method, handle.variant))


@cache
def _say_if_untested() -> None:
    """Once in a process; what does not work with this mflux is then named by itself."""
    found = versions.installed()
    if found is not None and not versions.is_tested(found):
        tested = f"the tested versions ({versions.in_words()})"
        summary.say(f"mflux {found} is not among {tested}; see mflux-teacache doctor")


def _choose(request: Request, *model_and_options: Any) -> Choice | None:
    """What the model will run with; None for plain mflux, which one line explains. Arguments of `Request.choose`."""
    try:
        return request.choose(*model_and_options)
    except TeaCacheError as error:
        recommended = request.wanted.method is None
        if isinstance(error, SettingsError) and (recommended or not request.wanted.explicit):
            cuts = request.with_method(methods.CUTS).choose(*model_and_options)
            second = cuts.adapter.second_call
            if cuts.method.cfg_end is not None or (second is not None and second.idle is not None):
                summary.say(f"no step is skipped: {error.error}")
                return cuts
            if recommended:
                summary.say(f"nothing to skip, this run is plain mflux: {error.error}")
                return None
        impossible(request.wanted, request.parser, error)
        return None


def _ambient() -> Request | None:
    """What the environment asks for, for a model built in Python; what cannot be done is one warning."""
    try:
        wanted = settings.resolve(None, os.environ, choose.parse)
        return None if wanted is None else Request(wanted, choose.catalog(), ArgumentParser())
    except TeaCacheError as error:
        summary.say(f"switched off for this run: {error.in_line}")
        return None


def _check_command(args: Namespace, command: str, pipelines: list[type], wanted: Settings) -> None:
    """Raise UnsupportedModelError or ConflictError for what is known before the model is."""
    if (reason := _why_not(pipelines)) is not None:
        raise UnsupportedModelError(f"{command} cannot skip steps", cause=reason, hint="run it without --teacache")
    for pipeline in pipelines:
        for adapter in choose.serving_adapters(pipeline).values():
            if wanted.method is None or wanted.method.skips:
                choose.check_run(adapter, pipeline, None, vars(args))
            if wanted.method is not None and wanted.explicit:
                choose.check_steps(wanted.method, adapter, pipeline, args)


def _why_not(pipelines: list[type]) -> str | None:
    """Why no pipeline of a command can skip steps, or None."""
    try:
        for pipeline in pipelines:
            choose.serving_adapters(pipeline)
    except UnsupportedModelError as error:
        return error.cause
    return None


def _notes(choice: Choice, model_config: Any, source: str | None, wanted: Settings) -> None:
    """What is worth a line before the run."""
    name = source or model_config.model_name
    for line in filter(None, (choice.problem, *choice.method.notes(choice.variant, name))):
        summary.say(line)
    if choice.match is None:
        return
    variant = choice.match.variant
    if wanted.numbers is not None and wanted.numbers != variant.digest:
        summary.say(f"the numbers of {variant.id} changed since {wanted.origin} was recorded; the image may differ")
    if not choice.match.exact and choice.method.uses_numbers:
        taken = "" if source is None else f" (mflux takes it for {model_config.base_model or model_config.model_name})"
        other = f"{name}{taken} is not what {variant.id} was calibrated for"
        summary.say(f"{other}; look at the pictures before you trust the setting")
    if variant.distilled:
        summary.say(f"{variant.id} is distilled: its few steps are too large to skip any, so expect no gain")
