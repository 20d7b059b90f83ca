"""What happened, step by step and generation by generation."""

from collections import deque
from dataclasses import dataclass, field

#: So many generations keep their records; the counts go on.
KEPT_GENERATIONS = 100


@dataclass(frozen=True)
class Decision:
    """Whether the work of one step, or a part of it, was skipped."""

    step: int  #: position within the active steps, from 0
    skipped: bool  #: whether something that was kept stood in for the blocks
    reason: str  #: why, in words
    change: float | None = None  #: relative L1 change of the signal; None where it was not read
    accumulated: float | None = None  #: the gate's estimate of the output's change since the last computed step, if any
    branch: int = 0  #: the guidance branch, from 0; 0 too where one decision holds for all
    blocks: str | None = None  #: the list of blocks that was decided about; None for all of them
    share: float = 1.0  #: of the step's work that was decided about, up to 1


@dataclass
class Generation:
    """One generation: `steps` active steps are planned, `decisions` were taken (fewer if it was interrupted)."""

    steps: int
    decisions: list[Decision] = field(default_factory=list)
    note: str = ""  #: what its numbers do not know of it, in a few words
    fault: str | None = None  #: why the plugin stopped midway, if it did
    alone: int | None = None  #: the step from which on guidance's second prediction was left out, if there was one
    idle: bool = False  #: whether that changes nothing, at this run's guidance
    guidance: float | None = None  #: this run's, if it is known

    @property
    def taken(self) -> int:
        """Steps that were decided about."""
        return len({decision.step for decision in self.decisions})

    @property
    def skipped(self) -> float:
        """Work that was skipped, in steps; a whole number unless a method decides about parts of a step."""
        return _whole(sum(decision.share for decision in self.decisions if decision.skipped))

    @property
    def computed(self) -> float:
        """Work that was done, in steps."""
        return _whole(self.taken - self.skipped)

    @property
    def calls(self) -> int:
        """Of the transformer, in steps that were not skipped whole; as with guidance, two a step."""
        return 2 * len(self._computed_steps())

    @property
    def left_out(self) -> int:
        """Those of `calls` that were not made, or were half of a batch that was not."""
        return 0 if self.alone is None else sum(step >= self.alone for step in self._computed_steps())

    def _computed_steps(self) -> set[int]:
        done: dict[int, float] = {}
        for decision in self.decisions:
            done[decision.step] = done.get(decision.step, 1.0) - decision.share * decision.skipped
        return {step for step, share in done.items() if share > 1e-6}

    @property
    def changes(self) -> list[float]:
        """Every change of the signal that was read."""
        return [decision.change for decision in self.decisions if decision.change is not None]


class Stats:
    """What one handle saw.

    Attributes:
        generations: the newest `KEPT_GENERATIONS`, in order.
    """

    def __init__(self) -> None:
        self.generations: deque[Generation] = deque(maxlen=KEPT_GENERATIONS)
        self._dropped_skipped = self._dropped_computed = 0.0  # of those that are no longer kept

    def begin(self, steps: int) -> Generation:
        """A new record, the last from now on."""
        if len(self.generations) == KEPT_GENERATIONS:
            self._dropped_skipped += self.generations[0].skipped
            self._dropped_computed += self.generations[0].computed
        self.generations.append(Generation(steps))
        return self.last

    def __repr__(self) -> str:
        return f"{self.skipped:.4g} of {self.skipped + self.computed:.4g} steps skipped"

    @property
    def last(self) -> Generation:
        """The newest generation; IndexError before the first."""
        return self.generations[-1]

    @property
    def skipped(self) -> float:
        """Over all generations, in steps."""
        return _whole(self._dropped_skipped + sum(generation.skipped for generation in self.generations))

    @property
    def computed(self) -> float:
        """Over all generations, in steps."""
        return _whole(self._dropped_computed + sum(generation.computed for generation in self.generations))

    @property
    def speedup_estimate(self) -> float:
        """All steps over the computed ones: the denoising loop's speed-up if a skipped step cost nothing."""
        return (self.computed + self.skipped) / self.computed if self.computed else 1.0


def _whole(steps: float) -> float:
    """The same number, as an integer where it is one up to rounding."""
    return round(steps) if abs(steps - round(steps)) < 1e-6 else steps
