"""SeaCache's filter against the paper's formula in two dimensions, two public implementations, and its limits."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin.methods.seacache import response, sea_filter

DATA = Path(__file__).parent / "data" / "seacache"
SIDES = st.integers(1, 9)
SIGMAS = st.floats(0, 1)


def signal(seed, tokens, width=3, batch=2):
    return np.random.default_rng(seed).standard_normal((batch, tokens, width)).astype(np.float32)


def formula(tokens, sigma, grid, power=2.0):
    """The paper's filter as it is written: a Wiener gain over the two-dimensional spectrum, of unit mean."""
    picture = tokens.reshape(len(tokens), *grid, -1).astype(np.float64)
    gains = []
    for length in grid:
        frequency = np.minimum(np.arange(length), length - np.arange(length)) / length
        clean = 1 / (frequency**power + 1e-16)
        gains.append((1 - sigma) * clean / ((1 - sigma) ** 2 * clean + sigma**2 + 1e-16))
    gain = np.outer(*gains)
    spectrum = np.fft.fft2(picture, axes=(1, 2)) * (gain / gain.mean())[None, :, :, None]
    return np.fft.ifft2(spectrum, axes=(1, 2)).real.reshape(tokens.shape)


@given(rows=SIDES, columns=SIDES, sigma=st.floats(1e-4, 1 - 1e-4), power=st.floats(0.5, 4), seed=st.integers(0, 99))
def test_is_the_papers_formula(rows, columns, sigma, power, seed):
    tokens = signal(seed, rows * columns)
    filtered = np.array(sea_filter(mx.array(tokens), sigma, (rows, columns), power))
    np.testing.assert_allclose(filtered, formula(tokens, sigma, (rows, columns), power), atol=1e-5 * rows * columns)


@pytest.mark.parametrize("name", ["mlx-arsenal", "vllm-omni"])
def test_answers_as_a_public_implementation_does(name):
    recorded = json.loads((DATA / f"{name}.json").read_text())
    for case in recorded["cases"]:
        tokens = signal(case["seed"], case["grid"][0] * case["grid"][1], recorded["width"], batch=1)
        filtered = sea_filter(mx.array(tokens), case["sigma"], tuple(case["grid"]), case["power"])
        np.testing.assert_allclose(
            np.array(filtered).ravel(), case["filtered"], rtol=1e-4, atol=1e-5, err_msg=str(case)
        )


@given(rows=SIDES, columns=SIDES, sigma=SIGMAS, factor=st.floats(-3, 3))
def test_is_linear(rows, columns, sigma, factor):
    grid, first, second = (rows, columns), signal(1, rows * columns), signal(2, rows * columns)
    whole = sea_filter(mx.array(first + factor * second), sigma, grid)
    parts = sea_filter(mx.array(first), sigma, grid) + factor * sea_filter(mx.array(second), sigma, grid)
    np.testing.assert_allclose(np.array(whole), np.array(parts), atol=1e-4 * rows * columns)


@given(length=st.integers(1, 200), sigma=SIGMAS, power=st.floats(0.5, 4))
def test_the_response_has_mean_one_and_falls_with_frequency(length, sigma, power):
    gain = response(length, sigma, power)
    assert gain.shape == (length,)
    assert gain.mean() == pytest.approx(1)
    rising = gain[: length // 2 + 1]
    assert (np.diff(rising) <= 1e-12).all()
    np.testing.assert_allclose(gain[1:], gain[1:][::-1])


def test_without_noise_the_signal_stays_as_it_is():
    tokens = signal(0, 12)
    np.testing.assert_allclose(np.array(sea_filter(mx.array(tokens), 0.0, (3, 4))), tokens, atol=1e-5)


def test_pure_noise_leaves_nothing_but_the_mean():
    tokens = signal(0, 12)
    filtered = np.array(sea_filter(mx.array(tokens), 1.0, (3, 4)))
    mean = np.broadcast_to(12 * tokens.mean(axis=1, keepdims=True), tokens.shape)
    np.testing.assert_allclose(filtered, mean, atol=1e-2)


def test_more_noise_keeps_less_of_the_fine_detail():
    checks = np.indices((8, 8)).sum(axis=0).reshape(1, 64, 1) % 2 * 2.0 - 1
    left = [float(mx.abs(sea_filter(mx.array(checks), sigma, (8, 8))).max()) for sigma in (0.05, 0.3, 0.6, 0.9)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.1 * left[0]


def test_tokens_behind_the_picture_are_dropped_and_others_never_mixed():
    tokens = signal(0, 12 + 5)
    filtered = np.array(sea_filter(mx.array(tokens), 0.7, (3, 4)))
    assert filtered.shape == (2, 12, 3)
    np.testing.assert_array_equal(filtered, np.array(sea_filter(mx.array(tokens[:, :12]), 0.7, (3, 4))))
    alone = np.array(sea_filter(mx.array(tokens[1:, :, 2:]), 0.7, (3, 4)))
    np.testing.assert_allclose(filtered[1:, :, 2:], alone, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_filtered_in_float32():
    tokens = mx.array(signal(0, 12)).astype(mx.bfloat16)
    filtered = sea_filter(tokens, 0.5, (3, 4))
    assert filtered.dtype == mx.float32
    np.testing.assert_allclose(np.array(filtered), formula(np.array(tokens.astype(mx.float32)), 0.5, (3, 4)), atol=1e-5)


def test_too_few_tokens_for_the_grid_are_refused():
    with pytest.raises(ValueError, match="11 tokens do not fill a grid of 3 by 4"):
        sea_filter(mx.zeros((1, 11, 2)), 0.5, (3, 4))
