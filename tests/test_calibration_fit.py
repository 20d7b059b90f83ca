"""Traces, fits and the files made of them: numbers only, no mflux."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mflux_teacache_plugin import methods
from mflux_teacache_plugin.calibration import coefficient_file, fit, propose, schedules, traces
from mflux_teacache_plugin.calibration.fit import OWN, PROFILE, PUBLISHED
from mflux_teacache_plugin.calibration.stages import Group
from mflux_teacache_plugin.calibration.traces import Trace, TraceError
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.measure.metrics import Summary
from mflux_teacache_plugin.measure.results import Cost, Row
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.variants import Profile, Provenance, Variant, read_variant
from mflux_teacache_plugin.variants.catalog import packaged_folder
from mflux_teacache_plugin.variants.variant import StepList


def groups_of(polynomial, prompts=4, pairs=12, noise=0.0, seed=0):
    """Signal changes and output changes, both (prompts, pairs)."""
    random = np.random.default_rng(seed)
    signals = random.uniform(0.05, 0.5, (prompts, pairs))
    return signals, np.polyval(polynomial, signals) + noise * random.standard_normal(signals.shape)


def a_variant(**more):
    facts = {"id": "test", "adapter": "flux1", "models": ("me/test",), "weights_licence": "none"}
    return Variant(**{**facts, "provenance": Provenance(source="a test"), **more})


def a_trace(prompt="p", sigma=(1.0, 0.8, 0.5, 0.2), output=(0.2, 0.4, 0.6), **more):
    facts = {"command": "mflux-generate", "mflux": "0.24.0", "recipe": f"{len(sigma)} steps", "steps": len(sigma)}
    arrays = {"sigma": sigma, "output": output, **more}
    return Trace(prompt=prompt, **facts, **{key: tuple(map(float, row)) for key, row in arrays.items()})


# ---- fits ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 5), min_size=1, max_size=4).filter(lambda rises: max(rises) > 0.1))
@settings(max_examples=25, deadline=None)
def test_a_rising_polynomial_is_found_again(rises):
    true = [*reversed(rises), 0.0]  # coefficients >= 0 rise on every interval
    signals, outputs = groups_of(true)
    found, score = fit.fit_polynomial(signals, outputs)
    assert np.allclose(np.polyval(found, signals), outputs, atol=1e-5) and score.r2 > 0.999


@given(st.integers(2, 5), st.integers(3, 8), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_polynomial_never_falls_where_changes_were_seen(prompts, pairs, seed):
    signals, outputs = np.random.default_rng(seed).uniform(0.01, 1, (2, prompts, pairs))
    found, _ = fit.fit_polynomial(signals, outputs)
    assert len(found) == 5 and np.isfinite(found).all()
    values = np.polyval(found, np.linspace(signals.min(), signals.max(), 100))
    assert (np.diff(values, prepend=0) >= -1e-6 * (1 + values.max())).all()


def test_noise_does_not_raise_the_degree():
    found, _ = fit.fit_polynomial(*groups_of([2.0, 0.0], prompts=6, noise=0.1))
    assert found[:3] == [0.0, 0.0, 0.0] and found[3] == pytest.approx(2.0, rel=0.2)


def test_a_profile_is_the_mean_change_of_the_guided_prediction():
    told = [a_trace(prediction=row) for row in ((0.1, 0.2, 0.3), (0.3, 0.4, 0.5))]
    keys, scores = fit.numbers(told)
    assert keys["profile"].sigma == (1.0, 0.8, 0.5, 0.2)
    assert keys["profile"].change == pytest.approx((0.0, 0.2, 0.5, 0.9))
    assert set(keys) == {"profile"} and set(scores) == {PROFILE}, "no signal, no polynomial"


def test_what_depends_on_the_step_is_predicted_by_the_profile_and_not_by_the_signal():
    random = np.random.default_rng(1)
    run = {"sigma": np.linspace(1, 0.05, 20), "output": np.linspace(0.5, 0.1, 19)}
    _, scores = fit.numbers([a_trace(signal=random.uniform(0.1, 0.3, 19), **run) for _ in range(5)])
    assert scores[PROFILE].r2 > 0.999
    assert scores[OWN].r2 < 0.2, "the in-sample R2 would flatter it"


def test_a_published_polynomial_stays_unless_ours_is_clearly_better():
    signals, outputs = groups_of([0.5, 0.0], noise=0.002)
    sigma = np.linspace(1, 0.1, 13)
    told = [a_trace(sigma=sigma, signal=row, output=output) for row, output in zip(signals, outputs, strict=True)]
    good, bad = (a_variant(polynomial=(0, 0, 0, slope, 0), range=(0.01, 1.0), threshold=0.1) for slope in (0.5, 0.9))
    kept, scores = fit.numbers(told, good)
    assert (kept["polynomial"], kept["threshold"]) == (good.polynomial, 0.1) and PUBLISHED in scores
    ours, _ = fit.numbers(told, bad)
    assert np.polyval(ours["polynomial"], 0.3) == pytest.approx(0.15, rel=0.02)
    share = fit.skipped_share(ours["polynomial"], ours["range"], ours["threshold"], told)
    assert share == pytest.approx(fit.SKIPPED_SHARE, abs=0.12)


def test_what_is_tried_are_thresholds_around_the_own_one_and_speed_ups():
    signals, outputs = groups_of([0.5, 0.0])
    sigma = np.linspace(1, 0.1, 13)
    told = [a_trace(sigma=sigma, signal=row, output=output) for row, output in zip(signals, outputs, strict=True)]
    facts = {"id": "test", "adapter": "flux1", "models": ("me/test",), "weights_licence": "none"}
    variant = propose.variant_of(facts, told, None)
    assert (
        propose.UNSEEN in variant.provenance.notes and variant.provenance.recipe == "4 prompts, 13 steps, mflux 0.24.0"
    )
    tried = propose.settings(variant, told, schedules=False)
    assert tried[-5:] == ["1.33x", "1.5x", "2x", "3x", "4x"] and f"{variant.threshold:g}" in tried[:-5]
    assert 1 < len(tried[:-5]) <= 3 and sorted(tried[:-5], key=float) == tried[:-5]
    assert propose.settings(variant, told, schedules=True) == tried[:-5]


# ---- trace files -----------------------------------------------------------------------------------------------------


def write_trace(path, **changes):
    table = {**as_table(a_trace("a fox", signal=(0.1, 0.2, 0.3))), **changes}
    path.write_text("\n".join(coefficient_file.lines(table)))
    return path


def test_what_is_written_is_read(tmp_path):
    gram = np.random.default_rng(0).random((12, 12))
    trace = replace(a_trace('a "red" fox \\', prediction=(0.1, 1e-5, 0.25), growth=(1.1, 1.0, 0.9)), gram=gram)
    traces.write(tmp_path / "new" / "t.toml", trace)
    found = traces.read(tmp_path / "new" / "t.toml")
    assert found == trace and np.array_equal(found.gram, gram)


@pytest.mark.parametrize("content", [b"", b"nothing", np.zeros((3, 3)), np.full((4, 4), np.nan), np.array(["text"])])
def test_a_bad_gram_matrix_names_its_file(content, tmp_path):
    path = write_trace(tmp_path / "t.toml")
    if isinstance(content, bytes):
        path.with_suffix(".npy").write_bytes(content)
    else:
        np.save(path.with_suffix(".npy"), content)
    with pytest.raises(TraceError, match=r"t\.npy is no Gram matrix of 4 steps"):
        traces.read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"command": 3}, "command: expected text"),
        ({"output": []}, "output: expected a list"),
        ({"output": [0.1, "x", 0.2]}, r"output\[1\]: expected a number"),
        ({"output": [0.1]}, "output: 1 changes for 4 of sigma"),
        ({"signal": [0.1, 0.2]}, "signal: 2 changes for 4 of sigma"),
        ({"sigma": [1.0, 0.5, 0.6, 0.2]}, "sigma: expected at least two numbers between 0 and 1 that fall"),
        ({"outputs": [0.1]}, "did you mean output"),
    ],
)
def test_a_bad_trace_names_the_file_and_the_key(change, told, tmp_path):
    path = write_trace(tmp_path / "t.toml", **change)
    with pytest.raises(TraceError, match=r"t\.toml") as raised:
        traces.read(path)
    assert re.search(told, str(raised.value)), raised.value


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
        step_lists=[
            {"steps": 9, "computed": "0-3,8", "guidance": 4.0, "forecast": "reuse", "plain_is_nearer": first > 1}
        ],
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


def a_row(setting, computed, ssim, psnr, fewer_psnr, pictures=3):
    cost = Cost(computed, seconds=1.0, wall=1.0, memory=1, mlx_memory=1)
    near, fewer = (Summary(s, s, p, p) for s, p in ((ssim, psnr), (0.9, fewer_psnr)))
    whole = {"fewer_speedup": 2.0, "whole": None, "whole_quality": None, "advice": ""}
    shares = {"skipped": 0.5, "speedup": 50 / computed, "ideal": 50 / computed}
    return Row("m", setting, 50, pictures, cost, **shares, quality=near, fewer=cost, fewer_quality=fewer, **whole)


def test_the_fastest_good_setting_that_beats_plain_fewer_steps_is_recommended():
    variant = a_variant(
        polynomial=(0, 0, 0, 1, 0), threshold=0.1, provenance=Provenance(source="a", notes=propose.UNSEEN)
    )
    rows = [
        a_row("3x", 10, 0.90, 25.0, 20.0),  # changes the picture
        a_row("0.4", 15, 0.98, 28.0, 30.0),  # plain mflux with as many steps is nearer
        a_row("2x", 20, 0.98, 35.0, 30.0),
        a_row("0.2", 30, 0.99, 40.0, 30.0),
    ]
    found = propose.recommending(variant, rows, ["why"])
    assert (found.threshold, found.recommended, found.provenance.notes) == (0.2, "2x", "why")
    found = propose.recommending(variant, rows[-1:], ["why"])
    assert (found.threshold, found.recommended) == (0.2, None)
    found = propose.recommending(variant.replace(recommended="3x"), rows[-1:], ["why"])
    assert found.recommended is None, "what was recommended before goes"


def test_a_calibration_with_fewer_steps_is_named_beside_the_one_before():
    facts = {"id": "t", "adapter": "flux1", "models": ("t",), "weights_licence": "none"}
    more = propose.variant_of(facts, recorded(24), None)
    both = propose.variant_of(facts, recorded(12), more)
    assert both.profile == more.profile
    assert both.provenance.recipe == "3 prompts, 24 steps, mflux 0.24.0; then 3 prompts, 12 steps, mflux 0.24.0"
    assert propose.variant_of(facts, recorded(12), both) == both, "the same again is not named twice"
    noted = both.replace(provenance=replace(both.provenance, notes="R2 of old.\nAt 24 steps, guidance 4: old"))
    again = propose.variant_of(facts, recorded(24), noted)
    assert again.provenance.recipe == both.provenance.recipe and again.profile == more.profile
    assert again.provenance.notes.endswith("At 24 steps, guidance 4: old") and "old." not in again.provenance.notes


def test_tables_and_verdicts_are_of_each_group(capsys):
    rows = [a_row("2x", 25, 0.97, 35.0, 30.0), replace(a_row("auto", 50, 1.0, 99.0, 99.0), group="other", skipped=0.0)]
    output.print_findings(rows, {}, "text")
    first, second, verdicts = re.split(r"\n\n(?=other|m:)", capsys.readouterr().out.strip())
    assert first.startswith("m\n") and "2x" in first and second.startswith("other\n") and "auto" in second
    assert "2x: 2.00x as fast" in verdicts and "other: No setting skips a step here." in verdicts


def test_nothing_is_recommended_where_nothing_is_good_enough():
    variant = a_variant(profile=Profile(sigma=(1.0, 0.5), change=(0.0, 1.0)))
    found = propose.recommending(
        variant, [a_row("2x", 20, 0.93, 25.0, 20.0), a_row("3x", 15, 0.98, 28.0, 30.0)], ["why"]
    )
    assert found == variant.replace(provenance=Provenance(source="a test", notes="why"))


def test_what_is_recommended_holds_at_every_guidance():
    mild = [a_row("4x profile linear", 12, 0.98, 40.0, 30.0), a_row("2x profile linear", 25, 0.99, 50.0, 40.0)]
    hard = [a_row("4x even linear", 12, 0.80, 20.0, 19.0), a_row("2x even linear", 25, 0.97, 35.0, 30.0)]
    hard = [replace(row, group="hard") for row in hard]
    assert propose.recommending(a_variant(), mild, ["why"]).recommended == "4x"
    assert propose.recommending(a_variant(), mild + hard, ["why"]).recommended == "2x"
    assert propose.recommending(a_variant(), mild + hard[:1], ["why"]).recommended is None
    slower = (
        [a_row("0.2", 40, 0.99, 55.0, 50.0), *mild],
        [*hard, replace(a_row("0.2", 40, 0.9, 30.0, 29.0), group="hard")],
    )
    found = propose.recommending(a_variant(), [*slower[0], *slower[1]], ["why"])
    assert found.recommended == "2x", "the threshold is the slowest, and good at one guidance alone"


def test_settings_that_only_some_pictures_were_made_with_are_not_recommended():
    rows = [a_row("3x even reuse", 16, 0.99, 50.0, 30.0, pictures=1), a_row("2x profile linear", 25, 0.98, 40.0, 30.0)]
    assert propose.recommending(a_variant(), rows, ["why"]).recommended == "2x"


# ---- schedules -------------------------------------------------------------------------------------------------------


def predictions(steps, seed=0, size=60):
    """A run's: they drift, so that near ones are alike."""
    random = np.random.default_rng(seed)
    return random.standard_normal(size) + np.cumsum(0.3 * random.standard_normal((steps, size)), axis=0)


