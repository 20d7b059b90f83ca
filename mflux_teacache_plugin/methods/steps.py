"""Just these steps: a list that somebody has settled, such as a published one; others call it a mask."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from mflux_teacache_plugin.caching.gate import Gate
from mflux_teacache_plugin.checks import parse_steps
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods.method import Method, Setup
from mflux_teacache_plugin.methods.speedup import ScheduleGate


def as_text(steps: Sequence[int]) -> str:
    """What `parse_steps` reads as these steps: `0-10,12,15`."""
    runs = [[step for _, step in run] for _, run in groupby(enumerate(steps), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


@dataclass(frozen=True)
class Steps(Method):
    """Compute these steps, counted from 0 over those that call the model, and no others."""

    computed: tuple[int, ...] = (0,)
    uses_numbers: ClassVar[bool] = False
    usual_forecast: ClassVar[str] = "linear"
    needs_taps: ClassVar[bool] = False
    nothing: ClassVar[str] = "the list leaves no step out"

    @property
    def setting(self) -> str:
        return f"steps:{as_text(self.computed)}"

    def check_steps(self, steps: int | None) -> None:
        if steps is not None and steps <= self.computed[-1]:
            last = self.computed[-1]
            cause = f"its last step is {last}, and the run's is {steps - 1}; steps count from 0"
            hint = f"take {last + 1} --steps, or a list for {steps}"
            raise SettingsError(f"{self} does not fit a run of {steps} steps", cause=cause, hint=hint)

    def gate(self, setup: Setup) -> Gate:
        self.check_steps(setup.facts.steps)
        return ScheduleGate(self.computed)


def parse(setting: str) -> Steps:
    """`0-9,12,17`."""
    try:
        computed = parse_steps(setting)
    except ValueError:
        raise ArgumentTypeError(f"'{setting}' is no list of rising steps, such as 0-9,12,17,24,31,38,45,49") from None
    if computed[0] != 0:
        raise ArgumentTypeError(f"'{setting}' leaves out step 0, before which nothing is kept; begin with 0")
    return Steps(computed)
