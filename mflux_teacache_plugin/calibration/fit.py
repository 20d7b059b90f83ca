"""From recorded generations to the numbers of a coefficient file, and how well each predicts a prompt that was left out.

Two things can predict how much the transformer's output changes from one step to the next: the change of the gate's signal,
through a polynomial, and the place in the run, through a profile over σ.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.methods.teacache import TeaCacheGate
from mflux_teacache_plugin.variants import Profile, Variant

PUBLISHED, OWN, PROFILE = "published polynomial", "own polynomial", "profile"

#: A gate's polynomial has five coefficients. The lowest degree is taken whose error is no more than this share above the least.
DEGREES, CHEAP = (0, 1, 2, 3, 4), 0.02

#: By this share an own polynomial's error has to be lower before it replaces one whose threshold was chosen by pictures.
CLEARLY = 0.05

#: Without pictures to judge by, a threshold is one that skips about this share of the steps.
SKIPPED_SHARE = 1 / 3

#: The thresholds to choose from.
THRESHOLDS = tuple(float(f"{threshold:.2g}") for threshold in np.geomspace(0.005, 2, 49))

Span = tuple[float, float]


class Score(NamedTuple):
    """How well something predicts: R² (1 is perfect, 0 is the mean, below that worse) and the root mean square error."""

    r2: float
    rmse: float


def numbers(traces: Sequence[Trace], published: Variant | None = None) -> tuple[dict[str, Any], dict[str, Score]]:
    """The keys `profile`, `polynomial`, `range` and `threshold` of a coefficient file, and how well each way predicts.

    The profile is that of what moves the picture, the guided prediction; what is compared is the transformer's output, each
    prompt left out of the fit in turn. The polynomial of the variant `published` stays, with its threshold, where it
    predicts no worse than ours. The traces are two or more, of one command; a prompt each.
    """
    moved = np.array([np.cumsum([0.0, *(trace.prediction or trace.output)]) for trace in traces]).mean(axis=0)
    sigma, change = (tuple(np.round(each, 5).tolist()) for each in (traces[0].sigma, moved))
    keys: dict[str, Any] = {"profile": Profile(sigma=sigma, change=change, guidance=traces[0].guidance)}
    outputs = np.array([trace.output[:-1] for trace in traces])  # the last step always computes
    scores = {PROFILE: score(outputs, (outputs.sum(axis=0) - outputs) / (len(traces) - 1))}
    if any(trace.signal is None for trace in traces):
        return keys, scores
    signals = np.array([trace.signal[:-1] for trace in traces if trace.signal])
    polynomial, scores[OWN] = fit_polynomial(signals, outputs)
    if published is not None and published.polynomial is not None:
        low, high = published.range or (0.0, np.inf)
        scores[PUBLISHED] = score(outputs, np.polyval(published.polynomial, np.clip(signals, low, high)))
        if scores[PUBLISHED].rmse <= (1 + CLEARLY) * scores[OWN].rmse:
            return keys | {key: getattr(published, key) for key in ("polynomial", "range", "threshold")}, scores
    span = (float(signals.min()), float(signals.max()))
    threshold = threshold_for(polynomial, span, traces)
    return keys | {"polynomial": polynomial, "range": span, "threshold": threshold}, scores


def fit_polynomial(signals: np.ndarray, outputs: np.ndarray) -> tuple[Sequence[float], Score]:
    """From the signal's change to the output's, both (prompts, changes): five coefficients, highest power first, and how well
    such a polynomial predicts a prompt that was left out. It rises, or stays level, all over the changes that were seen.
    """
    at, found = np.linspace(signals.min(), signals.max(), 200), []
    for degree in DEGREES:
        whole = _polynomial(signals, outputs, degree)
        if degree and (np.diff(np.polyval(whole, at), prepend=0) < 0).any():
            continue
        guesses = []
        for out, signal in enumerate(signals):  # the prompt that is left out
            others = _polynomial(np.delete(signals, out, 0), np.delete(outputs, out, 0), degree)
            guesses.append(np.polyval(others, signal))
        found.append((whole, score(outputs, np.array(guesses))))
    enough = (1 + CHEAP) * min(one.rmse for _, one in found)
    return next((polynomial, one) for polynomial, one in found if one.rmse <= enough)


def _polynomial(signals: np.ndarray, outputs: np.ndarray, degree: int) -> list[float]:
    found = np.linalg.lstsq(np.vander(signals.ravel(), degree + 1), outputs.ravel(), rcond=None)[0]
    return [*[0.0] * (4 - degree), *found.tolist()]


def score(truth: np.ndarray, guess: np.ndarray) -> Score:
    """`guess` against `truth`, over all of them together."""
    error = ((truth - guess) ** 2).mean()
    return Score(float(1 - error / truth.var()) if truth.var() > 0 else np.nan, float(error**0.5))


def threshold_for(
    polynomial: Sequence[float], span: Span, traces: Sequence[Trace], share: float = SKIPPED_SHARE
) -> float:
    """The threshold that skips about `share` of the steps, as the gate decides on the traces' own signal."""
    return min(THRESHOLDS, key=lambda each: abs(skipped_share(polynomial, span, each, traces) - share))


def skipped_share(polynomial: Sequence[float], span: Span, threshold: float, traces: Sequence[Trace]) -> float:
    """Which share of the steps TeaCache's gate would skip; the signal is that of a run in which nothing was skipped."""
    skips: list[bool] = []
    for trace in traces:
        gate = TeaCacheGate(len(trace.sigma), threshold, polynomial, span)
        skips += [gate(step, partial(float, change)).skip for step, change in enumerate((0.0, *(trace.signal or ())))]
    return float(np.mean(skips))
