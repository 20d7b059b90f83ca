"""From traces to numbers: what is fitted to which, and how well each result predicts the step that a gate must judge.

Polynomial and profile are compared at one task: the change of the transformer's output on the guidance branch that the gate
sees. The profile that is kept is that of the guided prediction where that was recorded: what a schedule skips stands in for
the guided prediction, and on the demo model, guidance 4, that profile is better by 3 to 6 dB (docs/calibration.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mflux_teacache_plugin.calibration import fit
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.variants import Profile, Variant

PUBLISHED, OWN, PROFILE = "published polynomial", "own polynomial", "profile"

#: By this share an own polynomial's error has to be lower before it replaces one that there was.
CLEARLY = 0.05


@dataclass(frozen=True, eq=False)
class Analysis:
    """What some generations of one model say.

    Attributes:
        generations: how many there are; `prompts`, of how many prompts, which is how many were left out in turn.
        pairs: the steps that were predicted: all but each generation's first, which nothing precedes, and its last, which
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
    profile: Profile
    guided: bool
    scores: dict[str, fit.Score] = field(default_factory=dict)

    @property
    def keeps_published(self) -> bool:
        """Whether the polynomial that there was already stays: it comes with a threshold that was chosen by pictures, so the
        own one has to be clearly better.
        """
        own, published = self.scores.get(OWN), self.scores.get(PUBLISHED)
        return published is not None and (own is None or published.rmse <= (1 + CLEARLY) * own.rmse)

    @property
    def best(self) -> str:
        """What predicts best."""
        return min(self.scores, key=lambda name: self.scores[name].rmse)

    @property
    def verdict(self) -> str:
        """In one sentence, what predicts the output's change better, and how it was judged."""
        told = ", ".join(f"{name} {score.r2:.3f} ({score.rmse:.3f})" for name, score in self.scores.items())
        own = "; the published polynomial as it is" if PUBLISHED in self.scores else ""
        if self.polynomial is not None and OWN not in self.scores:
            own += "; two prompts are too few to judge a polynomial"
        return (
            f"The {self.best} predicts the change of the output best. R2 (root mean square error) on {self.pairs} "
            f"steps of {self.prompts} prompts, each left out of its fit{own}: {told}."
        )


def analyse(traces: Sequence[Trace], published: Variant | None = None) -> Analysis:
    """Fit, and leave every prompt out in turn.

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
    signals = [[trace.signal[:-1] for trace in group if trace.signal is not None] for group in by_prompt]
    if sum(map(len, signals)) == len(traces):
        pairs = list(zip(map(np.concatenate, signals), truths, strict=True))
        if published is not None and published.polynomial is not None:
            guesses = [fit.predict(published.polynomial, published.range, signal) for signal, _ in pairs]
            scores[PUBLISHED] = fit.score(truths, guesses)
        polynomial = fit.fit_polynomial(pairs)
        if len(pairs) > 2:  # a fit, too, leaves one out of what remains
            guesses = fit.leave_one_out(pairs, lambda others, one: fit.fit_polynomial(others)(one[0]))
            scores[OWN] = fit.score(truths, guesses)
    scores[PROFILE] = fit.score(truths, fit.leave_one_out(by_prompt, _by_profile))
    guided = any(len(trace.branches) > 1 and trace.prediction is not None for trace in traces)
    profile = fit.fit_profile([trace.sigma for trace in traces], [trace.moved for trace in traces])
    return Analysis(len(traces), len(groups), sum(map(len, truths)), polynomial, profile, guided, scores)


def _by_profile(others: list[list[Trace]], group: list[Trace]) -> np.ndarray:
    seen = [trace for other in others for trace in other]
    profile = fit.fit_profile([trace.sigma for trace in seen], [trace.output for trace in seen])
    return np.concatenate([fit.changes_at(profile, trace.sigma)[:-1] for trace in group])
