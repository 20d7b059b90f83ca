"""Traces, fits and the files made of them: numbers only, no mflux."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mflux_teacache_plugin.calibration import coefficient_file, fit, propose, traces
from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, analyse
from mflux_teacache_plugin.calibration.recommend import choose, recommending
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.measure.metrics import Summary
from mflux_teacache_plugin.measure.results import Cost, Row
from mflux_teacache_plugin.variants import Profile, Provenance, Variant, read_variant
from mflux_teacache_plugin.variants.catalog import packaged_folder

changes = st.floats(0.01, 1.0)


def groups_of(polynomial, prompts=4, pairs=12, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(prompts):
        signal = random.uniform(0.05, 0.5, pairs)
        yield signal, np.polyval(polynomial, signal) + noise * random.standard_normal(pairs)


def a_variant(**more):
    facts = {"id": "test", "adapter": "flux1", "models": ("me/test",), "weights_licence": "none"}
    return Variant(**{**facts, "provenance": Provenance(source="a test"), **more})


# ---- fits ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 5), min_size=1, max_size=4).filter(lambda rises: max(rises) > 0.1))
@settings(max_examples=25, deadline=None)
def test_a_rising_polynomial_is_found_again(rises):
    true = [*reversed(rises), 0.0]  # coefficients >= 0 rise on every interval
    found = fit.fit_polynomial(list(groups_of(true)))
    at = np.linspace(*found.span, 50)
    assert np.allclose(found(at), np.polyval(true, at), atol=1e-5)


@given(st.lists(st.lists(st.tuples(changes, changes), min_size=3, max_size=8), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_monotone_polynomial_is_one(prompts):
    groups = [tuple(np.array(pairs).T) for pairs in prompts]
    found = fit.fit_polynomial(groups)
    assert len(found.coefficients) == 5 and found.coefficients[-1] == 0.0
    assert np.isfinite(found.coefficients).all()
    assert found.span[0] == min(signal.min() for signal, _ in groups)
    if found.monotone:
        values = np.polyval(found.coefficients, np.linspace(0, found.span[1], 200))
        assert (np.diff(values) >= -1e-6 * (1 + values.max())).all() and values[0] >= -1e-9


def test_noise_does_not_raise_the_degree():
    noisy = list(groups_of([2.0, 0.0], prompts=6, noise=0.1))
    assert fit.fit_polynomial(noisy).degree == 1


def test_falling_is_allowed_where_forbidding_it_costs_much():
    hill = [-4.0, 2.2, 0.0]  # it falls from 0.275 on
    assert not fit.fit_polynomial(list(groups_of(hill))).monotone


@given(st.integers(5, 200), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_profile_holds_for_other_step_counts(steps, seed):
    """A change that depends on σ alone is predicted exactly between the knots' ends, whatever the steps."""
    random = np.random.default_rng(seed)
    sigma = np.concatenate([[1.0], np.sort(random.uniform(0.02, 0.99, steps - 1))[::-1]])
    outputs = [np.diff(-3.0 * sigma)] * 2
    profile = fit.fit_profile([sigma, sigma], outputs)
    assert len(profile.sigma) <= fit.MOST_KNOTS
    assert profile.change[0] == 0 and (np.diff(profile.change) >= 0).all() and (np.diff(profile.sigma) < 0).all()
    other = np.linspace(1.0, sigma[-1], 7)
    assert np.allclose(fit.changes_at(profile, other), np.diff(-3.0 * other))


def test_what_depends_on_the_step_is_predicted_by_the_profile_and_not_by_the_signal():
    random = np.random.default_rng(1)
    sigma = np.linspace(1, 0.05, 20)
    told = [Trace(f"p{i}", sigma, random.uniform(0.1, 0.3, 19), np.linspace(0.5, 0.1, 19)) for i in range(5)]
    analysis = analyse(told)
    assert analysis.best == PROFILE and analysis.scores[PROFILE].r2 > 0.999
    assert analysis.scores[OWN].r2 < 0.2, "the in-sample R2 would flatter it"
    assert (analysis.generations, analysis.prompts, analysis.pairs) == (5, 5, 5 * 18)


