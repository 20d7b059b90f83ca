"""What stands in for a skipped step: where a forecast is exact, and where it stays back."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin.caching.forecast import ORDERS, Forecast

#: σ of three computed steps and of one that is skipped, evenly apart.
FIRST, SECOND, THIRD, NEXT = 0.9, 0.7, 0.5, 0.3

RESTS = (mx.array([1.0, -2.0, 0.5]), mx.array([3.0, 0.25, -1.0]), mx.array([-4.0, 2.0, 8.0]))


def line(sigma):
    return RESTS[0] + RESTS[1] * sigma


def parabola(sigma):
    return line(sigma) + RESTS[2] * sigma**2


def learned(order, function, *sigmas):
    forecast = Forecast(order)
    for sigma in sigmas:
        forecast.learn(sigma, function(sigma))
    return forecast


def near(a, b):
    return bool(mx.allclose(a, b, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize("sigmas", [(FIRST,), (FIRST, SECOND), (FIRST, SECOND, THIRD)])
def test_reuse_returns_the_last_value(sigmas):
    forecast = learned(0, parabola, *sigmas)
    assert mx.array_equal(forecast.at(NEXT), parabola(sigmas[-1]))
    assert len(forecast.kept) == 1


@pytest.mark.parametrize("order", ORDERS.values())
def test_after_one_value_every_order_reuses_it(order):
    assert mx.array_equal(learned(order, line, FIRST).at(SECOND), line(FIRST))


@pytest.mark.parametrize("order", [1, 2])
@given(apart=st.floats(0.02, 0.3), share=st.floats(0.01, 1))
def test_linear_and_quadratic_are_exact_on_a_line(order, apart, share):
    forecast = learned(order, line, 0.95, 0.95 - apart, 0.95 - 2 * apart)
    sigma = 0.95 - (2 + share) * apart
    assert near(forecast.at(sigma), line(sigma))


@given(share=st.floats(0.01, 1))
def test_quadratic_is_exact_on_a_parabola(share):
    forecast = learned(2, parabola, 0.95, 0.85, 0.75, 0.65)
    sigma = 0.65 - share * 0.1
    assert near(forecast.at(sigma), parabola(sigma))


def test_linear_is_not_exact_on_a_parabola():
    assert not near(learned(1, parabola, FIRST, SECOND).at(THIRD), parabola(THIRD))


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_never_carried_further_than_its_points_lie_apart(order):
    sigmas = (0.9, 0.8) if order == 1 else (0.9, 0.85, 0.8)
    forecast = learned(order, line, *sigmas)
    assert near(forecast.at(0.7), line(0.7)), "as far as the points lie apart"
    assert mx.array_equal(forecast.at(0.69), line(0.8)), "and not a step further: the last value stands"


# ---- whether it pointed the right way


def turning(sigma):
    """A line that goes to and fro: it turns at each of the values in steps of 0.2 below SECOND."""
    turns = round((SECOND - sigma) / 0.2)
    return line(sigma) if turns <= 0 else line(SECOND - 0.2 * (turns % 2))


@pytest.mark.parametrize("order", [1, 2])
def test_where_it_pointed_away_from_what_came_twice_in_a_row_the_last_value_stands(order):
    forecast = learned(order, turning, 0.9, 0.7, 0.5, 0.3)
    assert not mx.array_equal(forecast.at(0.2), turning(0.3)), "wrong once is not enough"
    forecast.learn(0.1, turning(0.1))
    assert mx.array_equal(forecast.at(0.0), turning(0.1)), "wrong twice"


def test_it_is_followed_again_after_it_pointed_the_right_way_once():
    forecast = learned(1, turning, 0.9, 0.7, 0.5, 0.3, 0.1)
    last, step = turning(0.1), turning(0.1) - turning(0.3)
    forecast.learn(0.0, last + step)
    assert near(forecast.at(-0.05), last + 1.5 * step)


def test_where_it_pointed_the_right_way_it_is_followed_however_far_off():
    for share in (0.01, 50.0):
        followed = learned(1, line, FIRST, SECOND)
        came = line(SECOND) + share * (line(THIRD) - line(SECOND))
        followed.learn(THIRD, came)
        assert near(followed.at(0.4), came + (came - line(SECOND)) / 2)
    stood = learned(1, line, FIRST, SECOND)
    for sigma in (THIRD, NEXT):
        stood.learn(sigma, line(SECOND))
    stood.learn(0.2, line(0.2))
    assert mx.array_equal(stood.at(0.15), line(0.2)), "nothing came: nothing says that it was right"


def test_before_it_could_be_wrong_it_is_the_plain_line():
    assert near(learned(1, line, THIRD, NEXT).at(0.2), line(0.2)), "two values: nothing was forecast yet"


def test_it_waits_for_nothing():
    """A value that cannot be made: whoever waits for it gets its error."""
    made = []

    def failing():
        made.append(None)
        return mx.linalg.inv(mx.zeros((3, 3)), stream=mx.cpu)[0]

    forecast = Forecast(1)
    for sigma in (FIRST, SECOND, THIRD):
        forecast.learn(sigma, failing())
    expected = forecast.at(NEXT)
    assert len(made) == 3
    with pytest.raises(RuntimeError, match="LU factorization failed"):
        mx.eval(expected)


@pytest.mark.parametrize("order", ORDERS.values())
def test_another_shape_starts_anew(order):
    forecast = learned(order, line, FIRST, SECOND)
    other = mx.zeros((1, 4))
    forecast.learn(THIRD, other)
    assert forecast.shape == (1, 4)
    assert mx.array_equal(forecast.at(NEXT), other)
    assert [array.shape for array in forecast.kept] == [(1, 4)]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("order", ORDERS.values())
def test_the_values_number_format_is_kept(order, dtype):
    forecast = learned(order, lambda sigma: parabola(sigma).astype(dtype), 0.9, 0.8, 0.7, 0.6)
    assert forecast.at(0.55).dtype == dtype
    assert {array.dtype for array in forecast.kept if array.size > 1} == {dtype}


@pytest.mark.parametrize("order", ORDERS.values())
def test_no_more_is_kept_than_it_needs(order):
    forecast = learned(order, line, *(1 - step / 10 for step in range(9)))
    assert len([array for array in forecast.kept if array.size > 1]) == order + 1


def test_nothing_is_known_before_the_first_value():
    assert Forecast(1).shape is None and Forecast(1).kept == []
    with pytest.raises(IndexError):
        Forecast(1).at(0.5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sigmas", [(0.9, 0.9), (0.9, 0.9, 0.9), (0.9, 0.8, 0.8), (0.9, 0.9, 0.8), (0.8, 0.9, 0.8)])
def test_points_of_one_sigma_tell_no_direction(order, sigmas):
    """A constant is forecast as what it is, and a line between two points of one σ has no slope."""
    forecast = learned(order, lambda sigma: mx.ones(3), *sigmas)
    for sigma in (0.9, 0.85, 0.75, 0.7):
        assert near(forecast.at(sigma), mx.ones(3)), sigma
    kept = sigmas[-order - 1 :]
    if len(set(kept)) < len(kept):
        last = mx.array([1.0, 2.0, 3.0])
        forecast.learn(sigmas[-1], last)
        assert mx.array_equal(forecast.at(0.6), last)


def test_two_points_of_a_parabola_are_a_line():
    assert near(learned(2, parabola, FIRST, SECOND).at(THIRD), 2 * parabola(SECOND) - parabola(FIRST))


def test_it_is_carried_back_as_well_as_on():
    forecast = learned(1, line, 0.5, 0.7)
    assert near(forecast.at(0.9), line(0.9))
    assert mx.array_equal(forecast.at(0.95), line(0.7))
