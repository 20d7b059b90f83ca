"""EasyCache decides as its authors' own function did on the same numbers; `benchmarks/rivals/easycache.py` recorded it."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.rivals.easycache import noise, velocity
from mflux_teacache_plugin.caching.gate import Facts, Setup
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import parse

RUNS = json.loads((Path(__file__).parent / "data/easycache/authors.json").read_text())["runs"]


def a_cache(text, steps):
    facts = Facts(tuple(1 - step / steps for step in range(steps)))
    return parse(text).cache(Setup(facts, Generation(steps)))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "{steps}-{threshold}-{ret_steps}".format(**run))
def test_skips_what_its_authors_skip_and_puts_the_same_in_their_place(run):
    cache = a_cache("easycache:{threshold},ret_steps={ret_steps}".format(**run), run["steps"])
    latents, goal = mx.array(noise(run["seed"])), mx.array(noise(run["seed"] + 100))
    for step in range(run["steps"]):
        made = cache.run(lambda x, step=step: velocity(x, 1 - step / run["steps"], goal, mx.tanh), latents)
        latents = latents - made / run["steps"]
        cache.end_step()
    assert cache.record.fault is None
    assert [decision.step for decision in cache.record.decisions if not decision.skipped] == run["computed"]
    np.testing.assert_allclose(np.array(latents).reshape(-1), run["latents"], rtol=1e-3, atol=1e-4)


def test_only_the_first_branch_is_read_and_each_gets_its_own():
    cache = a_cache("easycache:2,ret_steps=2", 6)
    answers = []
    for step in range(6):
        latents = mx.full((1, 2, 2), 1 + 0.01 * step)
        answers.append(
            [cache.run(lambda hidden, b=b, s=step: b * (hidden + 0.1 * s), hidden=latents) for b in (1.0, -5.0)]
        )
        cache.end_step()
    assert cache.record.fault is None and [d.skipped for d in cache.record.decisions] == [False] * 2 + [True] * 3 + [
        False
    ]
    for branch in range(2):
        above = answers[1][branch] - 1.01
        assert np.allclose(answers[3][branch], above + 1.03)


def test_where_other_tokens_come_with_the_latents_the_prediction_itself_stands_in():
    cache = a_cache("easycache:2,ret_steps=2", 5)
    for step in range(3):
        tokens = mx.concatenate([mx.full((1, 2, 3), 1 - 0.1 * step), mx.ones((1, 4, 3))], axis=1)
        answer = cache.run(lambda x, s=step: x[:, :2] + 0.01 * s, tokens)
        cache.end_step()
    assert cache.record.fault is None and cache.record.skipped == 1
    assert np.allclose(answer, 0.91)


def test_a_run_that_is_too_short_to_skip_is_refused():
    parse("easycache:0.2").check_steps(7)
    parse("easycache:0.2").check_steps(None)
    with pytest.raises(SettingsError, match="nothing to skip in 6 steps") as error:
        parse("easycache:0.2").check_steps(6)
    assert "easycache:0.2,ret_steps=2" in error.value.hint
