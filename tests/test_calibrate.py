"""`mflux-teacache calibrate` on tiny checkpoints, through mflux's own commands."""

import json
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mflux_teacache_plugin.calibration import climb, schedules, sweep, takeover, traces
from mflux_teacache_plugin.calibration.record import recording
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.choose import registry
from mflux_teacache_plugin.cli import main
from mflux_teacache_plugin.cli.calibrate import read_prompts, setting
from mflux_teacache_plugin.methods.steps import Steps
from mflux_teacache_plugin.variants import read_variant
from tests.test_options import write_variant
from tests.tiny.cases import Case, case
from tests.tiny.commands import preserved_globals, run_command
from tests.tiny.families import FAMILIES

pytestmark = pytest.mark.usefixtures("tiny", "eager")

ROOT = Path(__file__).parent.parent
STEPS = 6
KINDS = ("output", "signal", "prediction", "growth")


@pytest.fixture(autouse=True)
def _fresh_plugins(fresh_plugins: None) -> None:
    """Each test has its own."""


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    return tmp_path / "config" / "mflux" / "teacache"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# three\na red fox\n\na blue whale\na green hill\n")
    return path


@pytest.fixture
def calibrate(tiny, tmp_path, prompts, capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Calibrate a case's model: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def calibrate(
        of: Case, *options: object, more: tuple = ("--steps", STEPS), settings: tuple = ("--settings", "0.2", "1.5x")
    ) -> tuple[int, str, str]:
        argv = ["calibrate", "--prompts", prompts, *settings, *options]
        words = of.argv(tiny, *more)
        at = words.index("--prompt")
        del words[at : at + 2]  # calibrate brings prompts of its own
        capsys.readouterr()
        with preserved_globals():
            code = main([str(word) for word in (*argv, "--", of.command, *words)])
        return code, *capsys.readouterr()

    return calibrate


def generations(monkeypatch) -> list[tuple[str, int]]:
    """Every picture that a calibration makes from now on."""
    made: list[tuple[str, int]] = []
    generate = takeover.Model.generate

    def counted(self, prompt, seed, **changes):
        made.append((prompt, seed))
        return generate(self, prompt, seed, **changes)

    monkeypatch.setattr(takeover.Model, "generate", counted)
    return made


