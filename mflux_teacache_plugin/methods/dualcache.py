"""DualCache: run the first blocks, and let what they did decide whether the blocks behind them run.

The rule is that of cache-dit's DBCache (vipshop/cache-dit 1.5.3, Apache-2.0), restated from its documentation and checked
against its decisions; no code is taken from there. Each list of blocks decides for itself, as cache-dit has it for FLUX.2.
Needs no coefficients.
"""

from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import ClassVar

import numpy as np

from mflux_teacache_plugin.caching.block_cache import BlockCache
from mflux_teacache_plugin.caching.gate import Change, Setup, Verdict
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, finite, keyed, plain, to_float, whole
from mflux_teacache_plugin.variants import Variant


@dataclass(frozen=True)
class DualCacheSettings:
    """cache-dit's `DBCacheConfig`, with its defaults; its names are below."""

    F: int = 8  #: blocks at the start of each list that always run
    B: int = 0  #: blocks at its end that always run
    rdt: float = 0.08  #: relative L1 change below which the middle is skipped
    warmup: int = 8  #: so many first steps compute
    warmup_interval: int = 1  #: of the warm-up's steps only every n-th computes for certain
    max_cached: int = -1  #: skips in all; -1 for no limit
    continuous: int = -1  #: skips in a row; -1 for no limit
    accumulated: float = 0.0  #: changes read in all, from which on nothing is skipped; 0 for no limit
    separate: bool = True  #: each guidance branch reads its own change; otherwise the second goes by the first one's


#: Known by name: fast, and careful.
PRESETS = {
    "aggressive": DualCacheSettings(F=1, rdt=0.2, continuous=10),
    "conservative": DualCacheSettings(F=4, rdt=0.05, continuous=3),
}


class DualCacheGate:
    """Decides for one list of blocks and one guidance branch; `change` is since the last *computed* step."""

    def __init__(self, settings: DualCacheSettings) -> None:
        self._settings = settings
        self._cached, self._in_a_row, self._sum = 0, 0, 0.0

    def reset(self) -> None:
        self._in_a_row = 0

    def __call__(self, step: int, change: Change) -> Verdict:
        verdict = self._judge(step, change)
        self._cached += verdict.skip
        self._in_a_row = self._in_a_row + 1 if verdict.skip else 0
        return verdict

    def _judge(self, step: int, change: Change) -> Verdict:
        settings = self._settings
        if step < settings.warmup and step % settings.warmup_interval == 0:
            return Verdict(skip=False, reason="warm-up")
        if 0 <= settings.max_cached <= self._cached:
            return Verdict(skip=False, reason=f"{settings.max_cached} skips in all")
        if 0 <= settings.continuous <= self._in_a_row:
            return Verdict(skip=False, reason=f"{settings.continuous} skips in a row")
        if 0 < settings.accumulated <= self._sum:
            return Verdict(skip=False, reason="the accumulated change is used up", accumulated=self._sum)
        seen = change()
        if seen > 0:  # not if it is no number
            self._sum += seen
        skip = seen < settings.rdt
        return Verdict(skip, reason="below the threshold" if skip else "threshold reached", accumulated=self._sum)


#: Its own option beside `--teacache dualcache:SETTING`: what stands for its value, and its help.
OPTION = (
    "PRESET",
    "Run the first blocks of each step, and skip the others where those changed little. PRESET is aggressive, "
    "conservative, or settings such as F=8,B=0,rdt=0.08 (see docs/options.md).",
)

_SPREAD = (0.0, 0.25, 0.5, 0.75, 1.0)  # quantiles


@dataclass(frozen=True)
class DualCache(Method):
    """Run the first blocks, and let their change decide about the others."""

    settings: DualCacheSettings = PRESETS["aggressive"]
    uses_numbers: ClassVar[bool] = False

    @property
    def preset(self) -> str | None:
        """The name of the settings, if they have one."""
        return next((name for name, preset in PRESETS.items() if preset == self.settings), None)

    @property
    def setting(self) -> str:
        usual, ours = vars(DualCacheSettings()), vars(self.settings)
        given = [name for name in ours if name in ("F", "B", "rdt") or ours[name] != usual[name]]
        return f"dualcache:{self.preset or ','.join(f'{name}={plain(ours[name])}' for name in given)}"

    def check(self, variant: Variant | None, blocks: Mapping[str, int] | None = None) -> None:
        if blocks is not None:
            self.fit(blocks)

    def fit(self, blocks: Mapping[str, int]) -> DualCacheSettings:
        """The settings for these lists of blocks; SettingsError if more are to run than a list has.

        A preset takes at most all blocks but one of the shortest list.
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

    def cache(self, setup: Setup) -> BlockCache:
        fitted = self.fit(setup.blocks)
        lengths = {"first": fitted.F, "last": fitted.B}
        return BlockCache(partial(DualCacheGate, fitted), setup, self.order, **lengths, separate=fitted.separate)

    def details(self, generation: Generation) -> str:
        """How often lists of blocks were skipped, and the spread of the changes that were read."""
        cached = sum(decision.skipped for decision in generation.decisions)
        line = f"hit rate {cached / len(generation.decisions):.0%}"
        if changes := generation.changes:
            least, *quartiles, most = (f"{value:.3g}" for value in np.quantile(changes, _SPREAD))
            line += f"; changes {least} to {most}, quartiles {', '.join(quartiles)}"
        return line

    def why_nothing(self, generation: Generation, variant: Variant | None) -> str:
        return f"no list of blocks changed by less than {self.settings.rdt:g}; a higher rdt skips"


def parse(setting: str) -> DualCache:
    """A preset, or settings: `aggressive`, `F=8,B=0,rdt=0.08`."""
    if setting.lower() in PRESETS:
        return DualCache(PRESETS[setting.lower()])
    text, values = keyed(setting, _THEIRS, **{name: partial(_value, name) for name in _FIELDS})
    if text or not values:
        presets = ", ".join(PRESETS)
        raise ArgumentTypeError(f"'{setting}' is neither a preset ({presets}) nor of the form F=8,B=0,rdt=0.08")
    return DualCache(DualCacheSettings(**values))


_LEAST = {"F": 1, "B": 0, "warmup": 0, "warmup_interval": 1, "max_cached": -1, "continuous": -1}

_FIELDS = tuple(field.name for field in fields(DualCacheSettings))

#: cache-dit's names of the settings.
_NAMES = (
    "fn_compute_blocks bn_compute_blocks residual_diff_threshold max_warmup_steps warmup_interval max_cached_steps "
    "max_continuous_cached_steps max_accumulated_residual_diff_threshold cfg_diff_compute_separate"
)
_THEIRS = {"fn": "F", "bn": "B"} | dict(zip(_NAMES.split(), _FIELDS, strict=True))


def _value(name: str, text: str) -> float | int | bool:
    if name == "separate":
        if text.lower() not in ("true", "false"):
            raise ArgumentTypeError(f"separate={text} is neither true nor false")
        return text.lower() == "true"
    if name in _LEAST:
        return whole(name, text, _LEAST[name])
    if name == "rdt" and not 0 < to_float(text) < 1:
        raise ArgumentTypeError(f"rdt={text} is not between 0 and 1; try 0.08")
    return finite(name, text)
