"""What a method is: one rule with its setting, from its text to the line after the picture.

A new method is one file like those beside this one, and one line in `methods.BUILT_IN`. Plugins bring theirs through the
hook `mflux_methods`.
"""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

import mlx.core as mx

from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Facts, Gate, Setup
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.caching.step_cache import Cache, PredictionCache, StepCache
from mflux_teacache_plugin.variants import Variant

#: Makes a method of its setting, the text behind `NAME:`; raises ArgumentTypeError.
Parser = Callable[[str], "Method"]

#: Thresholds lie in (0, MAX_THRESHOLD]. Beyond it nothing but the first and last step would be computed.
MAX_THRESHOLD = 2.0


@dataclass(frozen=True)
class Method:
    """A method with its setting. Subclasses are frozen dataclasses; `str()` gives the text that parses to the same."""

    #: What stands in for a skipped step, a key of `ORDERS`; the method's usual one if it is left out.
    forecast: str = field(default="", kw_only=True)
    #: The shares of the run between which steps may be skipped; whatever lies outside is computed.
    window: tuple[float, float] = field(default=(0.0, 1.0), kw_only=True)
    #: The share of the steps, below 1, that run with guidance; None for all of them.
    cfg_end: float | None = field(default=None, kw_only=True)

    #: Whether it skips steps, so that a run has to be fit for that.
    skips: ClassVar[bool] = True
    #: The forecast that is meant where none is named.
    usual_forecast: ClassVar[str] = "reuse"
    #: Whether it looks inside the transformer, so that a skipped step is made from the blocks' residuals; else it is made from
    #: what the step's calls return.
    needs_taps: ClassVar[bool] = True
    #: Why no step was skipped, where that follows from the setting.
    nothing: ClassVar[str] = ""
    #: Whether only a variant with a polynomial will do.
    needs_coefficients: ClassVar[bool] = False
    #: Whether numbers that were made for a relative of the model matter to it.
    uses_numbers: ClassVar[bool] = True

    @property
    def setting(self) -> str:
        """The text, without the forecast."""
        raise NotImplementedError

    def gate(self, setup: Setup) -> Gate:
        """A gate for one generation. Not needed by a method with a `cache` of its own."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        if not self.forecast:
            object.__setattr__(self, "forecast", self.usual_forecast)

    def __str__(self) -> str:
        window = "" if self.window == (0.0, 1.0) else "@" + "-".join(plain(share) for share in self.window)
        forecast = "" if self.forecast == self.usual_forecast else f"+{self.forecast}"
        cfg_end = "" if self.cfg_end is None else f",cfg_end={plain(self.cfg_end)}"
        return f"{self.setting}{window}{forecast}{cfg_end}"

    @property
    def order(self) -> int:
        """Of the forecast."""
        return ORDERS[self.forecast]

    @property
    def label(self) -> str:
        """Its name in the line after the picture."""
        return str(self)

    def with_forecast(self, forecast: str) -> Self:
        """The same with another forecast. ArgumentTypeError if there is none of that name."""
        if forecast not in ORDERS:
            raise ArgumentTypeError(f"'{forecast}' is no forecast; there are {', '.join(ORDERS)}")
        return replace(self, forecast=forecast)

    def with_cfg_end(self, share: float) -> Self:
        """The same with guidance on this share of the steps. ArgumentTypeError if it is no share."""
        share = to_share(str(share))
        return replace(self, cfg_end=None if share == 1 else share)

    def with_window(self, text: str) -> Self:
        """The same with a window such as `0.1-0.9`. ArgumentTypeError, with the form, for any other text."""
        share = r"([01]?\.\d{1,3}|[01]\.|[01]?\d{1,3})"
        found = re.fullmatch(f"{share}-{share}", text.strip())
        start, end = map(float, found.groups()) if found else (1.0, 0.0)
        if not 0 <= start < end <= 1:
            raise ArgumentTypeError(f"'@{text}' is no part of a run; write shares between 0 and 1, such as @0.1-0.9")
        return replace(self, window=(start, end))

    def check(self, variant: Variant | None, blocks: Mapping[str, int] | None = None) -> None:
        """Raise SettingsError, with the fix, if it cannot run on these numbers and, once the model is loaded, its blocks."""

    def check_steps(self, steps: int | None) -> None:
        """Raise SettingsError, with the fix, if it makes no sense with so many steps; None if they are not known yet."""

    def as_recommended(self, variant: Variant | None) -> Self:
        """The same where nobody named it, and it is only what is recommended for a model."""
        return self

    def notes(self, variant: Variant | None, name: str) -> Sequence[str]:
        """Lines to say before the run on the model of that name."""
        return ()

    def transform(self, signal: mx.array, sigma: float, facts: Facts) -> mx.array:
        """What of the signal, (batch, tokens, width), is compared between neighbouring steps."""
        return signal

    def cache(self, setup: Setup) -> Cache:
        """The cache of one generation."""
        if not self.needs_taps:
            return PredictionCache(self.gate(setup), setup, self.order)
        return StepCache(self.gate(setup), setup, self.order, partial(self.transform, facts=setup.facts))

    def recorded(self, generation: Generation) -> str:
        """The text that repeats a generation, for its picture's metadata."""
        return str(self)

    def details(self, generation: Generation) -> str:
        """What the line after the picture adds when steps were skipped; may be empty."""
        return ""

    def why_nothing(self, generation: Generation, variant: Variant | None) -> str:
        """Why nothing was skipped, and what would help."""
        if self.nothing:
            return self.nothing
        if not generation.changes:
            return "no step's signal could be compared with the step before"
        if variant is not None and variant.distilled:
            return "a distilled model takes few, large steps; use a base model to gain from skipping"
        estimates = [each.accumulated for each in generation.decisions if each.accumulated]  # 0: nothing was estimated
        if not estimates:
            return f"the smallest change between two steps was {min(generation.changes):.3g}"
        return f"the smallest estimated change was {min(estimates):.3g}; a threshold above that skips"


