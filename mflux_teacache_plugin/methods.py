"""Methods by name: one text names a method with its setting, on the command line, in the environment, in a coefficient file
and in a picture's metadata.

    0.2                     TeaCache, with this threshold
    1.5x                    placed steps: as many as give this speed-up
    dualcache:aggressive    DualCache; also dualcache:F=8,B=0,rdt=0.08
    seacache:0.3            SeaCache
    2x+reuse                any of them, with another forecast: reuse, linear or quadratic

A method makes the gate of one generation, and says what a skipped step's stand-in is drawn from. Plugins contribute more of
them through `mflux_methods`, as the built-in ones are.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import mlx.core as mx

from mflux_teacache_plugin.caching import placement
from mflux_teacache_plugin.caching.dualcache import PRESETS, DualCacheSettings
from mflux_teacache_plugin.caching.forecast import ORDERS
from mflux_teacache_plugin.caching.gate import Gate, Run
from mflux_teacache_plugin.caching.seacache import sea_filter
from mflux_teacache_plugin.caching.teacache import TeaCacheGate
from mflux_teacache_plugin.errors import SettingsError

if TYPE_CHECKING:
    from mflux_teacache_plugin.variants import Variant

#: Thresholds lie in (0, MAX_THRESHOLD]. Beyond it nothing but the first and last step would be computed.
MAX_THRESHOLD = 2.0

#: Speed-ups lie in (1, MAX_SPEEDUP].
MAX_SPEEDUP = 10.0

#: With fewer steps than this, as distilled models take, each of them changes the whole picture.
LEAST_STEPS = 6

AUTO: Literal["auto"] = "auto"
OFF: Literal["off"] = "off"

#: What a skipped step is made from: what the step's calls return, the blocks' residuals, or residuals within each list.
Keeps = Literal["prediction", "residual", "blocks"]


class Method(Protocol):
    """A method with its setting; `str()` gives the text that parses to it."""

    @property
    def forecast(self) -> str:
        """What stands in for a skipped step: a key of `forecast.ORDERS`."""

    @property
    def keeps(self) -> Keeps:
        """What that is drawn from."""

    def check(self, variant: "Variant | None") -> None:
        """Raise SettingsError, with the mend, if it cannot run on a variant, or, None, on a model that has none."""

    def check_steps(self, steps: int | None) -> None:
        """Raise SettingsError, with the mend, if it makes no sense with so many steps; None if they are not known yet."""

    def gate(self, variant: "Variant | None", run: Run) -> Gate:
        """A gate for one generation. Not asked for where `keeps` is "blocks"."""

    def look(self, signal: mx.array, sigma: float, run: Run) -> mx.array:
        """What of the signal is compared between neighbouring steps."""


#: Makes a method of its setting, the text behind `NAME:`; raises ArgumentTypeError.
Parser = Callable[[str], Method]


class _Usual:
    """What most methods say: any variant and any number of steps will do, and the signal is compared as it is."""

    def check(self, variant: "Variant | None") -> None:
        pass

    def check_steps(self, steps: int | None) -> None:
        pass

    def look(self, signal: mx.array, sigma: float, run: Run) -> mx.array:
        return signal


@dataclass(frozen=True)
class TeaCache(_Usual):
    """Skip until the change that the variant's polynomial estimates adds up to the threshold."""

    threshold: float
    forecast: str = "reuse"
    keeps: Keeps = "residual"

    def __str__(self) -> str:
        return _text(_plain(self.threshold), self.forecast, "reuse")

    def check(self, variant: "Variant | None") -> None:
        if variant is None or variant.polynomial is None:
            raise SettingsError(
                f"there are no coefficients for a threshold on {'this model' if variant is None else variant.id}",
                hint="ask for a speed-up instead, such as 1.5x, or fit them: mflux-teacache calibrate -- COMMAND",
            )

    def gate(self, variant: "Variant | None", run: Run) -> Gate:
        if variant is None or variant.polynomial is None:
            raise SettingsError("TeaCache needs a variant with a polynomial")
        guard = (variant.guard.first, variant.guard.last)
        return TeaCacheGate(run.steps, self.threshold, variant.polynomial, variant.range, guard)


@dataclass(frozen=True)
class SeaCache(_Usual):
    """TeaCache's rule on a signal that has passed SeaCache's filter, whose change needs no polynomial."""

    threshold: float
    forecast: str = "reuse"
    keeps: Keeps = "residual"

    def __str__(self) -> str:
        return _text(f"seacache:{_plain(self.threshold)}", self.forecast, "reuse")

    def gate(self, variant: "Variant | None", run: Run) -> Gate:
        return TeaCacheGate(run.steps, self.threshold)

    def look(self, signal: mx.array, sigma: float, run: Run) -> mx.array:
        return sea_filter(signal, sigma, run.grid)