def test_a_model_gets_a_file_of_its_own_that_works_at_once(calibrate, tiny, tmp_path, user_folder, capsys):
    of = case("klein-base")
    code, out, err = calibrate(of, "--folder", "found", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    variant = read_variant(user_folder / "tiny-flux2.toml")
    assert (variant.id, variant.models, variant.adapter) == ("tiny-flux2", ("tiny-flux2",), found["adapter"])
    assert variant.profile is not None and len(variant.profile.sigma) == STEPS
    assert variant.provenance.fitted and f"{STEPS} steps" in variant.provenance.recipe
    assert [each["setting"] for each in found["tried"]] and found["recommended_because"] in variant.provenance.notes
    assert (tmp_path / "found" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "found" / "report.html").read_text()
    assert "data:image/png" in report and "<script" not in report and 'src="http' not in report
    assert "a green hill" in report, "the held-out pictures are shown"

    trace = traces.read(next((tmp_path / "found" / "traces").glob("a-red-fox-*.toml")))
    assert (trace.prompt, trace.steps, trace.sigma[0], len(trace.sigma)) == ("a red fox", STEPS, 1.0, STEPS)
    assert {len(row) for row in (trace.output, trace.signal, trace.prediction, trace.growth)} == {STEPS - 1}
    assert trace.guidance == variant.profile.guidance == of.guidance and f"guidance {of.guidance:g}" in trace.recipe
    assert len(list((tmp_path / "found" / "traces").glob("*.toml"))) == 2, "the third prompt was held out"

    run_command(of.command, of.argv(tiny, "--steps", STEPS, "--teacache", "1.5x"), tmp_path)
    assert "tiny-flux2" in capsys.readouterr().err


def test_schedules_are_chosen_at_every_guidance_that_is_named(
    calibrate, tiny, tmp_path, user_folder, monkeypatch, capsys
):
    of = case("klein-base")
    options = ("--folder", "found", "--guidances", 2, 6, "--minutes", 100, "--format", "json")

    def moved(start, steps, pictures, near, work):
        assert work > 0 and pictures == 1
        found = climb.neighbour(start, steps, random.Random(0))
        near(found, 0)
        return found

    monkeypatch.setattr(sweep, "climb", moved)
    code, out, err = calibrate(of, *options, more=("--steps", 9), settings=())
    assert code == 0, err
    variant = read_variant(user_folder / "tiny-flux2.toml")
    tried = {(each["group"], each["setting"]) for each in json.loads(out)["tried"]}
    for guidance in (2, 6):
        names = [setting for group, setting in tried if group == f"tiny-flux2, guidance {guidance}"]
        assert {"2x profile linear", "2x optimum linear", "2x even reuse"} <= {*names} or len(names) > 10
        assert any(setting.endswith("moved") for setting in names), "where the search by pictures ended"
    assert variant.mag_ratios is not None and len(variant.mag_ratios) == 9
    for each in variant.step_lists:
        assert (
            each.steps == 9
            and each.guidance in (2.0, 6.0)
            and each.forecast in ("linear", "reuse")
            and "dB" in each.source
        )
    runs = json.loads((tmp_path / "found" / "results.json").read_text())["runs"]
    for each in variant.step_lists:  # the pictures that chose it were made with it
        with_it = [run for run in runs if run["method"] == str(Steps(each.computed, forecast=each.forecast))]
        assert any(run["case"].endswith(f"-guidance-{each.guidance:g}") for run in with_it)
    for guidance, named in re.findall(r"guidance (\d): .* is (\dx \w[\w ]*): ", variant.provenance.notes):
        made = {run["method"] for run in runs if run["setting"] == named and run["case"].endswith(f"-{guidance}")}
        chosen = {str(Steps(each.computed, forecast=each.forecast)) for each in variant.step_lists}
        assert made <= chosen, "what is praised is what the file has"
    report = (tmp_path / "found" / "report.html").read_text()
    assert "guidance 2" in report and "guidance 6" in report
    assert "At 9 steps, guidance 6: 1 held-out prompt." in variant.provenance.notes

    monkeypatch.setattr(sweep, "climb", lambda start, *_: tuple(start))
    assert calibrate(of, *options, "--force", more=("--steps", 9), settings=())[0] == 0
    again = read_variant(user_folder / "tiny-flux2.toml")  # each guidance has tried what was chosen at the other
    made = generations(monkeypatch)
    assert calibrate(of, *options, "--force", more=("--steps", 9), settings=())[0] == 0
    assert made == [] and read_variant(user_folder / "tiny-flux2.toml").step_lists == again.step_lists
    run_command(of.command, of.argv(tiny, "--steps", 9, "--guidance", 6, "--teacache", "2x"), tmp_path)
    assert "skipped 5 of 9 steps (2x, tiny-flux2)" in capsys.readouterr().err


def test_settings_are_tried_at_every_guidance(calibrate, user_folder):
    code, out, err = calibrate(case("klein-base"), "--guidances", 2, 6, "--format", "json")
    assert code == 0, err
    tried = [(each["group"], each["setting"]) for each in json.loads(out)["tried"]]
    groups = [f"tiny-flux2, guidance {guidance}" for guidance in (2, 6)]
    assert tried == [(group, setting) for group in groups for setting in ("0.2", "1.5x")]
    assert (user_folder / "tiny-flux2.toml").exists()


def test_the_recorded_products_are_those_of_the_predictions(tiny):
    of = case("klein-base")
    model = of.build(tiny)
    with recording(model, registry().serving(type(model))["klein-base"]) as recorder:
        of.generate(model, tiny)
        gram = recorder.gram()
        rows = [
            [np.array(each.astype(mx.float32)).ravel().astype(float) for each in row] for row in recorder._predictions
        ]
    steps = len(recorder.sigma)
    assert gram.shape == (3 * steps, 3 * steps) and np.allclose(gram, gram.T, rtol=1e-3)
    first, last = rows[0][0], rows[-1][0]
    assert np.isclose(gram[0, steps - 1] / gram[0, 0], first @ last / (first @ first), rtol=1e-2)
    guidance = schedules.gram_at(
        Trace("c", "0", "p", "r", steps, tuple(recorder.sigma), (0.1,) * (steps - 1), guidance=of.guidance, gram=gram),
        7.0,
    )
    negative, positive = (np.array([row[kind] for row in rows]) for kind in (2, 1))
    wanted = negative + 7.0 * (positive - negative)
    assert np.allclose(guidance / guidance[0, 0], wanted @ wanted.T / (wanted[0] @ wanted[0]), rtol=2e-2, atol=2e-2)


def test_an_interrupted_calibration_goes_on_where_it_stopped(calibrate, monkeypatch, user_folder):
    of = case("flux1")
    made = generations(monkeypatch)
    record = takeover.Model.generate

    def interrupted(self, prompt, seed, **changes):
        if prompt == "a blue whale":
            raise KeyboardInterrupt
        return record(self, prompt, seed, **changes)

    with monkeypatch.context() as patch:
        patch.setattr(takeover.Model, "generate", interrupted)
        assert calibrate(of)[0] == 130
    assert [prompt for prompt, _ in made] == ["a red fox"] and not user_folder.exists()
    made.clear()
    assert calibrate(of)[0] == 0
    assert [prompt for prompt, _ in made].count("a red fox") == 0, "it was recorded already"
    assert "a blue whale" in [prompt for prompt, _ in made]
    made.clear()
    assert calibrate(of, "--force")[0] == 0
    assert made == [], "everything is there"


def test_the_traces_of_another_run_are_not_taken(calibrate):
    assert calibrate(case("flux1"), "--held-out", 0)[0] == 0
    code, _, err = calibrate(case("flux1"), "--held-out", 0, "--force", more=("--steps", STEPS + 1))
    assert code == 2 and "is of another run" in err and "--steps 7" in err


def test_nothing_is_overwritten_and_nothing_runs_before_that_is_said(calibrate, monkeypatch, user_folder):
    made = generations(monkeypatch)
    path = write_variant(user_folder, id="tiny-dev", models=["tiny-dev"])
    before = path.read_text()
    code, out, err = calibrate(case("flux1"))
    assert (code, out) == (2, "") and "is there already" in err and "--force" in err
    assert made == [] and path.read_text() == before


def test_recording_leaves_the_picture_and_the_model_alone(tiny):
    of = case("klein-base")
    model = of.build(tiny)
    classes = {name: type(module) for name, module in model.transformer.named_modules()}
    plain = of.generate(model, tiny)
    adapter = registry().serving(type(model))["klein-base"]
    with recording(model, adapter) as recorder:
        recorded = of.generate(model, tiny)
        again = of.generate(model, tiny)
    assert np.array_equal(plain, recorded) and np.array_equal(plain, again)
    assert len(recorder.sigma) == of.steps
    assert {kind: len(row) for kind, row in recorder.changes.items()} == dict.fromkeys(KINDS, of.steps - 1)
    assert {name: type(module) for name, module in model.transformer.named_modules()} == classes
    assert not {"_predict", "generate_image"} & set(vars(model))


@pytest.mark.parametrize("of", FAMILIES, ids=str)
def test_every_family_can_be_recorded(of, tiny):
    """Its outputs, and the signal where it is tapped."""
    adapter = registry().adapters[of.adapter]
    with of.model() as model:
        held = set(vars(model))
        found = {name: value for cls in type(model).__mro__ for name, value in vars(cls).items() if "predict" in name}
        _, plain = of.generate(model, tiny.pictures.photo)
        with recording(model, adapter) as recorder:
            _, latents = of.generate(model, tiny.pictures.photo)
        assert np.allclose(plain, latents, atol=1e-4)
        assert set(vars(model)) == held
        now = {name: value for cls in type(model).__mro__ for name, value in vars(cls).items() if "predict" in name}
        assert now == found
    rows = recorder.changes
    assert "output" in rows and all(np.isfinite(row).all() for row in rows.values())
    assert {len(row) for row in rows.values()} == {len(recorder.sigma) - 1}
    assert ("signal" in rows) == (adapter.taps is not None)


# ---- bad input: one error, before anything runs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "there is no image command"),
        (["--", "mflux-genrate"], "mflux-genrate is not a command of mflux"),
        (["--", "ls"], "ls is not a command of mflux"),
        (["--", "mflux-concept", "--prompt", "x", "--concept", "y", "--model", "dev"], "cannot skip steps"),
        (["--", "mflux-generate", "--model", "dev", "--teacache", "0.2"], "--teacache skips steps"),
        (
            ["--into-model", "--", "mflux-generate", "--model", "dev"],
            "cause: the command loads black-forest-labs/FLUX.1-dev",
        ),
        (["--held-out", "9", "--", "mflux-generate"], "leave too few for a fit"),
        (["--prompts", "empty.txt", "--", "mflux-generate"], "empty.txt holds no prompt"),
        (["--prompts", "missing.txt", "--", "mflux-generate"], "missing.txt cannot be read"),
    ],
)
def test_bad_input_is_one_error(argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with preserved_globals():
        assert main(["calibrate", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "config"] == ["empty.txt"]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        *(("--settings", setting, f"'{setting}'") for setting in ("7", "auto", "off")),
        ("--id", "My_Model", 'not a usable id: "My_Model"'),
        ("--id", "../mine", "use lower-case letters"),
        ("--held-out", "-1", "is not a whole number from 0 on"),
    ],
)
def test_what_makes_no_sense_is_a_wrong_option(option, value, told, capsys):
    with pytest.raises(SystemExit):
        main(["calibrate", f"{option}={value}", "--", "mflux-generate"])
    said = capsys.readouterr().err
    assert f"argument {option}: " in said and told in said


