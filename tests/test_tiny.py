"""The tiny checkpoints themselves: every pipeline and command runs on them, and gives the same picture twice."""

import os
import sys

import numpy as np
import pytest

from tests.tiny.cases import CASES, Case, case

pytest_plugins = ["tests.tiny.fixtures"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_runs_are_bit_identical(case: Case, tiny, eager):
    model = case.build(tiny)
    first, second = case.generate(model, tiny), case.generate(model, tiny)
    assert first.shape == (case.size[1], case.size[0], 3)
    assert first.std() > 1, "the picture is flat"
    assert np.array_equal(first, second)