@dataclass(frozen=True)
class DualCache(_Usual):
    """Run the first blocks, and let their change decide about the others."""

    settings: DualCacheSettings
    preset: str | None = None
    forecast: str = "reuse"
    keeps: Keeps = "blocks"

    def __str__(self) -> str:
        setting = self.preset or ",".join(f"{key}={_plain(value)}" for key, value in self.settings.given().items())
        return _text(f"dualcache:{setting}", self.forecast, "reuse")

    def gate(self, variant: "Variant | None", run: Run) -> Gate:
        raise NotImplementedError("each list of blocks has a gate of its own")

    def fit(self, blocks: Mapping[str, int]) -> DualCacheSettings:
        """The settings for these lists of blocks. A preset takes at most all blocks but one of the shortest list.

        Raises:
            SettingsError: more blocks are to run than a list has.
        """
        shortest = min(blocks, key=lambda name: blocks[name])
        there = blocks[shortest]
        if self.preset is not None:
            return replace(self.settings, F=max(1, min(self.settings.F, there - 1)))
        for key, value, room in (("F", self.settings.F, there), ("B", self.settings.B, there - self.settings.F)):
            if value > room:
                raise SettingsError(
                    f"dualcache: {key}={value} is more than there is",
                    cause=f"{shortest} has {there} blocks" + (f", F={self.settings.F} of them first" * (key == "B")),
                    hint=f"take at most {key}={room}",
                )
        return self.settings