def test_a_setting_is_named_as_its_method_writes_itself():
    assert setting("dualcache:F=1, rdt=0.2") == "dualcache:F=1,B=0,rdt=0.2"


def test_a_file_goes_into_the_model_s_folder(calibrate, tiny, tmp_path):
    of = case("klein-base")
    words = of.argv(tiny)
    folder = Path(words[words.index("--model") + 1])
    code, out, err = calibrate(of, "--held-out", 0, "--into-model")
    try:
        assert code == 0, err
        assert f"wrote {folder / 'teacache.toml'}" in out
        assert read_variant(folder / "teacache.toml").id == "tiny-flux2"
        code, _, err = calibrate(of, "--held-out", 0, "--into-model")
        assert code == 2 and "teacache.toml is there already" in err and "--output" not in err
        text = (folder / "teacache.toml").read_text()
        (folder / "teacache.toml").write_text(text.replace("unknown; see the model's own page", "mine"))
        code, out, err = calibrate(of, "--held-out", 0, "--folder", "again", "--id", "other", "--format", "json")
        assert code == 0, err
        assert json.loads(out)["weights_licence"] == "mine", "the file beside the model served it"
    finally:
        (folder / "teacache.toml").unlink(missing_ok=True)


def test_lists_of_other_runs_stay_in_a_file_outside_the_search_path(calibrate, tmp_path):
    options, file = ("--held-out", 0, "--output", "elsewhere"), tmp_path / "elsewhere" / "tiny-flux2.toml"
    assert calibrate(case("klein-base"), *options)[0] == 0
    with file.open("a") as text:
        text.write('\n[[step_lists]]\nsteps = 9\ncomputed = "0-3,8"\nguidance = 2.0\n')
    assert calibrate(case("klein-base"), *options, "--force")[0] == 0
    assert [each.computed for each in read_variant(file).step_lists] == [(0, 1, 2, 3, 8)]
    file.write_text("broken")
    assert calibrate(case("klein-base"), *options, "--force")[0] == 0 and read_variant(file).step_lists == ()