def test_seeds_of_one_prompt_are_left_out_together():
    sigma = np.linspace(1, 0.05, 6)
    told = [Trace("one prompt", sigma, np.full(5, 0.1), np.full(5, 0.1)) for _ in range(3)]
    with pytest.raises(TraceError, match="one prompt is not enough"):
        analyse(told)


def test_a_published_polynomial_stays_unless_ours_is_clearly_better():
    told = [
        Trace(f"p{index}", np.linspace(1, 0.1, 13), signal, output)
        for index, (signal, output) in enumerate(groups_of([0.5, 0.0], noise=0.002))
    ]
    good, bad = (a_variant(polynomial=(0, 0, 0, slope, 0), range=(0.01, 1.0), threshold=0.1) for slope in (0.5, 0.9))
    kept = propose.numbers(analyse(told, good), told, good)
    assert (kept["polynomial"], kept["threshold"]) == (good.polynomial, 0.1)
    ours = propose.numbers(analyse(told, bad), told, bad)
    assert np.polyval(ours["polynomial"], 0.3) == pytest.approx(0.15, rel=0.02)
    share = propose.skipped_share(ours["polynomial"], ours["range"], ours["threshold"], told)
    assert share == pytest.approx(propose.SKIPPED_SHARE, abs=0.12)


# ---- trace files -----------------------------------------------------------------------------------------------------


def write_trace(path, **changes):
    branch = {"signal_change": [0.1, 0.2, 0.3], "output_change": [0.2, 0.4, 0.6], "residual_change": [0.2, 0.3, 0.4]}
    recipe = {"variant": "test", "prompt": "a fox", "seed": 7}
    traces.write_generation(path, recipe, [1.0, 0.8, 0.5, 0.2], [branch, branch])
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_what_is_written_is_read(tmp_path):
    (trace,) = traces.read(write_trace(tmp_path / "t.json"))
    assert (trace.recipe["variant"], trace.prompt, trace.recipe["seed"], len(trace.branches)) == ("test", "a fox", 7, 2)
    assert trace.sigma.tolist() == [1.0, 0.8, 0.5, 0.2]
    assert trace.signal.tolist() == [0.1, 0.2, 0.3] and trace.output.tolist() == [0.2, 0.4, 0.6]
    assert trace.branches[1]["residual_change"].tolist() == [0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"variant": 3}, "variant"),
        ({"output_change": []}, "output_change"),
        ({"output_change": [[0.1, "x", 0.2]]}, "output_change: expected numbers"),
        ({"output_change": [[0.1, -1.0, 0.2]]}, "output_change: expected finite"),
        ({"output_change": [[0.1]]}, "4 steps or more"),
        ({"signal_change": [[0.1, 0.2]]}, r"signal_change: expected \(1, 3\) numbers, got \(1, 2\)"),
        ({"signal_change": [[0.1, 0.2, 0.3]] * 2}, r"signal_change: expected \(1, 3\) numbers, got \(2, 3\)"),
        ({"sigma": [1.0, 0.5, 0.6, 0.2]}, "sigma: expected falling"),
        ({"sigma": [1.0, 0.5]}, r"sigma: expected \(4,\) numbers, got \(2,\)"),
        ({"branches": [[{"output_change": [1.0]}]]}, "branches.output_change"),
        ({"branches": [[3]]}, "branches"),
    ],
)
def test_a_bad_trace_names_the_file_and_the_key(change, told, tmp_path):
    path = write_trace(tmp_path / "t.json", **change)
    with pytest.raises(TraceError, match=r"t\.json") as raised:
        traces.read(path)
    assert re.search(told, str(raised.value)), raised.value


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["output_change", "x"]), inner),
    max_leaves=12,
)
keys = st.sampled_from(["variant", "output_change", "signal_change", "sigma", "branches", "prompt", "seed"])


