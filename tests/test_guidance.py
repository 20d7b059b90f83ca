"""What guidance can do without: its second prediction, where that changes nothing and where `cfg_end` leaves it out.

On mflux's own loops and tiny transformers, whose real forwards are counted.
"""

import gc
import json
import weakref
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest

from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.choose import registry
from mflux_teacache_plugin.host import bridge
from mflux_teacache_plugin.host.layers import stand_before
from tests.support import ALWAYS, NEVER
from tests.test_families import numbers, state
from tests.tiny.commands import run_command
from tests.tiny.families import SIDE, STEPS, family

pytestmark = pytest.mark.usefixtures("eager")

#: Where mflux makes the second prediction at guidance 1 too.
IDLE = ["qwen-image", "qwen-image:from-image", "qwen-image:edit", "flux3-klein", "flux3-klein:edit"]


@pytest.fixture(scope="module")
def photo(tiny):
    return tiny.pictures.photo


@contextmanager
def counted(case, model):
    """Every forward of the transformer that is really made: the predictions in it, 2 in a batch of both."""
    seen: list[int] = []
    adapter = registry().adapters[case.adapter]
    batched = adapter.second_call is not None and adapter.second_call.batch

    def watched(call, *args, **kwargs):
        output = call(*args, **kwargs)
        seen.append(output.shape[0] if batched else 1)
        return output

    undo = stand_before(
        getattr(model, adapter.transformer), "__call__", watched
    )  # the first, so nothing answers before it
    try:
        yield seen
    finally:
        undo()


def close(a, b):
    """Up to rounding, in float32."""
    return mx.abs(a - b).max().item() < 1e-5 * mx.abs(a).max().item()


