"""No step is skipped: only what guidance can do without is left out, which is done beside every method."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import ClassVar, Literal

import mlx.core as mx

from mflux_teacache_plugin.caching.gate import Verdict
from mflux_teacache_plugin.caching.step_cache import Cache, Calls
from mflux_teacache_plugin.methods.method import Method, Setup


class Uncached(Cache):
    """Counts the steps, and answers nothing."""

    def attach(self, calls: Calls) -> None:
        pass

    def end_step(self) -> None:
        if self._step < self._facts.steps:
            self._note(Verdict(skip=False, reason="no step is skipped"))
        super().end_step()

    def kept(self) -> list[mx.array]:
        return []

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class Cuts(Method):
    """Every step is computed."""

    skips: ClassVar[bool] = False
    keeps: ClassVar[Literal["prediction", "residual"]] = "prediction"
    uses_numbers: ClassVar[bool] = False

    @property
    def setting(self) -> str:
        return "cuts"

    def cache(self, setup: Setup) -> Cache:
        return Uncached(setup.facts, self.order, setup.record)


def parse(setting: str) -> Cuts:
    """`cuts`, which has no setting."""
    if setting:
        raise ArgumentTypeError(f"'cuts' takes no setting such as '{setting}'")
    return Cuts()
