"""What was asked for: the options, a `-C` file, the environment, in this order of precedence."""

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.errors import ConflictError, SettingsError
from mflux_teacache_plugin.methods import AUTO, OFF
from mflux_teacache_plugin.methods.method import Method, to_share

#: The ambient switch: what `--teacache` takes.
ENVIRONMENT = "MFLUX_TEACACHE"

#: The options that name a method; one at a time.
METHOD_OPTIONS = ("--teacache", *(f"--{name}" for name in methods.OPTIONS))

#: Every option of ours.
OPTIONS = (*METHOD_OPTIONS, "--teacache-forecast", "--teacache-coefficients")

Value = Method | Literal["auto", "off"]

# In an image's metadata and so in the sidecar that -C reads; mflux wants them flat.
METHOD_KEY = "teacache_method"
VARIANT_KEY = "teacache_variant"
NUMBERS_KEY = "teacache_numbers"
COEFFICIENTS_KEY = "teacache_coefficients"
CFG_END_KEY = "cfg_end"  # mflux's own, which it writes where it has the option itself


@dataclass(frozen=True)
class Settings:
    """One request for step caching."""

    method: Method | None  #: None for what the model's variant recommends
    origin: str  #: where it was asked for, in words for a message
    #: By an option or a -C file, so that what cannot be done is an error and not a warning. An option that only says how
    #: (forecast, cfg_end) orders nothing beside the environment, which is a wish.
    explicit: bool
    forecast: str | None = None  #: instead of the method's own
    coefficients: Path | None = None  #: a coefficient file or folder that wins over all others
    variant: str | None = None  #: the id that a recorded run used, "" if none; None to match the model
    numbers: str | None = None  #: the digest of that variant's numbers at the time
    cfg_end: float | None = None  #: the share of the steps that run with guidance, instead of the method's own


def resolve(
    args: Namespace | None, environ: Mapping[str, str], parse: Callable[[str], Value] = methods.parse
) -> Settings | None:
    """The request that counts, or None for none or `off`. `args` is None outside mflux's commands.

    ConflictError: the options name two methods. SettingsError: names the sidecar's key, or the environment variable.
    """
    request = _of_method(args, environ, parse)
    cfg_end = getattr(args, "teacache_cfg_end", None)
    if cfg_end is None:
        return request
    if request is None:
        return None if cfg_end == 1 else Settings(methods.CUTS, "--cfg-end", True, cfg_end=cfg_end)
    return replace(request, cfg_end=cfg_end)  # what the environment asks for is still no option


def _of_method(args: Namespace | None, environ: Mapping[str, str], parse: Callable[[str], Value]) -> Settings | None:
    coefficients = getattr(args, "teacache_coefficients", None)
    forecast = getattr(args, "teacache_forecast", None)
    given = {option: getattr(args, option[2:], None) for option in METHOD_OPTIONS}
    asked: dict[str, Value] = {option: value for option, value in given.items() if value is not None}
    if len(asked) > 1:
        first, second = list(asked)[:2]
        raise ConflictError(f"{first} and {second} are two methods", hint="ask for one of them")
    if asked:
        ((option, value),) = asked.items()
        request = _settings(value, option, coefficients=coefficients)
    elif coefficients is not None:  # they ask for the cache too
        request = _settings(AUTO, "--teacache-coefficients", coefficients=coefficients)
    else:
        recorded = _from_sidecar(args, parse)
        request = _from_environment(environ, parse) if recorded is None else recorded or None
        if request is None and forecast is not None:
            request = _settings(AUTO, "--teacache-forecast")
    if request is None or forecast is None:
        return request
    return replace(request, method=request.method and request.method.with_forecast(forecast), forecast=forecast)


def _from_environment(environ: Mapping[str, str], parse: Callable[[str], Value]) -> Settings | None:
    text = environ.get(ENVIRONMENT)
    if not text:
        return None
    try:
        return _settings(parse(text), ENVIRONMENT, explicit=False)
    except ArgumentTypeError as error:
        raise SettingsError(error=f"{ENVIRONMENT}: {error}", hint=f"set {ENVIRONMENT}=auto, or unset it") from None


def _settings(value: Value, origin: str, explicit: bool = True, **further: Any) -> Settings | None:
    return None if value == OFF else Settings(None if isinstance(value, str) else value, origin, explicit, **further)


def _from_sidecar(args: Namespace | None, parse: Callable[[str], Value]) -> Settings | Literal[False] | None:
    """What a `-C` file records: False for a picture that was made plain; None without a file, or if it does not say."""
    sidecar = getattr(args, "config_from_metadata", None)
    if not sidecar:
        return None
    path = Path(sidecar)
    recorded: dict[str, Any] = json.loads(path.read_text())  # mflux has read it already, so it is JSON
    keys = (METHOD_KEY, VARIANT_KEY, NUMBERS_KEY, COEFFICIENTS_KEY)
    for key in keys:
        text = recorded.get(key)
        if text is not None and not isinstance(text, str):
            raise SettingsError(f"{path}: {key}: {text!r} is not a string", hint=f"remove {key} from the file")
    method, variant, numbers, coefficients = map(recorded.get, keys)
    if method is None:
        return None
    key, option = METHOD_KEY, "--teacache"
    try:
        value = parse(method)
        if value == OFF:
            return False
        key, option = CFG_END_KEY, "--cfg-end"
        cfg_end = recorded.get(key) if hasattr(args, "teacache_cfg_end") else None  # else it is mflux's own
        cfg_end = None if cfg_end is None else to_share(str(cfg_end))
    except ArgumentTypeError as error:
        hint = f"correct the file, or pass {option} to override it"
        raise SettingsError(f"{path}: {key}: {error}", hint=hint) from None
    own = Path(coefficients) if coefficients else None
    return _settings(value, f"-C {path}", variant=variant, numbers=numbers, coefficients=own, cfg_end=cfg_end)
