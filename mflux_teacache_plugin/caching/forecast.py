"""What stands in for a skipped step: the last computed values, carried on along σ.

Order 0 reuses the last value (TeaCache's rule); order 1 draws a line through the last two, order 2 a parabola through the
last three (Lagrange). TaylorSeer (Liu et al., arXiv 2503.06923) does the same with divided differences over steps.

An extrapolation goes wrong where two computed steps lie close and it is carried far, and where a trajectory bends. So
it is never carried further than its points lie apart, and it is damped by what it was worth the last time: at each computed
step the truth is there to compare with, and the share of the way towards it that the forecast had right, between none
and all, is the share that it is allowed next time. It costs no wait for the device.
"""

from collections import deque

import mlx.core as mx

#: The orders, by the name that a user gives.
ORDERS = {"reuse": 0, "linear": 1, "quadratic": 2}


class Forecast:
    """Of one value, such as one guidance branch's residual, over one generation."""

    def __init__(self, order: int) -> None:
        self._points: deque[tuple[float, mx.array]] = deque(maxlen=order + 1)  # the newest first
        self._trust: mx.array | None = None  # in [0, 1]; how far the way to the extrapolation is to be gone

    @property
    def kept(self) -> list[mx.array]:
        """Every array that is held."""
        return [value for _, value in self._points] + ([] if self._trust is None else [self._trust])

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the values; None before the first."""
        return tuple(self._points[0][1].shape) if self._points else None

    def learn(self, sigma: float, value: mx.array) -> None:
        """A computed step's value. One of another shape than before starts anew."""
        if self.shape not in (None, tuple(value.shape)):
            self._points.clear()
            self._trust = None
        if (guess := self._extrapolate(sigma)) is not None:
            self._trust = _share_of_the_way(self._points[0][1], guess, value)
        self._points.appendleft((sigma, value))

    def at(self, sigma: float) -> mx.array:
        """The value expected at σ; IndexError before the first is learned."""
        last = self._points[0][1]
        guess = self._extrapolate(sigma)
        if guess is None:
            return last
        if self._trust is None:
            return guess
        return last + self._trust.astype(last.dtype) * (guess - last)

    def _extrapolate(self, sigma: float) -> mx.array | None:
        """The polynomial through as many points as there are and as the distance allows; None for less than two."""
        points = list(self._points)
        if len(points) < 2 or abs(sigma - points[0][0]) > 1.0001 * abs(points[0][0] - points[-1][0]):
            return None
        total = None
        for here, value in points:
            weight = 1.0
            for there, _ in points:
                if there != here:
                    weight *= (sigma - there) / (here - there)
            total = weight * value if total is None else total + weight * value
        return total


def _share_of_the_way(start: mx.array, guess: mx.array, truth: mx.array) -> mx.array:
    """How much of the step from start to guess leads to the truth: the least-squares factor, between 0 and 1; a scalar."""
    way = (guess - start).astype(mx.float32)
    wanted = (truth - start).astype(mx.float32)
    length = (way * way).sum()
    return mx.clip((way * wanted).sum() / mx.maximum(length, 1e-30), 0.0, 1.0)
