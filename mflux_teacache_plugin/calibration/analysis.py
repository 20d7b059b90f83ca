"""From traces to numbers: what is fitted to which, and how well each result foretells the step that a gate must judge.

Polynomial and place in the schedule are compared at one task: the change of the transformer's output on the guidance branch
that the gate sees. The profile that is kept is that of the guided prediction where that was recorded: steps that are placed
by it stand in for the guided prediction, and on the demo model, guidance 4, it places them better by 3 to 6 dB (docs/calibration.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mflux_teacache_plugin.calibration import fit
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.variants import Variant

PUBLISHED, OWN, PROFILE = "published polynomial", "own polynomial", "profile"

#: By this share an own polynomial's error has to be lower before it replaces one that there was.
CLEARLY = 0.05


@dataclass(frozen=True, eq=False)
class Analysis:
    """What some generations of one model say.

    Attributes:
        generations: how many there are; `prompts`, of how many prompts, which is how many were left out in turn.
        pairs: the steps that were foretold: all but each generation's first, which nothing precedes, and its last, which
            always computes.
        polynomial: None where the traces hold no signal.
        profile: of the guided prediction (of the output, where that is all there is), over all prompts.
        guided: the profile is of a prediction that is made of several guidance branches.
        scores: by PUBLISHED (as it is; its author may have fitted it on these prompts), OWN, PROFILE (left out).
    """

    generations: int
    prompts: int
    pairs: int
    polynomial: fit.Polynomial | None
    profile: fit.Profile
    guided: bool
    scores: dict[str, fit.Score] = field(default_factory=dict)

    @property
    def keeps_published(self) -> bool:
        """Whether the polynomial that there was already stays: it comes with a threshold that was chosen by pictures, so the
        own one has to be clearly better.
        """
        if OWN not in self.scores:
            return PUBLISHED in self.scores
        return PUBLISHED in self.scores and self.scores[PUBLISHED].rmse <= (1 + CLEARLY) * self.scores[OWN].rmse

    @property
    def best(self) -> str:
        """What foretells best."""
        return min(self.scores, key=lambda name: self.scores[name].rmse)


def analyse(traces: Sequence[Trace], published: Variant | None = None) -> Analysis:
    """Fit, and leave every prompt out in turn. All traces need their σ.

    Args:
        traces: of one model.
        published: a variant whose polynomial is judged too.

    Raises:
        TraceError: fewer than two prompts.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(trace.prompt, []).append(trace)
    if len(groups) < 2:
        raise TraceError(
            "one prompt is not enough for a fit",
            cause="what a fit is worth shows on a prompt that was left out",
            hint="record three prompts or more",
        )
    by_prompt = list(groups.values())
    truths = [np.concatenate([trace.output[:-1] for trace in group]) for group in by_prompt]
    scores: dict[str, fit.Score] = {}
    polynomial = None
    if all(trace.signal is not None for trace in traces):
        pairs = [
            (np.concatenate([_signal(t) for t in group]), truth) for group, truth in zip(by_prompt, truths, strict=True)
        ]
        if published is not None and published.polynomial is not None:
            guesses = [fit.foretell(published.polynomial, published.range, signal) for signal, _ in pairs]
            scores[PUBLISHED] = fit.score(truths, guesses)
        polynomial = fit.fit_polynomial(pairs)
        if len(pairs) > 2:  # a fit, too, leaves one out of what remains
            guesses = fit.leave_one_out(pairs, lambda others, one: fit.fit_polynomial(others)(one[0]))
            scores[OWN] = fit.score(truths, guesses)
    scores[PROFILE] = fit.score(truths, fit.leave_one_out(by_prompt, _by_profile))
    guided = any(len(trace.branches) > 1 and trace.prediction is not None for trace in traces)
    pairs_ = sum(map(len, truths))
    return Analysis(len(traces), len(groups), pairs_, polynomial, profile_of(traces), guided, scores)


def profile_of(traces: Sequence[Trace]) -> fit.Profile:
    """The profile of generations that all know their σ."""
    return fit.fit_profile([_sigma(trace) for trace in traces], [trace.moved for trace in traces])


def _by_profile(others: list[list[Trace]], group: list[Trace]) -> np.ndarray:
    seen = [trace for other in others for trace in other]
    profile = fit.fit_profile([_sigma(trace) for trace in seen], [trace.output for trace in seen])
    return np.concatenate([profile(_sigma(trace))[:-1] for trace in group])


def _signal(trace: Trace) -> np.ndarray:
    assert trace.signal is not None
    return trace.signal[:-1]


def _sigma(trace: Trace) -> np.ndarray:
    if trace.sigma is None:
        raise TraceError(f"{trace.prompt}: sigma is missing", hint="record it again with mflux-teacache calibrate")
    return trace.sigma