@dataclass(frozen=True)
class Placed(_Usual):
    """As many steps as give the speed-up, where the variant's profile wants them; evenly without one."""

    speedup: float
    forecast: str = "linear"
    keeps: Keeps = "prediction"

    def __str__(self) -> str:
        return _text(f"{_plain(self.speedup)}x", self.forecast, "linear")

    def check_steps(self, steps: int | None) -> None:
        least = ORDERS[self.forecast] + 2  # the points that a forecast is drawn through, and the last step
        enough = max(LEAST_STEPS, math.ceil(least * self.speedup - 1e-9))
        if steps is not None and steps < enough:
            raise SettingsError(
                f"{steps} steps at {self} cannot be met",
                cause=f"the first and the last step are always computed, {least} at least in all",
                hint=f"take at least {enough} --steps, or a smaller speed-up",
            )

    def gate(self, variant: "Variant | None", run: Run) -> Gate:
        self.check_steps(run.steps)
        return placement.PlacedGate(self.computed(variant, run))

    def computed(self, variant: "Variant | None", run: Run) -> tuple[int, ...]:
        """The steps to compute. SettingsError if the variant's profile does not reach over the run."""
        count = placement.budget(self.speedup, run.steps)
        order = ORDERS[self.forecast]
        # The first steps decide the layout: on the demo model it costs more to skip one of them than any profile says. So
        # the points that a forecast is drawn through are computed first, and one more.
        lead = min(order + 2, max(1, count // 4)) if order else 1
        changes = [1.0] * (run.steps - 1)
        if variant is None:
            return placement.place(changes, count, lead)
        lists = {
            len(published.computed): published.computed
            for published in variant.step_lists
            if published.steps == run.steps
        }
        if count in lists:
            return lists[count]
        profile = variant.profile
        if profile is not None:
            if not placement.covers(profile.sigma, run.sigmas):
                low, high = min(run.sigmas), max(run.sigmas)
                raise SettingsError(
                    f"the profile of {variant.id} does not cover this run",
                    cause=f"the run's σ go from {high:.3g} to {low:.3g}, "
                    f"the profile's from {profile.sigma[0]:.3g} to {profile.sigma[-1]:.3g}",
                    hint="calibrate with as many steps, or remove [profile] from the file",
                )
            changes = placement.expected_changes(profile.sigma, profile.change, run.sigmas)
        elif shorter := [computed for size, computed in lists.items() if size < count]:
            return placement.fill(max(shorter, key=len), count)
        return placement.place(changes, count, lead)


def _seacache(setting: str) -> Method:
    return SeaCache(_number(setting, MAX_THRESHOLD, "0.3"))


def _dualcache(setting: str) -> Method:
    if setting in PRESETS:
        return DualCache(PRESETS[setting], setting)
    if "=" not in setting:
        raise ArgumentTypeError(
            f"'{setting}' is neither a preset ({', '.join(PRESETS)}) nor of the form F=8,B=0,rdt=0.08"
        )
    values: dict[str, float | int | bool] = {}
    for pair in setting.split(","):
        key, _, text = pair.strip().partition("=")
        name = _ALIASES.get(key, key)
        if name not in DualCacheSettings.__dataclass_fields__:
            raise ArgumentTypeError(
                f"'{key}' is no setting of DualCache; there are {', '.join(DualCacheSettings.__dataclass_fields__)}"
            )
        if name in values:
            raise ArgumentTypeError(f"{name} is given twice")
        values[name] = _setting(name, text.strip())
    settings = DualCacheSettings(**values)  # type: ignore[arg-type]
    return DualCache(settings, next((name for name, preset in PRESETS.items() if preset == settings), None))


#: cache-dit's names of the settings, to ours.
_ALIASES = {
    "Fn_compute_blocks": "F",
    "Fn": "F",
    "Bn_compute_blocks": "B",
    "Bn": "B",
    "residual_diff_threshold": "rdt",
    "max_warmup_steps": "warmup",
    "warmup_interval": "warmup_interval",
    "max_cached_steps": "max_cached",
    "max_continuous_cached_steps": "continuous",
    "max_accumulated_residual_diff_threshold": "accumulated",
    "cfg_diff_compute_separate": "separate",
}

_LEAST = {"F": 1, "B": 0, "warmup": 0, "warmup_interval": 1, "max_cached": -1, "continuous": -1}


def _setting(name: str, text: str) -> float | int | bool:
    if name == "separate":
        if text.lower() not in ("true", "false"):
            raise ArgumentTypeError(f"separate={text} is neither true nor false")
        return text.lower() == "true"
    if name in _LEAST:
        if not text.removeprefix("-").isdecimal() or len(text) > 9 or int(text) < _LEAST[name]:
            raise ArgumentTypeError(f"{name}={text} is not a whole number from {_LEAST[name]} on")
        return int(text)
    value = _float(text)
    if name == "rdt" and not 0 < value < 1:
        raise ArgumentTypeError(f"rdt={text} is not between 0 and 1; try 0.08")
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentTypeError(f"{name}={text} is not a number from 0 on")
    return value


#: What this package brings along, by name. TeaCache and placed steps have none: their settings are told apart by their form.
BUILT_IN: dict[str, Parser] = {"dualcache": _dualcache, "seacache": _seacache}


def parse(text: str, known: Mapping[str, Parser] = BUILT_IN) -> Method | Literal["auto", "off"]:
    """The method that a text names, or `auto` or `off`. ArgumentTypeError, with the mend, if it names none."""
    if text in (AUTO, OFF):
        return text
    setting, plus, forecast = text.rpartition("+")
    try:
        if not plus or forecast[:1].isdigit():  # as in 1e+20
            return _method(text, known)
        return with_forecast(_method(setting, known), forecast)
    except ArgumentTypeError as error:
        if f"'{text}'" in str(error):
            raise
        raise ArgumentTypeError(f"'{text}': {error}") from None


def with_forecast(method: Method, forecast: str) -> Method:
    """The same method with another forecast. ArgumentTypeError if there is none of that name."""
    if forecast not in ORDERS:
        raise ArgumentTypeError(f"'{forecast}' is no forecast; there are {', '.join(ORDERS)}")
    return replace(method, forecast=forecast)  # type: ignore[type-var]


def _method(text: str, known: Mapping[str, Parser]) -> Method:
    name, colon, setting = text.partition(":")
    if colon:
        if name not in known:
            raise ArgumentTypeError(f"'{name}' is no method; there are {', '.join(sorted(known))}")
        return known[name](setting)
    if text.endswith("x"):
        speedup = _float(text[:-1])
        if not 1 < speedup <= MAX_SPEEDUP:
            raise ArgumentTypeError(f"'{text}' is not a speed-up above 1x and at most {MAX_SPEEDUP:g}x; try 1.5x")
        return Placed(speedup)
    return TeaCache(_number(text, MAX_THRESHOLD, "0.2"))


def _number(text: str, highest: float, example: str) -> float:
    value = _float(text)
    if not 0 < value <= highest:
        if value == 0:
            mend = "use 'off' to switch it off"
        else:
            mend = f"try {example}"
        raise ArgumentTypeError(f"'{text}' is not above 0 and at most {highest:g}; {mend}")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(
            f"'{text}' is neither a number nor a speed-up nor 'auto' nor 'off'; try 0.2 or 1.5x"
        ) from None


def _text(setting: str, forecast: str, usual: str) -> str:
    return setting if forecast == usual else f"{setting}+{forecast}"


def _plain(value: float) -> str:
    """A number or a truth value so that it reads back as the same."""
    return repr(value).lower().removesuffix(".0")
