"""What happened, step by step and generation by generation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decision:
    """One step of one generation.

    Attributes:
        step: position within the active steps, from 0.
        skipped: whether a kept residual stood in for the blocks.
        reason: why, in words.
        change: relative L1 change of the signal since the step before; None where it was not read.
        accumulated: the gate's estimate of the output's change since the last computed step; None where not asked.
    """

    step: int
    skipped: bool
    reason: str
    change: float | None = None
    accumulated: float | None = None


@dataclass
class Generation:
    """One generation: `steps` active steps are planned, `decisions` were taken (fewer if it was interrupted)."""

    steps: int
    decisions: list[Decision] = field(default_factory=list)
    fault: str | None = None  #: why the plugin stood aside midway, if it did

    @property
    def skipped(self) -> int:
        return sum(decision.skipped for decision in self.decisions)

    @property
    def computed(self) -> int:
        return len(self.decisions) - self.skipped


@dataclass
class Stats:
    """All generations of one handle, in order."""

    generations: list[Generation] = field(default_factory=list)

    @property
    def last(self) -> Generation:
        """The newest generation; IndexError before the first."""
        return self.generations[-1]

    @property
    def skipped(self) -> int:
        return sum(generation.skipped for generation in self.generations)

    @property
    def computed(self) -> int:
        return sum(generation.computed for generation in self.generations)

    @property
    def speedup_estimate(self) -> float:
        """All steps over the computed ones: the denoising loop's speed-up if a skipped step cost nothing."""
        return (self.computed + self.skipped) / self.computed if self.computed else 1.0
