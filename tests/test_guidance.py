"""What guidance can do without: its second prediction, where that changes nothing and where `cfg_end` leaves it out.

On mflux's own loops and tiny transformers, whose real forwards are counted.
"""

import gc
import json
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mflux_teacache_plugin import apply, choose
from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.caching.guidance import SecondCall
from mflux_teacache_plugin.choose import registry
from mflux_teacache_plugin.errors import SettingsError, UnsupportedModelError
from mflux_teacache_plugin.host import bridge
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.summary import summary
from tests.support import ALWAYS, NEVER
from tests.test_families import numbers, state
from tests.tiny.cases import case as klein_case
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


# ---- cfg_end ---------------------------------------------------------------------------------------------------------

#: One case of every adapter with a second prediction, and the guidance at which mflux makes none.
GUIDED = {
    "qwen-image": 1.0, "qwen-image:edit": 1.0, "qwen-image-2.1:guided": 1.0, "qwen-image-2.1:edit": 1.0,
    "qwen-image-2.1-controlnet": 1.0, "z-image": 1.0, "fibo": 1.0, "fibo:edit": 1.0, "krea-2": 1.0, "krea-2-controlnet": 1.0,
    "ernie-image": 1.0, "anima": 1.0, "ming": 1.0, "moss-image": 1.0, "iris": 1.0, "flux3-klein": 1.0, "flux3-klein:edit": 1.0,
}  # fmt: skip
CASES = [pytest.param(id, off, id=id) for id, off in GUIDED.items()]


def test_every_family_with_a_second_prediction_is_tried():
    served = {adapter.id for adapter in registry().adapters.values() if adapter.second_call is not None}
    assert served == {id.partition(":")[0] for id in GUIDED} | {"klein", "klein-base"}