@given(st.dictionaries(keys, json_values))
@settings(max_examples=80, deadline=None)
def test_whatever_a_trace_file_holds_it_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("traces") / "t.json"
    path.write_text(json.dumps(value))
    try:
        traces.read(path)
    except TraceError as error:
        assert str(path) in str(error)


# ---- coefficient files -----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t\"'\\"), min_size=1, max_size=60)


@given(texts.filter(str.strip), st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_rendered_file_reads_as_the_variant_it_came_from(tmp_path_factory, notes, polynomial, first):
    sigma = tuple(np.round(np.linspace(1, 0.1, 40), 5).tolist())
    variant = a_variant(
        polynomial=tuple(polynomial),
        threshold=0.2,
        profile=Profile(sigma=sigma, change=tuple(float(i) for i in range(40))),
        recommended="2x",
        guard={"first": first, "last": 1},
        provenance=Provenance(source="a test", notes=notes, fitted=True),
    )
    path = tmp_path_factory.mktemp("files") / "test.toml"
    path.write_text(coefficient_file.render(variant, "made\nby a test"), encoding="utf-8")
    assert read_variant(path) == variant


def test_every_shipped_file_survives_rendering(tmp_path):
    for path in sorted(packaged_folder().glob("*.toml")):
        again = tmp_path / path.name
        again.write_text(coefficient_file.render(read_variant(path), "again"), encoding="utf-8")
        assert read_variant(again) == read_variant(path)


# ---- which setting ---------------------------------------------------------------------------------------------------


def a_row(setting, computed, ssim, psnr, fewer_psnr):
    cost = Cost(computed, seconds=1.0, step_seconds=0.1, wall=1.0, memory=1, mlx_memory=1)
    near, fewer = (Summary(s, s, p, p, None) for s, p in ((ssim, psnr), (0.9, fewer_psnr)))
    whole = {"fewer_speedup": 2.0, "whole": None, "whole_quality": None, "advice": ""}
    shares = {"skipped": 0.5, "speedup": 2.0, "ideal": 2.0}
    return Row("m", setting, 50, cost, **shares, quality=near, fewer=cost, fewer_quality=fewer, **whole)


def test_the_fastest_good_setting_that_beats_plain_fewer_steps_is_chosen():
    tried = [
        a_row("3x", 10, 0.90, 25.0, 20.0),
        a_row("0.4", 15, 0.98, 28.0, 30.0),
        a_row("2x", 20, 0.98, 35.0, 30.0),
        a_row("1.5x", 30, 0.99, 40.0, 30.0),
    ]
    choice = choose(tried, 0.97)
    assert choice.setting == "2x"
    assert "0.4 is faster, but plain mflux with as many steps comes nearer" in choice.why


def test_it_says_so_when_nothing_beats_plain_fewer_steps():
    choice = choose([a_row("0.4", 15, 0.98, 28.0, 30.0), a_row("2x", 20, 0.99, 29.0, 30.0)], 0.97)
    assert choice.setting == "0.4"
    assert "Nothing that was tried comes nearer than plain mflux with as many steps." in choice.why


def test_it_says_so_when_no_setting_is_good_enough():
    choice = choose([a_row("2x", 20, 0.93, 25.0, 20.0)], 0.97)
    assert choice.setting is None and "2x came nearest with 0.930" in choice.why


def test_the_recommended_setting_and_the_reasons_go_into_the_variant():
    variant = a_variant(
        polynomial=(0, 0, 0, 1, 0), threshold=0.1, provenance=Provenance(source="a", notes=propose.UNSEEN)
    )
    rows = [a_row("0.4", 15, 0.98, 28.0, 30.0), a_row("2x", 20, 0.98, 35.0, 30.0)]
    found = recommending(variant, rows, choose(rows, 0.97), 0.97, ["why"])
    assert (found.threshold, found.recommended, found.provenance.notes) == (0.4, "2x", "why")
