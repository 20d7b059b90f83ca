"""What was asked for: the option, a `-C` file, the environment, in this order of precedence."""

import json
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mflux_teacache_plugin.errors import SettingsError

#: The ambient switch: what `--teacache` takes.
ENVIRONMENT = "MFLUX_TEACACHE"

#: Thresholds lie in (0, MAX_THRESHOLD]. Beyond it nothing but the first and last step would be computed.
MAX_THRESHOLD = 2.0

AUTO, OFF = "auto", "off"
Value = float | Literal["auto", "off"]

# In an image's metadata and so in the sidecar that -C reads; mflux wants them flat.
THRESHOLD_KEY = "teacache_threshold"
VARIANT_KEY = "teacache_variant"
NUMBERS_KEY = "teacache_numbers"
COEFFICIENTS_KEY = "teacache_coefficients"


@dataclass(frozen=True)
class Settings:
    """One request for TeaCache.

    Attributes:
        threshold: None for the variant's own.
        origin: where it was asked for, in words for a message.
        explicit: asked for in so many words, so that what cannot be done is an error and not a warning.
        coefficients: a coefficient file or folder that goes before all others.
        variant: the id that a recorded run used; None to match the model.
        numbers: the digest of that variant's numbers at the time.
    """

    threshold: float | None
    origin: str
    explicit: bool
    coefficients: Path | None = None
    variant: str | None = None
    numbers: str | None = None


def threshold(text: str) -> Value:
    """`--teacache`'s value: a number in (0, 2], `auto` or `off`. Raises ArgumentTypeError, so argparse can name the option."""
    if text in (AUTO, OFF):
        return text  # type: ignore[return-value]
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is neither a number nor 'auto' nor 'off'; try 0.2") from None
    if not (math.isfinite(value) and 0 < value <= MAX_THRESHOLD):
        mend = "use 'off' to switch it off" if value == 0 else "try 0.2"
        raise ArgumentTypeError(f"'{text}' is not above 0 and at most {MAX_THRESHOLD:g}; {mend}")
    return value


def resolve(args: Namespace | None, environ: Mapping[str, str]) -> Settings | None:
    """The request that counts, or None for none or `off`. `args` is None outside mflux's commands.

    Raises:
        SettingsError: naming the sidecar's key, or the environment variable, and the mend.
    """
    coefficients = getattr(args, "teacache_coefficients", None)
    asked = getattr(args, "teacache", None)
    if asked is None and coefficients is not None:
        asked = AUTO  # naming a coefficient file asks for the cache
    if asked is not None:
        return _settings(asked, "--teacache", True, coefficients)
    sidecar = getattr(args, "config_from_metadata", None)
    if sidecar and (settings := _from_sidecar(Path(sidecar))) is not None:
        return settings
    text = environ.get(ENVIRONMENT)
    if not text:
        return None
    try:
        return _settings(threshold(text), ENVIRONMENT, False, None)
    except ArgumentTypeError as error:
        raise SettingsError(error=f"{ENVIRONMENT}: {error}", hint=f"set {ENVIRONMENT}=auto, or unset it") from None


def _settings(value: Value, origin: str, explicit: bool, coefficients: Path | None) -> Settings | None:
    if value == OFF:
        return None
    return Settings(None if isinstance(value, str) else value, origin, explicit, coefficients)


def _from_sidecar(path: Path) -> Settings | None:
    recorded: dict[str, Any] = json.loads(path.read_text())  # mflux has read it already, so it is JSON
    if recorded.get(THRESHOLD_KEY) is None:
        return None
    try:
        value = threshold(str(recorded[THRESHOLD_KEY]))
    except ArgumentTypeError as error:
        raise SettingsError(
            error=f"{path}: {THRESHOLD_KEY}: {error}", hint="correct the file, or pass --teacache to go over it"
        ) from None
    texts = {}
    for key in (VARIANT_KEY, NUMBERS_KEY, COEFFICIENTS_KEY):
        text = recorded.get(key)
        if text is not None and not isinstance(text, str):
            raise SettingsError(error=f"{path}: {key}: {text!r} is not a string", hint=f"remove {key} from the file")
        texts[key] = text
    coefficients = texts[COEFFICIENTS_KEY]
    settings = _settings(value, f"-C {path}", True, Path(coefficients) if coefficients else None)
    if settings is None:
        return None
    return Settings(**{**vars(settings), "variant": texts[VARIANT_KEY], "numbers": texts[NUMBERS_KEY]})