@pytest.mark.parametrize(("id", "off"), CASES)
def test_steps_after_the_share_run_on_the_prompt_alone(id, off, photo, monkeypatch):
    """Before it they are plain mflux's to the bit; alone from the first step on, they are mflux's without guidance."""
    case = family(id)
    taken = []
    loop = SimpleNamespace(call_in_loop=lambda t, latents, **_: taken.append(latents))
    with case.model() as model:
        before = state(model)
        model.callbacks.register(loop)
        with counted(case, model) as calls:
            case.generate(model, photo, guidance=3.0)
        guided, taken[:] = list(taken), []
        with apply_teacache(model, "off", cfg_end=0.5) as handle, counted(case, model) as left:
            image, _ = case.generate(model, photo, guidance=3.0)
        half, taken[:] = list(taken), []
        _, plain = case.generate(model, photo, guidance=off)
        monkeypatch.setattr(apply, "cutoff", lambda steps, share: 0)
        with apply_teacache(model, "cuts", cfg_end=0.5):
            _, latents = case.generate(model, photo, guidance=3.0)
        model.callbacks.in_loop.remove(loop)
        assert state(model) == before
    last, steps = handle.stats.last, STEPS - case.silent
    assert last.fault is None and (sum(calls), sum(left)) == (2 * steps, 2 * steps - last.left_out)
    assert last.left_out == steps - STEPS // 2 and last.calls == 2 * steps
    assert all(np.array_equal(a, b) for a, b in zip(guided[: STEPS // 2], half, strict=False))
    assert not np.array_equal(guided[-1], half[-1]) and close(plain, latents)
    recorded = image.generation_parameters
    assert (recorded["teacache_method"], recorded["cfg_end"]) == ("cuts,cfg_end=0.5", 0.5)


@pytest.mark.parametrize(("id", "off"), CASES)
def test_nothing_is_forecast_across_the_end_of_guidance(id, off, photo):
    """Where one call returns what guidance made of both, the first step on the prompt alone is computed."""
    case = family(id)
    with case.model() as model, apply_teacache(model, "2x", cfg_end=0.6) as handle:
        case.generate(model, photo, 12, guidance=3.0)
    last = handle.stats.last
    skipped = {decision.step for decision in last.decisions if decision.skipped}
    assert last.fault is None and last.alone == 7 and len(skipped) >= 4
    if registry().adapters[case.adapter].guided_at_once:
        assert 7 not in skipped


@pytest.mark.parametrize("id", ["qwen-image", "z-image", "fibo", "ernie-image"])
@pytest.mark.parametrize("method", [ALWAYS, "seacache:2", "dualcache:F=1,rdt=0.99,warmup=2"])
def test_it_goes_with_methods_that_look_inside(id, method, photo):
    case = family(id)
    with case.model() as model:
        before = state(model)
        own = numbers(case, polynomial=(0, 0, 0, 0.01, 0))
        with apply_teacache(model, method, variant=own, cfg_end=0.5) as handle:
            _, latents = case.generate(model, photo, guidance=3.0)
        assert state(model) == before
    last = handle.stats.last
    assert last.fault is None and last.alone == 4 and mx.isfinite(latents).all()
    assert {decision.branch for decision in last.decisions if decision.step >= 4} == {0}


@pytest.mark.parametrize(("guidance", "told"), [(1.0, True), (3.0, False)])
def test_the_line_says_where_cfg_end_had_nothing_to_leave_out(guidance, told, photo):
    """As on a turbo model that shares its pipeline with a base model."""
    case = family("z-image")
    with case.model() as model, apply_teacache(model, "2x", cfg_end=0.5) as handle:
        case.generate(model, photo, guidance=guidance)
    line = summary(handle.stats.last, handle.method, handle.variant)
    assert line.endswith("; cfg_end did nothing at guidance 1") is told and "skipped 4 of 8 steps" in line


def test_it_is_mfluxs_own_rule(photo, monkeypatch):
    """FIBO 2 has the option itself; ours in its place gives the same."""
    case = family("fibo2")
    adapters = registry()
    adapters.adapters["fibo2"] = replace(adapters.adapters["fibo2"], second_call=SecondCall())
    with case.model() as model:
        with pytest.raises(UnsupportedModelError, match="no cfg_end for Fibo2 here"):
            apply_teacache(model, "2x", cfg_end=0.5)
        own = [case.generate(model, photo, cfg_end=share)[1] for share in (0.05, 0.31, 0.9)]
        monkeypatch.setattr(choose, "registry", lambda: adapters)
        monkeypatch.setattr(choose, "why_no_cfg_end", lambda pipeline: None)
        for share, latents in zip((0.05, 0.31, 0.9), own, strict=True):
            with apply_teacache(model, "cuts", cfg_end=share):
                assert np.array_equal(latents, case.generate(model, photo)[1])


@pytest.mark.parametrize("id", ["klein-base", "klein-base-edit"])
@pytest.mark.parametrize("method", ["off", "2x", "seacache:2", "dualcache:F=1,rdt=0.99,warmup=1"])
def test_klein(id, method, tiny, monkeypatch):
    case = klein_case(id)
    model = case.build(tiny)
    unguided = case.generate(model, tiny, num_inference_steps=6, guidance=1.0)
    with apply_teacache(model, method, cfg_end=0.5) as handle:
        pixels = case.generate(model, tiny, num_inference_steps=6)
    last = handle.stats.last
    assert last.fault is None and last.alone == 3 and 1 <= last.left_out <= 3
    assert pixels.shape == unguided.shape
    if method == "off":
        monkeypatch.setattr(apply, "cutoff", lambda steps, share: 0)
        with apply_teacache(model, "off", cfg_end=0.5):
            pixels = case.generate(model, tiny, num_inference_steps=6)
        assert np.abs(pixels.astype(int) - unguided).max() <= 1


@pytest.mark.compiles
@pytest.mark.parametrize("method", ["off", NEVER])
def test_compiled_steps(method, photo):
    """Two compiled functions: equal to the eager ones up to rounding, also where the taps are their outputs."""
    case = family("z-image")
    asked = {"steps": 4, "guidance": 3.0}
    with case.model() as model:
        made = []
        for compiling in (mx.disable_compile, mx.enable_compile):
            compiling()
            with apply_teacache(model, method, cfg_end=0.5, variant=numbers(case)) as handle:
                made.append(case.generate(model, photo, **asked)[1])
            assert handle.stats.last.fault is None and handle.stats.last.left_out == 2
        mx.disable_compile()
    assert mx.abs(made[0] - made[1]).max().item() < 1e-3 * mx.abs(made[0]).max().item()


def test_image_to_image_counts_from_the_first_step_of_all(photo):
    case = family("qwen-image:from-image")  # the first two of eight steps are left out
    with case.model() as model, apply_teacache(model, "cuts", cfg_end=0.5) as handle, counted(case, model) as calls:
        case.generate(model, photo, guidance=3.0)
    assert handle.stats.last.alone == 2 and len(calls) == 2 * 2 + 4


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    "asked", [["--cfg-end", "0.5"], ["--teacache", "2x", "--cfg-end", "0.5"], ["--teacache", "2x,cfg_end=0.5"]]
)
def test_the_option_alone_and_beside_a_method_and_in_its_text(asked, said):
    with family("qwen-image").installed():
        argv = [*QWEN, "--steps", 8, "--guidance", 3]
        lines, path, recorded, pixels = said(*argv, *asked)
        assert recorded["cfg_end"] == 0.5 and "(no guidance from step 4 on)" in lines[-1]
        assert recorded["teacache_left_out"] == (4 if "2x" not in " ".join(asked) else recorded["teacache_left_out"])
        again, _, repeated, same = said(QWEN[0], "-C", path, "--metadata")
        assert again == lines and repeated["cfg_end"] == 0.5 and np.array_equal(pixels, same)
        full, _, repeated, _ = said(QWEN[0], "-C", path, "--metadata", "--cfg-end", 1)
        assert "cfg_end" not in repeated and not any("left out (" in line for line in full)


def test_cfg_end_where_no_step_may_be_skipped(said):
    """Krea 2's usual sampler adds noise between the steps, which no forecast survives; this does."""
    with family("krea-2").installed():
        argv = ["mflux-generate-krea2", *QWEN[1:], "--steps", 8, "--guidance", 3]
        lines, *_ = said(*argv, "--cfg-end", 0.5)
    assert lines == ["4 of 16 transformer calls left out (no guidance from step 4 on)"]


@pytest.mark.parametrize(
    ("command", "argv", "words"),
    [
        ("mflux-generate-qwen", "--cfg-end 0", "'0' is no share of the steps, above 0 and at most 1; try 0.6"),
        ("mflux-generate-qwen", "--cfg-end half", "'half' is no share of the steps"),
        ("mflux-generate-qwen", "--teacache 2x,cfg_end=2", "'2' is no share of the steps"),
        ("mflux-generate-qwen", "--teacache auto,cfg_end=0.5", "'auto' takes no cfg_end"),
        ("mflux-generate", "--model dev --cfg-end 0.5", "unrecognized arguments: --cfg-end"),
        ("mflux-generate", "--model dev --teacache 2x,cfg_end=0.5", "makes no second prediction"),
        ("mflux-generate-fibo2", "--teacache 2x,cfg_end=0.5", "mflux has the option itself"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_loads(command, argv, words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        said(command, "--prompt", '{"x": "y"}', "--steps", 20, *argv.split())
    message = capsys.readouterr().err
    assert exit_.value.code == 2 and words in message and "Traceback" not in message


@pytest.mark.parametrize("share", [0, 1.5, "half"])
def test_a_wrong_share_in_python(share):
    with family("anima").model() as model, pytest.raises(SettingsError, match="is no share of the steps"):
        apply_teacache(model, "2x", cfg_end=share)
