"""Schedules from published lists: to the letter where they were made, and how they are read elsewhere."""

from itertools import pairwise
from pathlib import Path

import mflux_demo_model as demo_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.checks import parse_steps
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.methods import published
from mflux_teacache_plugin.methods.published import schedule
from mflux_teacache_plugin.methods.speedup import Speedup
from mflux_teacache_plugin.variants import StepList, read_variant
from mflux_teacache_plugin.variants.catalog import packaged_folder

SHIPPED = {path.stem: read_variant(path).step_lists for path in sorted(packaged_folder().glob("*.toml"))}
#: What others published; a calibration's lists have a guidance.
WITH_LISTS = {id: lists for id, lists in SHIPPED.items() if lists and lists[0].guidance is None}

#: As published, written down a second time, apart from the files: by source and length.
PUBLISHED = {
    "flux1-dev": {
        ("LeMiCa", 26): "0-10,12,15,18,20,25,30,35,39,42,44-49",
        ("LeMiCa", 20): "0-7,9,12,15,19,24,31,38,43,46-49",
        ("LeMiCa", 15): "0-5,7,10,15,20,27,34,41,47,49",
        ("LeMiCa", 10): "0,1,3,7,14,21,28,35,42,49",
    },
    "flux2-klein-base-9b": {
        ("LeMiCa", 26): "0-20,25,35,43,47,49",
        ("LeMiCa", 20): "0-14,22,32,42,47,49",
        ("LeMiCa", 15): "0-9,17,25,33,41,49",
        ("LeMiCa", 10): "0,1,4,5,9,17,25,33,41,49",
    },
    "qwen-image": {
        ("MeanCache", 25): "0-16,24,32,40,43,45,47-49",
        ("MeanCache", 17): "0-8,10,17,24,31,38,45,48,49",
        ("MeanCache", 10): "0,1,3,7,14,21,28,35,42,49",
        ("LeMiCa", 25): "0-19,26,33,36,42,49",
        ("LeMiCa", 17): "0-10,15,22,29,36,42,49",
        ("LeMiCa", 10): "0,1,3,7,14,21,28,35,42,49",
    },
    "qwen-image-2512": {
        ("MeanCache", 25): "0-15,23,31,37,44-49",
        ("MeanCache", 17): "0-9,11,19,27,35,43,47,49",
        ("MeanCache", 10): "0,2,4,7,14,21,28,35,42,49",
        ("LeMiCa", 25): "0-10,12,14,16,19,23,28,34,39,42,44,46-49",
        ("LeMiCa", 17): "0-7,9,12,19,26,33,40,46,48,49",
        ("LeMiCa", 10): "0,2,4,8,15,22,29,36,43,49",
    },
    "z-image-base": {  # four of them are called after one step more than they name
        ("MeanCache", 25): "0-6,8,10-13,15-18,20,22,29,37,42,45,47-49",
        ("MeanCache", 20): "0-4,6,8,10,12,14,16,18,20,22,30,38,43,46,48,49",
        ("MeanCache", 17): "0-4,6,8,10,12,14,19,27,35,43,46,48,49",
        ("MeanCache", 15): "0-3,5,7,10,12,17,25,33,41,45,48,49",
        ("MeanCache", 13): "0-3,5,9,15,22,29,36,43,47,49",
    },
    "ernie-image": {
        ("LeMiCa", 25): "0-16,22,31,38,43,46-49",
        ("LeMiCa", 17): "0-10,17,27,37,44,48,49",
        ("LeMiCa", 10): "0,1,3,7,14,21,28,35,42,49",
    },
}

LISTS = st.sampled_from([*WITH_LISTS.values(), ()])


def run(steps, first=0):
    return Facts(tuple(1 - step / (first + steps) for step in range(first, first + steps)), first=first)


def test_the_files_hold_every_published_list_with_its_source():
    assert set(WITH_LISTS) == {*PUBLISHED, "z-image-turbo"}
    for id, lists in PUBLISHED.items():
        found = {(each.source.split(",")[0], len(each.computed)): each.computed for each in WITH_LISTS[id]}
        assert found == {key: parse_steps(text) for key, text in lists.items()}
        assert {each.steps for each in WITH_LISTS[id]} == {50}


def test_of_z_image_turbo_what_is_left_of_nine_steps_when_the_last_does_nothing():
    """Published as 0-3,5,7-9, 0-2,4,6,8,9 and 0-2,5,8,9; from 8 on nothing is computed, and the last step always is."""
    listed = [each.computed for each in WITH_LISTS["z-image-turbo"]]
    for text, ours in zip(("0-3,5,7-9", "0-2,4,6,8,9", "0-2,5,8,9"), listed, strict=True):
        assert set(ours) == {step for step in parse_steps(text) if step < 8} | {7}
    assert {each.steps for each in WITH_LISTS["z-image-turbo"]} == {8}


