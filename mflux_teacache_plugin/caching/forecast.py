"""What stands in for a skipped step: the last computed values, carried on along σ.

Order 0 reuses the last value (TeaCache's rule); order 1 draws a line through the last two, order 2 a parabola through the
last three (Lagrange). TaylorSeer (Liu et al., arXiv 2503.06923) does the same with divided differences over steps.

An extrapolation goes wrong where two computed steps lie close and it is carried far, so it is never carried further than its
points lie apart. It goes wrong too where the values turn, as they do under hard guidance. At a computed step the truth is
there beside what would have been forecast. Where the two pointed away from each other twice in a row, seen from the value before,
the last value stands until the next computed step. The sign is multiplied in, lazily: nothing waits for the device.
"""

from collections import deque

import mlx.core as mx

#: The orders, by the name that a user gives.
ORDERS = {"reuse": 0, "linear": 1, "quadratic": 2}

#: So many wrong signs in a row, and the last value stands.
LEFT_AFTER = 2


class Forecast:
    """Of one value, such as one guidance branch's residual, over one generation."""

    def __init__(self, order: int) -> None:
        self._points: deque[tuple[float, mx.array]] = deque(maxlen=order + 1)  # the newest first
        self._wrong: mx.array | None = None  # float32: so often in a row it pointed the wrong way; None before it could

    @property
    def kept(self) -> list[mx.array]:
        """Every array that is held."""
        values = [value for _, value in self._points]
        return values if self._wrong is None else [*values, self._wrong]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the values; None before the first."""
        return tuple(self._points[0][1].shape) if self._points else None

    def learn(self, sigma: float, value: mx.array) -> None:
        """A computed step's value. One of another shape than before starts anew."""
        if self.shape not in (None, tuple(value.shape)):
            self._points.clear()
            self._wrong = None
        ahead = self._ahead(sigma)
        if ahead is not None:
            came = value - self._points[0][1]
            right = (came.astype(mx.float32) * ahead.astype(mx.float32)).sum() > 0
            self._wrong = mx.where(right, 0.0, (0.0 if self._wrong is None else self._wrong) + 1.0)
        self._points.appendleft((sigma, value))

    def at(self, sigma: float) -> mx.array:
        """The value expected at σ: extrapolated where that can be trusted, else the last; IndexError before the first."""
        last, value = self._points[0]
        reach = abs(last - self._points[-1][0])
        ahead = self._ahead(sigma)
        if ahead is None or abs(sigma - last) > 1.0001 * reach:
            return value
        return value + (ahead if self._wrong is None else ahead * (self._wrong < LEFT_AFTER).astype(ahead.dtype))

    def _ahead(self, sigma: float) -> mx.array | None:
        """What the extrapolation to σ adds to the last value; None where there is nothing to draw it through."""
        points = list(self._points)
        if len({here for here, _ in points}) < max(2, len(points)):
            return None
        terms = []
        for index, (here, value) in enumerate(points[1:], start=1):
            weight = 1.0
            for other, (there, _) in enumerate(points):
                if other != index:
                    weight *= (sigma - there) / (here - there)
            terms.append(weight * (value - points[0][1]))  # the weights of all points add up to 1
        return sum(terms[1:], terms[0])
