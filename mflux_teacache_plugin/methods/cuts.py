"""No step is skipped: only what guidance can do without is left out, which is done beside every method."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import ClassVar

from mflux_teacache_plugin.caching.gate import Setup
from mflux_teacache_plugin.caching.stats import Decision
from mflux_teacache_plugin.caching.step_cache import Cache
from mflux_teacache_plugin.methods.method import Method


class Uncached(Cache):
    """Counts the steps, and answers nothing."""

    def end_step(self) -> None:
        if self._step < self._setup.facts.steps:
            self.record.decisions.append(Decision(self._step, skipped=False, reason="no step is skipped"))
        super().end_step()


@dataclass(frozen=True)
class Cuts(Method):
    """Every step is computed."""

    skips: ClassVar[bool] = False
    needs_taps: ClassVar[bool] = False
    uses_numbers: ClassVar[bool] = False

    @property
    def setting(self) -> str:
        return "cuts"

    def cache(self, setup: Setup) -> Cache:
        return Uncached(setup, self.order)


def parse(setting: str) -> Cuts:
    """`cuts`, which has no setting."""
    if setting:
        raise ArgumentTypeError(f"'cuts' takes no setting such as '{setting}'")
    return Cuts()