def test_a_folder_that_cannot_be_written_is_said_before_weights_load(calibrate, tmp_path, monkeypatch):
    made = generations(monkeypatch)
    (tmp_path / "taken").write_text("a file")
    code, _, err = calibrate(case("flux1"), "--folder", "taken")
    assert code == 2 and "cannot be written" in err and made == []


def test_too_few_steps_are_said(calibrate):
    code, _, err = calibrate(case("flux1"), more=("--steps", 3))
    assert code == 2 and "3 steps tell nothing" in err


def test_the_built_in_prompts_are_ten():
    assert len(read_prompts(None)) == 10


# ---- several ranks ---------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file, without the seconds that were measured."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: re.sub(rb"seconds = [\d.]+", b"", data) for name, data in found.items()}


@pytest.mark.xdist_group("compiled")
def test_two_ranks_write_what_one_process_writes(tmp_path, prompts):
    """With the demo model, in processes of their own."""
    launcher = [Path(sysconfig.get_path("scripts"), "mlx.launch"), "-n", "2", "--backend", "ring", "--"]
    model = ["mflux-generate-flux2", "--model", "flux2-klein-base-demo", "--steps", 4, "--width", 64, "--height", 64]
    for name, before in (("one", []), ("two", launcher)):
        argv = ["calibrate", "--prompts", prompts, "--held-out", 0, "--id", "mine"]
        argv += ["--folder", tmp_path / name, "--output", tmp_path / name / "files", "--", *model]
        words = [*before, sys.executable, "-m", "mflux_teacache_plugin", *argv]
        done = subprocess.run(list(map(str, words)), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1, done.stderr
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two
    assert "files/mine.toml" in one and sum(name.startswith("traces/") for name in one) == 6 and "report.html" in one