def integrated(values, sigma, computed, order, weights):
    """The squared errors of the gaps between computed steps, from the predictions themselves."""
    widths, total = weights * (sigma - np.append(sigma[1:], 0)), 0.0
    for at, (last, following) in enumerate(itertools.pairwise(computed)):
        missed = np.zeros_like(values[0])
        for step in range(last + 1, following):
            forecast = values[last]
            before = computed[at - 1] if order and at else last
            if before < last and sigma[last] - sigma[step] <= 1.0001 * (sigma[before] - sigma[last]):
                share = (sigma[last] - sigma[step]) / (sigma[before] - sigma[last])
                forecast = forecast + share * (values[last] - values[before])
            missed += widths[step] * (forecast - values[step])
        total += (missed**2).sum()
    return total


@given(st.integers(4, 9), st.integers(0, 1), st.integers(0, 1000), st.data())
@settings(max_examples=30, deadline=None)
def test_no_schedule_makes_a_smaller_error_than_the_optimum(steps, order, seed, data):
    count = data.draw(st.integers(3, steps))
    random = np.random.default_rng(seed)
    sigma = np.sort(random.uniform(0.01, 1, steps))[::-1]
    values, weights = predictions(steps, seed), random.uniform(0.5, 20, steps)
    cost = schedules.errors(values @ values.T, sigma, order, weights)
    found = schedules.optimum(cost, count)
    every = [(0, *inner, steps - 1) for inner in itertools.combinations(range(1, steps - 1), count - 2)]
    direct = {each: integrated(values, sigma, each, order, weights) for each in every}
    assert found in direct and direct[found] <= min(direct.values()) * (1 + 1e-6) + 1e-9
    for each in every:
        assert schedules.error_of(cost, each) == pytest.approx(direct[each], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("prompt_first", [True, False])
def test_two_branches_tell_what_another_guidance_would_have_predicted(prompt_first):
    prompted, without = predictions(8, 1), predictions(8, 2)
    branches = [prompted, without] if prompt_first else [without, prompted]
    rows = np.concatenate([without + 4 * (prompted - without), *branches])
    trace = replace(a_trace(sigma=np.linspace(1, 0.1, 8), output=[0.1] * 7), guidance=4.0, gram=rows @ rows.T)
    wanted = without + 10 * (prompted - without)
    assert np.allclose(schedules.gram_at(trace, 10.0), wanted @ wanted.T)
    assert np.allclose(schedules.gram_at(trace, 4.0), rows[:8] @ rows[:8].T)
    bent = np.concatenate([predictions(8, 3), *branches])  # a guidance of another kind
    assert np.allclose(schedules.gram_at(replace(trace, gram=bent @ bent.T), 10.0), bent[:8] @ bent[:8].T), (
        "what was recorded is taken as it is"
    )


def recorded(steps=24):
    sigma, found = np.linspace(1, 0.05, steps), []
    for seed in range(3):
        values = predictions(steps, seed)
        change = np.abs(np.diff(values, axis=0)).mean(axis=1) / np.abs(values[:-1]).mean(axis=1)
        found.append(replace(a_trace(sigma=sigma, output=change), guidance=4.0, gram=values @ values.T))
    return found


def test_the_ways_to_a_speed_up_compute_as_many_steps_and_begin_with_the_profiles():
    told = recorded()
    variant = propose.variant_of(
        {"id": "t", "adapter": "flux1", "models": ("t",), "weights_licence": "none"}, told, None
    )
    found = propose.ways(variant, None, told, 4.0)
    assert list(found) == ["1.33x", "1.5x", "2x", "3x", "4x"]
    for speedup, names in found.items():
        parsed = {name: methods.parse(way) for name, way in names.items()}
        assert {len(way.computed) for way in parsed.values()} == {int(24 / float(speedup[:-1]))}
        assert next(iter(names)) == f"{speedup} profile linear" and len(set(names.values())) == len(names) > 5
    assert propose.ways(variant, None, [replace(each, gram=None) for each in told], 4.0)["2x"].keys() <= {
        f"2x {where} {forecast}" for where in ("profile", "published", "even") for forecast in ("linear", "reuse")
    }, "without predictions nothing is an optimum"


def test_what_an_earlier_calibration_chose_is_tried_again_on_every_prompt():
    told = recorded()
    facts = {"id": "t", "adapter": "flux1", "models": ("t",), "weights_licence": "none"}
    there = StepList(steps=24, computed=(0, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 23), guidance=4.0, forecast="reuse")
    hard = StepList(steps=24, computed=(*range(11), 23), guidance=9.0, forecast="linear")
    existing = propose.variant_of(facts, told, None).replace(step_lists=[there, hard])
    found = propose.ways(existing, existing, told, 4.0)["2x"]
    earlier = ["2x earlier at guidance 4 reuse", "2x earlier at guidance 9 linear"]
    assert next(iter(found)) == "2x profile linear" and sorted(list(found)[1:3]) == earlier
    assert found["2x earlier at guidance 4 reuse"] == "steps:0,9-18,23+reuse"
    even = methods.parse(found["2x even linear"]).computed
    again = existing.replace(step_lists=(StepList(steps=24, computed=even, guidance=9.0, forecast="linear"),))
    names = {way: name for name, way in propose.ways(again, again, told, 4.0)["2x"].items()}
    assert "earlier" in names[found["2x even linear"]], "what is proposed too is still tried on every prompt"
    group = Group("m", None, 4.0, {"2x": dict(found)})
    others = [name for name in found if "earlier" not in name]
    rows = [a_row(name, 12, 0.9, 30.0 + place, 20.0) for place, name in enumerate(others)]
    group.rank([*rows, *(a_row(name, 12, 0.9, 10.0, 20.0) for name in earlier)])
    tried = group.case("a prompt", Command("mflux-generate"), 24, 2).settings
    assert tried[0] == "2x profile linear" and sorted(tried[1:3]) == earlier and tried[3:] == (others[-1],)


def test_the_time_decides_how_many_ways_are_tried():
    sigma = np.linspace(1, 0.1, 50)
    found, left = zip(
        *(propose.depth(sigma, 3, seconds=1.0, minutes=each) for each in (1, 40, 60, 120, 2000)), strict=True
    )
    assert found[0] == (1, 1) and found[-1] == (10, 3) and list(found) == sorted(found)
    assert left[0] < 0 < left[2] < left[-1], "half of the time is for moving steps, where the other half suffices"


TRIED = {"2x": {"2x profile linear": "steps:0-10,12,15,23", "2x even reuse": "steps:0-10,13,15,23+reuse"}}


@pytest.mark.parametrize(
    ("usual", "other", "plain", "chosen"),
    [
        (40.0, 42.0, 30.0, ("reuse", False)),
        (40.0, 40.5, 30.0, None),  # not worth a list
        (40.0, 40.5, 41.0, ("linear", True)),  # plain mflux wins, and that is said
        (40.0, 42.0, 43.0, ("reuse", True)),
    ],
)
def test_pictures_choose_a_schedule_its_forecast_and_whether_it_beats_plain(usual, other, plain, chosen):
    rows = [a_row("2x profile linear", 12, 0.9, usual, plain), a_row("2x even reuse", 12, 0.9, other, plain)]
    found, rows_of_it, needed = propose.step_lists(rows, TRIED, 24, 4.0)
    assert [row.setting for row in rows_of_it] == [
        "2x even reuse" if chosen and chosen[0] == "reuse" else "2x profile linear"
    ]
    assert needed == (chosen is not None)
    assert [(each.forecast, each.plain_is_nearer) for each in found] == [chosen or ("linear", False)]
    assert all((each.steps, each.guidance) == (24, 4.0) for each in found)


def test_a_second_calibration_keeps_the_lists_of_other_runs():
    old = [StepList(steps=24, computed=(0, 5, 23), guidance=guidance) for guidance in (4.0, 10.0)]
    new = [StepList(steps=24, computed=(0, 7, 23), guidance=4.0)]
    notes = "R2.\nAt 24 steps, guidance 4: old\nAt 24 steps, guidance 10: old"
    variant = a_variant(step_lists=old, provenance=Provenance(source="a", notes=notes))
    found = propose.recommending(variant, [], ["At 24 steps, guidance 4: new"], new, {(24, 4.0)})
    assert found.step_lists == (old[1], new[0])
    assert found.provenance.notes == "R2.\nAt 24 steps, guidance 10: old\nAt 24 steps, guidance 4: new"
    found = propose.recommending(found, [], ["At 24 steps, guidance 1: new"], (), {(24, 4.0)})
    assert found.step_lists == (old[1],), "what the profile does as well now needs no list"
    assert "guidance 10: old" in found.provenance.notes, "1 is not 10"