@pytest.mark.parametrize("id", IDLE)
@pytest.mark.parametrize("method", ["cuts", "2x", "2x+reuse"])
def test_at_guidance_1_the_second_call_is_answered_by_the_first(id, method, photo):
    case = family(id)
    with case.model() as model:
        before = state(model)
        with counted(case, model) as calls:
            _, plain = case.generate(model, photo, guidance=1.0)
        with apply_teacache(model, method) as handle, counted(case, model) as left:
            image, latents = case.generate(model, photo, guidance=1.0)
        assert state(model) == before
    last, steps = handle.stats.last, STEPS - case.late
    assert last.fault is None and last.idle and len(calls) == 2 * steps
    assert len(left) == last.computed == last.left_out == last.calls / 2 == (steps if method == "cuts" else steps // 2)
    assert image.generation_parameters["teacache_left_out"] == len(left)
    assert close(plain, latents) == (method == "cuts")


@pytest.mark.parametrize("id", ["qwen-image", "qwen-image:edit"])
@pytest.mark.parametrize(
    "method",
    [
        NEVER,
        ALWAYS,
        f"seacache:{NEVER:.9f}",
        "seacache:2",
        "dualcache:F=1,rdt=1e-9,warmup=0",
        "dualcache:F=1,rdt=0.99,warmup=2",
    ],
)
def test_methods_that_look_inside_see_one_branch(id, method, photo):
    case = family(id)
    with case.model() as model:
        before = state(model)
        _, plain = case.generate(model, photo, guidance=1.0)
        own = numbers(case, polynomial=(0, 0, 0, 0.01, 0) if method == ALWAYS else (0, 0, 0, 1, 0))
        with apply_teacache(model, method, variant=own) as handle:
            _, latents = case.generate(model, photo, guidance=1.0)
        assert state(model) == before
    last = handle.stats.last
    assert last.fault is None and last.left_out == last.calls / 2 > 0
    assert {decision.branch for decision in last.decisions} == {0}
    assert (last.skipped == 0) == close(plain, latents)


@pytest.mark.parametrize("id", ["qwen-image", "flux3-klein"])
def test_with_guidance_every_call_is_made(id, photo):
    case = family(id)
    with case.model() as model:
        _, plain = case.generate(model, photo, guidance=3.0)
        with apply_teacache(model, "cuts") as handle, counted(case, model) as calls:
            _, latents = case.generate(model, photo, guidance=3.0)
    assert len(calls) == 2 * STEPS and handle.stats.last.left_out == 0 and np.array_equal(plain, latents)


def test_seeds_in_a_row_with_negative_prompts_at_another_guidance_each(photo):
    case = family("qwen-image")
    runs = [
        {"seed": seed, "guidance": guidance, "negative_prompt": "ugly"}
        for seed, guidance in ((1, 1.0), (2, 4.0), (3, 1.0))
    ]
    with case.model() as model:
        plain = [case.generate(model, photo, **run)[1] for run in runs]
        with apply_teacache(model, "cuts") as handle:
            cut = [case.generate(model, photo, **run)[1] for run in runs]
    assert all(close(a, b) for a, b in zip(plain, cut, strict=True)) and np.array_equal(plain[1], cut[1])
    assert [each.left_out for each in handle.stats.generations] == [STEPS, 0, STEPS]


def test_a_method_that_cannot_run_costs_its_gain_and_not_this_one(photo):
    case = family("qwen-image")
    with case.model() as model:
        _, plain = case.generate(model, photo, 4, guidance=1.0)
        with apply_teacache(model, "1.5x") as handle, counted(case, model) as calls:
            _, latents = case.generate(model, photo, 4, guidance=1.0)
    assert "4 steps at 1.5x" in handle.stats.last.fault
    assert len(calls) == handle.stats.last.left_out == 4 and close(plain, latents)


@pytest.mark.parametrize(
    ("id", "asked"),
    [
        ("qwen-image", {"guidance": 1.0}),
        ("qwen-image", {}),
        ("krea-2", {}),
        ("anima", {}),
        ("iris", {}),
        ("ernie-image", {}),
    ],
)
def test_the_transformer_is_free_once_the_loop_is_over(id, asked, photo):
    case = family(id)
    with case.model() as model:
        handle = apply_teacache(model, "off", cfg_end=0.5)
        freed = []

        class LowRam:
            def call_after_loop(self, **_):
                gone = weakref.ref(model.transformer)
                model.transformer = None
                gc.collect()
                freed.append(gone() is None)

        model.callbacks.register(LowRam())
        case.generate(model, photo, **asked)
        assert freed == [True] and handle.stats.last.left_out >= STEPS // 2


QWEN = ["mflux-generate-qwen", "--prompt", "x", "--width", SIDE, "--height", SIDE, "--seed", 7, "--metadata"]


@pytest.fixture
def said(tiny, capsys):
    """Run a command; gives what TeaCache said, and what the picture records."""

    def run(command, *argv):
        capsys.readouterr()
        bridge.install()
        try:
            saved = run_command(command, [str(word) for word in argv], tiny.folder)
        finally:
            bridge.uninstall()
        lines = [line[10:] for line in capsys.readouterr().err.splitlines() if line.startswith("TeaCache: ")]
        path = saved.path.with_suffix(".metadata.json")
        return lines, path, json.loads(path.read_text()), saved.pixels

    return run


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("environment", [None, "auto", "2x"])
def test_a_few_steps_at_guidance_1_are_just_the_cuts(environment, said, monkeypatch, photo):
    with family("qwen-image:edit").installed():
        argv = ["mflux-generate-qwen-edit", "--image-paths", photo, *QWEN[1:], "--steps", 4, "--guidance", 1]
        if environment is not None:
            monkeypatch.setenv("MFLUX_TEACACHE", environment)
        lines, path, recorded, _ = said(*argv, *([] if environment else ["--teacache"]))
        assert lines[0].startswith("no step is skipped: 4 steps at ")
        assert lines[1:] == ["4 of 8 transformer calls left out, nothing changed (guidance 1)"]
        assert recorded["teacache_method"] == "cuts" and recorded["teacache_left_out"] == 4
        again, *_ = said(*argv[:3], "-C", path, "--guidance", 1, "--metadata")  # mflux does not replay guidance here
        assert again == lines[1:]


def test_the_line_counts_both(said):
    with family("qwen-image").installed():
        lines, *_ = said(*QWEN, "--steps", 8, "--guidance", 1, "--teacache", "2x")
    assert lines[-1].startswith("skipped 4 of 8 steps (2x")
    assert lines[-1].endswith("; 4 of the other 8 transformer calls left out, nothing changed (guidance 1)")
