"""When a step may be skipped: a gate is asked before each step, and answers with a verdict.

A gate sees numbers and no arrays, so that each reads like the rule of its paper; the gates are in `methods`. What stands in
for a skipped step is another question: `forecast`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import mlx.core as mx

from mflux_teacache_plugin.caching.stats import Generation

if TYPE_CHECKING:
    from mflux_teacache_plugin.variants import Variant

#: Reads how much the signal changed, as a fraction. Waits for the device, so a gate calls it only if it needs to know.
Change = Callable[[], float]


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one step."""

    skip: bool
    reason: str
    accumulated: float | None = None  #: the output's estimated change since the last computed step, this one included
    forget: bool = False  #: drop what is kept, because the signal cannot be trusted


class Gate(Protocol):
    """Decides step by step. A new one is made for every generation."""

    def __call__(self, step: int, change: Change) -> Verdict:
        """Judge step `step`, counted from 0 over the active steps of `Facts`."""

    def reset(self) -> None:
        """A step was computed without asking the gate."""
        return


@dataclass(frozen=True)
class Facts:
    """What is known of one generation before its loop."""

    sigmas: tuple[float, ...]  #: σ, the share of noise, at the start of each active step; falling
    grid: tuple[int, int] = (0, 0)  #: rows and columns of the image's tokens
    first: int = 0  #: so many steps of the run's own grid come before the active ones (image-to-image starts late)
    guidance: float | None = None  #: what the run asks for; None if that is not known

    @property
    def steps(self) -> int:
        """How many steps are active."""
        return len(self.sigmas)


@dataclass(frozen=True)
class Setup:
    """What a cache is made for: one generation of one model."""

    facts: Facts  #: what is known before the loop
    record: Generation  #: a new one, for the cache to write
    variant: "Variant | None" = None  #: the model's numbers
    branches: int = 1  #: how often the transformer runs within a step at most
    condition: int | None = None  #: see `PredictionCache`
    blocks: Mapping[str, int] = field(default_factory=dict)  #: how many each list has; empty if unknown
    stream: str = "hidden_states"  #: the keyword under which a block takes the image's tokens


def lazy_change(current: mx.array, previous: mx.array) -> mx.array:
    """mean|current - previous| / mean|previous| over all elements, reduced in float32; not evaluated."""
    current, previous = current.astype(mx.float32), previous.astype(mx.float32)
    return mx.abs(current - previous).mean() / mx.abs(previous).mean()


def relative_change(current: mx.array, previous: mx.array) -> float:
    """The same as a number. Waits for the device."""
    return cast(float, lazy_change(current, previous).item())
