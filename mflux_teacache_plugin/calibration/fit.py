"""Numbers in, polynomial and profile out, with how well each predicts a prompt that it did not see.

Two things can predict how much the transformer's output changes from one step to the next: the change of the gate's signal,
through a polynomial, and the position in the run, through a profile over σ. What either is worth shows only on a prompt
that was left out of the fit, so every choice here, the polynomial's degree included, is made that way.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mflux_teacache_plugin.methods.speedup import expected_changes
from mflux_teacache_plugin.variants import Profile

T = TypeVar("T")

#: One group per prompt: signal changes and output changes, both (pairs,).
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]

#: A gate's polynomial has five coefficients.
DEGREES = (1, 2, 3, 4)

#: A lower degree, and a polynomial that never falls, are taken when they cost no more than this share of the error.
CHEAP = 0.02

#: So many knots a profile has at most.
MOST_KNOTS = 64


@dataclass(frozen=True)
class Polynomial:
    """From the signal's relative change to the output's, through the origin.

    Attributes:
        coefficients: five, highest power first.
        span: the smallest and the largest signal change that the fit saw.
        degree: of the polynomial; higher coefficients are 0.
        monotone: it was held to rise, and so to stay above 0, from 0 to the end of `span`.
    """

    coefficients: tuple[float, ...]
    span: tuple[float, float]
    degree: int
    monotone: bool

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        return predict(self.coefficients, self.span, signal)


@dataclass(frozen=True)
class Score:
    """How well something predicts: R² (1 is perfect, 0 is the mean, below that worse) and the root mean square error."""

    r2: float
    rmse: float


def predict(coefficients: Sequence[float], span: tuple[float, float] | None, signal: np.ndarray) -> np.ndarray:
    """A gate's polynomial at `signal`, which is taken for the nearer end of `span` where it lies outside."""
    return np.polyval(coefficients, signal if span is None else np.clip(signal, *span))


def fit_polynomial(groups: Pairs) -> Polynomial:
    """The polynomial whose degree predicts a left-out prompt best; it never falls where that costs little.

    Args:
        groups: two or more.
    """
    signals = np.concatenate([signal for signal, _ in groups])
    span = (float(signals.min()), float(signals.max()))
    errors = {choice: _left_out_error(groups, span[1], *choice) for choice in itertools.product(DEGREES, (True, False))}
    within = [choice for choice, error in errors.items() if error <= (1 + CHEAP) * min(errors.values())]
    degree, monotone = min(within, key=lambda choice: (not choice[1], choice[0]))
    weights = _weights(groups, span[1], degree, monotone)
    at = np.linspace(0, 1, degree + 1)  # degree + 1 points define the polynomial
    powers = np.linalg.solve(np.vander(at, degree + 1), _basis(at, degree) @ weights) / span[1] ** np.arange(
        degree, -1, -1.0
    )
    return Polynomial((*[0.0] * (4 - degree), *powers[:-1].tolist(), 0.0), span, degree, monotone)


def fit_profile(sigmas: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Profile:
    """The mean accumulated change over the generations, at the σ of the longest run.

    Args:
        sigmas: (steps,) for each generation; runs may differ.
        outputs: (steps - 1,) for each generation.
    """
    longest = max(sigmas, key=len)
    if len(longest) > MOST_KNOTS:
        longest = np.interp(np.linspace(0, len(longest) - 1, MOST_KNOTS), np.arange(len(longest)), longest)
    curves = [
        np.interp(-longest, -sigma, np.concatenate([[0.0], np.cumsum(output)]))
        for sigma, output in zip(sigmas, outputs, strict=True)
    ]
    change = np.mean(curves, axis=0)
    return Profile(sigma=tuple(longest.tolist()), change=tuple((change - change[0]).tolist()))


def changes_at(profile: Profile, sigma: np.ndarray) -> np.ndarray:
    """(steps,) → (steps - 1,): the change that a profile expects from each step to the next."""
    return np.array(expected_changes(profile.sigma, profile.change, sigma.tolist()))


def score(truths: Sequence[np.ndarray], guesses: Sequence[np.ndarray]) -> Score:
    """`guesses` against `truths`, over all of them together."""
    truth, guess = np.concatenate(list(truths)), np.concatenate(list(guesses))
    squares, spread = ((truth - guess) ** 2).sum(), ((truth - truth.mean()) ** 2).sum()
    return Score(float(1 - squares / spread) if spread > 0 else float("nan"), float(np.sqrt(squares / len(truth))))


def leave_one_out(groups: Sequence[T], guess: Callable[[list[T], T], np.ndarray]) -> list[np.ndarray]:
    """For each group what `guess(the others, it)` says of it."""
    return [guess([*groups[:index], *groups[index + 1 :]], group) for index, group in enumerate(groups)]


# A polynomial of degree n through the origin in Bernstein's basis on [0, 1] is Σ c_k B_k with c_0 = 0, and it rises there if
# c_k never falls. So the weights are the rises c_k - c_(k-1), and a polynomial that never falls has none below 0.


def _basis(x: np.ndarray, degree: int) -> np.ndarray:
    """(pairs,) → (pairs, degree): column k is Σ of B_j for j > k."""
    bernstein = np.stack([math.comb(degree, j) * x**j * (1 - x) ** (degree - j) for j in range(degree + 1)], axis=1)
    return np.cumsum(bernstein[:, :0:-1], axis=1)[:, ::-1]


def _weights(groups: Pairs, end: float, degree: int, monotone: bool) -> np.ndarray:
    """(degree,), least squares; with `monotone` none below 0, exactly: every set of zeros is tried, 16 at most."""
    matrix = np.concatenate([_basis(signal / end, degree) for signal, _ in groups])
    right = np.concatenate([output for _, output in groups])
    gram, right = matrix.T @ matrix, matrix.T @ right
    best, least = np.zeros(degree), np.inf
    for free in itertools.product((False, True), repeat=degree) if monotone else [(True,) * degree]:
        where, weights = np.flatnonzero(free), np.zeros(degree)
        weights[where] = np.linalg.lstsq(gram[np.ix_(where, where)], right[where], rcond=None)[0]
        loss = weights @ gram @ weights - 2 * right @ weights
        if loss < least and not (monotone and (weights < 0).any()):
            best, least = weights, loss
    return best


def _left_out_error(groups: Pairs, end: float, degree: int, monotone: bool) -> float:
    """Root mean square error over all groups, each predicted by the fit to the others."""
    guesses = leave_one_out(
        groups, lambda others, one: _basis(one[0] / end, degree) @ _weights(others, end, degree, monotone)
    )
    return score([output for _, output in groups], guesses).rmse
