"""What the frontier's benchmark makes of its rows; the pictures themselves are for the benchmark."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def frontier():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import frontier

        yield frontier
    finally:
        sys.path.remove(str(BENCHMARKS))
        for path in [path for path in sys.path if path.startswith(str(BENCHMARKS))]:
            sys.path.remove(path)


def rows(method, setting, computed, psnrs):
    fixed = {"method": method, "setting": setting, "steps": 50, "guidance": 4.0, "computed": computed}
    return [{**fixed, "pair": pair, "psnr": psnr, "ssim": 0.99} for pair, psnr in enumerate(psnrs)]


ARGS = Namespace(shares=[0.5, 0.25], pairs=2)


def test_a_cell_has_the_nearest_setting_with_mean_and_worst(frontier):
    made = rows("schedule", "2x", 25, (50.0, 40.0)) + rows("schedule", "1.7x", 29, (60.0, 50.0))
    found = frontier.points(made, pictures=2)
    assert "| schedule | 45.0 / 40.0, .990 / .990 | – |" in frontier.table(found, ARGS)


def test_another_share_is_said_and_a_far_one_left_out(frontier):
    found = frontier.points(rows("DualCache", "a", 27.0, (30.0, 30.0)), pictures=2)
    assert "| DualCache | 30.0 / 30.0, .990 / .990 at 54% | – |" in frontier.table(found, ARGS)


def test_a_setting_that_lacks_pictures_is_left_out(frontier):
    assert not frontier.points(rows("schedule", "2x", 25, (50.0,)), pictures=2)


def test_gains_are_over_the_same_share(frontier):
    made = rows("schedule", "2x", 25, (50.0, 40.0)) + rows(frontier.PLAIN, "25", 25, (44.0, 41.0))
    text = frontier.table(frontier.points(made, pictures=2), ARGS)
    assert "| 50 steps, guidance 4, over plain, fewer steps | +2.5 / -1.0 | – |" in text
    assert "| 50 steps, guidance 4, over the best other method | – | – |" in text


def test_the_best_other_method_is_that_with_the_highest_mean(frontier):
    made = rows("schedule", "2x", 25, (50.0, 40.0)) + rows("TeaCache", "0.1", 25, (48.0, 30.0))
    made += rows("EasyCache", "0.2", 25, (42.0, 41.0)) + rows("schedule, reuse", "2x+reuse", 25, (60.0, 60.0))
    text = frontier.table(frontier.points(made, pictures=2), ARGS, link="plot.png")
    assert "| 50 steps, guidance 4, over the best other method | +3.5 / -1.0 | – |" in text
    assert text.index("(plot.png)") < text.index("<details>"), "the plot is not folded"


def test_a_threshold_is_found_for_a_share(frontier):
    steps, change = 50, 0.03  # of the demo model's polynomial, within its range
    found = frontier.thresholds("TeaCache", steps, [[None, *[change] * (steps - 1)]], [0.75, 0.5, 0.35])
    assert list(found) == [0.75, 0.5, 0.35]
    assert sorted(found.values()) == list(found.values())
    gate = frontier.gate_of("TeaCache", steps)(found[0.5])
    computed = sum(not gate(step, lambda: change).skip for step in range(steps))
    assert computed == pytest.approx(25, abs=2)


def test_the_table_is_written_between_the_marks_only(frontier, tmp_path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- frontier -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    frontier.write_table("new", file)
    assert file.read_text() == "before\n<!-- frontier -->\n\nnew\n<!-- end -->\nafter\n<!-- end -->\n"
    with pytest.raises(SystemExit, match="has no line"):
        frontier.write_table("new", BENCHMARKS / "frontier.py")


def test_easycache_has_a_threshold_for_a_share_too(frontier):
    steps, change = 50, 0.02
    found = frontier.thresholds("EasyCache", steps, [[None, *[change] * (steps - 1)]], [0.75, 0.5])
    gate = frontier.gate_of("EasyCache", steps)(found[0.5])
    assert sum(not gate(step, lambda: change).skip for step in range(steps)) == pytest.approx(25, abs=4)


def test_magcache_has_settings_by_the_variants_ratios_and_none_without_them(frontier, monkeypatch):
    """Nothing is recorded for it: its gate reads nothing."""
    demo = frontier.variant_of_the_model()
    monkeypatch.setattr(frontier, "variant_of_the_model", lambda: demo.replace(mag_ratios=None))
    assert frontier.settings("MagCache", 50, 4.0, ARGS, []) == {}
    ratios = tuple(1 - 0.01 * (step % 3) for step in range(50))
    monkeypatch.setattr(frontier, "variant_of_the_model", lambda: demo.replace(mag_ratios=ratios))
    args = Namespace(shares=[0.75, 0.5])
    found = frontier.settings("MagCache", 50, 4.0, args, [])
    assert list(found.values()) == [0.75, 0.5] and all(text.startswith("magcache:") for text in found)
    for text, share in found.items():
        gate = frontier.gate_of("MagCache", 50)(float(text.partition(":")[2]))
        assert sum(not gate(step, float).skip for step in range(50)) / 50 == pytest.approx(share, abs=0.08)