@pytest.mark.parametrize("id", WITH_LISTS)
def test_a_list_is_followed_to_the_letter_where_it_was_made(id):
    seen = set()
    for each in WITH_LISTS[id]:
        if len(each.computed) not in seen:  # of two the first
            assert schedule(WITH_LISTS[id], run(each.steps), len(each.computed)) == each.computed
        seen.add(len(each.computed))


@settings(max_examples=30)
@given(LISTS, st.sampled_from([8, 50]) | st.integers(3, 30), st.integers(0, 9))
def test_one_more_step_asked_for_never_loses_one(lists, steps, first):
    made = {len(each.computed) for each in lists if each.steps == steps and first == 0}
    schedules = {count: schedule(lists, run(steps, first), count) for count in range(2, steps + 1)}
    for count, computed in schedules.items():
        assert len(computed) == count and list(computed) == sorted(set(computed))
        assert computed[0] == 0 and computed[-1] == steps - 1
    for count in range(2, steps):
        assert count in made or set(schedules[count]) < set(schedules[count + 1])


@pytest.mark.parametrize("id", [id for id in WITH_LISTS if id != "z-image-turbo"])
@pytest.mark.parametrize("steps", [20, 25, 28])
def test_in_shorter_runs_as_many_steps_lie_as_dense(id, steps):
    """Before each tenth of the run there are as many of ten as in the list of ten, or of the fewest, but for two."""
    listed = min(WITH_LISTS[id], key=lambda each: len(each.computed))
    count = len(listed.computed)
    computed = schedule(WITH_LISTS[id], run(steps), count)
    for tenth in range(2, 10):
        here = sum(step < tenth / 10 * (steps - 1) for step in computed)
        there = published.counts(listed, [tenth / 10])[0]
        assert abs(here - there) <= 2
    assert max(after - before for before, after in pairwise(computed)) <= steps / 4


@pytest.mark.parametrize("count", [10, 14])
def test_a_run_that_begins_late_is_not_dense_at_its_beginning(count):
    early, late = (schedule(WITH_LISTS["flux1-dev"], run(30, first), count) for first in (0, 20))
    assert sum(step < 10 for step in early) > sum(step < 10 for step in late)
    assert sum(step >= 20 for step in early) < sum(step >= 20 for step in late)


def test_what_all_have_in_common_follows_from_the_files():
    lists = [each for lists in WITH_LISTS.values() for each in lists if each.steps == 50]
    found = {}
    for low, high in ((10, 12), (13, 17), (18, 22), (23, 26)):
        group = [each for each in lists if low <= len(each.computed) <= high]
        shares = np.mean(
            [published.counts(each, published.PLACES) / (len(each.computed) - 1) for each in group], axis=0
        )
        found[round(np.mean([len(each.computed) for each in group]))] = tuple(shares.round(2).tolist())
    assert found == published.COMMON


@pytest.mark.parametrize("count", [10, 12, 16, 25])
def test_without_a_list_the_beginning_is_dense_and_the_end_too(count):
    computed = schedule((), run(50), count)
    fifth = sum(step < 10 for step in computed)
    assert fifth >= 0.3 * count, "three tenths at least within the first fifth"
    assert sum(20 <= step < 40 for step in computed) < fifth
    assert computed[-1] == 49 and computed[-2] >= 41


def test_one_list_of_another_run_is_read_along_the_run():
    listed = StepList(steps=10, computed=(0, 1, 2, 5, 9))
    assert schedule((listed,), run(20), 5) == (0, 2, 4, 10, 19)


DOCS = Path(__file__).parents[1] / "docs" / "recommendations.md"


def as_text(steps):
    """Steps as they are published: `0-10,12,15`."""
    runs = [[steps[0], steps[0]]]
    for step in steps[1:]:
        if step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ",".join(
        f"{low}-{high}" if high > low + 1 else ",".join(map(str, range(low, high + 1))) for low, high in runs
    )


def test_the_table_of_what_is_recommended():
    """Each row's steps, recommendation and schedule; every file has one."""
    variants = {path.stem: read_variant(path) for path in packaged_folder().glob("*.toml")}
    rows = [line.strip("| ").split(" | ") for line in DOCS.read_text(encoding="utf-8").splitlines() if " | `" in line]
    rows = [row for row in rows if len(row) == 6 and row[1].isdecimal()]
    for id, steps, word, computes, *_ in rows:
        variant = variants.get(id.strip("`"))
        method = choose.recommended(variant)
        assert f"`{method}`" == word and (id == "no file") is (variant is None)
        if isinstance(method, Speedup):
            try:
                method.check_steps(int(steps))
                computed = method.schedule(variant, run(int(steps)))
                assert computes == f"{len(computed)}: {as_text(computed)}"
            except SettingsError:
                assert computes == "all"
    assert {row[0].strip("`") for row in rows} == {*variants, "no file"} - {demo_model.NAME}