def number(text: str, highest: float = MAX_THRESHOLD, example: str = "0.2") -> float:
    """A number above 0 and at most `highest`; ArgumentTypeError, with the fix, for any other text."""
    value = to_float(text)
    if not 0 < value <= highest:
        fix = "use 'off' to switch it off" if value == 0 else f"try {example}"
        raise ArgumentTypeError(f"'{text}' is not above 0 and at most {highest:g}; {fix}")
    return value


def to_share(text: str) -> float:
    """A share of the steps, for `cfg_end`; ArgumentTypeError, with the fix, for any other text."""
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise ArgumentTypeError(f"'{text}' is no share of the steps, above 0 and at most 1; try 0.6")


def to_float(text: str) -> float:
    """A number; ArgumentTypeError, with the fix, for any other text."""
    try:
        return float(text)
    except ValueError:
        fix = "try 0.2 or 1.5x"
        raise ArgumentTypeError(f"'{text}' is neither a number nor a speed-up nor 'auto' nor 'off'; {fix}") from None


def keyed(
    setting: str, others: Mapping[str, str] = MappingProxyType({}), **readers: Callable[[str], Any]
) -> tuple[str, dict[str, Any]]:
    """A text such as `0.2,K=3`: what stands first without a key, and the values of the keys given.

    `others` are further names of keys, in lower case. ArgumentTypeError for any other key, and for one that is given twice.
    """
    parts = [part.strip() for part in setting.split(",")]
    text = "" if "=" in parts[0] else parts.pop(0)
    names, given = {name.lower(): name for name in readers} | dict(others), {}
    for part in parts:
        key, equals, value = map(str.strip, part.partition("="))
        name = names.get(key.lower())
        if not equals or name is None:
            raise ArgumentTypeError(f"'{part}' is none of {', '.join(f'{name}=' for name in readers)}")
        if name in given:
            raise ArgumentTypeError(f"{name} is given twice")
        given[name] = readers[name](value)
    return text, given


def whole(name: str, text: str, least: int) -> int:
    """A whole number from `least` on; ArgumentTypeError, with the setting's name, for any other text."""
    if not text.removeprefix("-").isdecimal() or len(text) > 9 or int(text) < least:
        raise ArgumentTypeError(f"{name}={text} is not a whole number from {least} on")
    return int(text)


def finite(name: str, text: str, highest: float = math.inf) -> float:
    """A finite number from 0 on; ArgumentTypeError, with the setting's name, for any other text."""
    value = to_float(text)
    if not (math.isfinite(value) and 0 <= value <= highest):
        raise ArgumentTypeError(
            f"{name}={text} is not a number from 0 " + (f"to {highest:g}" if highest < math.inf else "on")
        )
    return value


def plain(value: float) -> str:
    """A number or a truth value so that it reads back as the same."""
    return repr(value).lower().removesuffix(".0")
