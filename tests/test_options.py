"""The option in mflux's real commands: where it shows, what it refuses, what it says, and what it records."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mflux_teacache_plugin.adapters.families import KLEIN
from mflux_teacache_plugin.host import bridge
from tests.test_commands import REFUSED
from tests.tiny import flux2
from tests.tiny.cases import case
from tests.tiny.commands import Saved, entry_point, preserved_globals, read_pixels, run_command

pytestmark = pytest.mark.usefixtures("tiny", "eager", "connected")

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(script.name for script in distribution("mflux").entry_points.select(group="console_scripts"))
IMAGE_COMMANDS = [name for name in SCRIPTS if name.startswith(("mflux-generate", "mflux-concept", "mflux-upscale"))]
SUPPORTED = set(IMAGE_COMMANDS) - set(REFUSED)
OPTIONS = ("--teacache", "--dualcache", "--seacache", "--teacache-forecast", "--teacache-coefficients")

#: mflux leaves the file of -C open, and Python says so.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def write_variant(folder: Path, id: str = "mine", **changes: object) -> Path:
    """A coefficient file whose estimate is 0.1 for every step, so that a threshold of 0.25 skips two steps in a row."""
    keys = {
        "schema": 1,
        "id": id,
        "adapter": "flux1",
        "models": ["tiny-dev"],
        "polynomial": [0.0, 0.0, 0.0, 0.0, 0.1],
        "threshold": 0.25,
        "weights_licence": "none",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{id}.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path.write_text("\n".join([*lines, "[provenance]", 'source = "made up for a test"', ""]))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A coefficient file for the tiny FLUX.1 [dev], in the user's own folder, where it is found by itself."""
    return write_variant(tmp_path / "config" / "mflux" / "teacache")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What TeaCache said since the last call, a line each."""
    return lambda: [line.removeprefix("TeaCache: ") for line in re.findall("TeaCache: .*", capsys.readouterr().err)]


def refused(capsys: pytest.CaptureFixture[str], command: str, *argv: object) -> str:
    """Run a command that must end with exit code 2, and give its message."""
    capsys.readouterr()
    words = [command, *map(str, argv)]
    with preserved_globals(), mock.patch.object(sys, "argv", words), pytest.raises(SystemExit) as exit_:
        entry_point(command)()
    assert exit_.value.code == 2
    return capsys.readouterr().err


def sidecar(saved: Saved) -> dict:
    return json.loads(saved.path.with_suffix(".metadata.json").read_text())


# ---- where it shows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", IMAGE_COMMANDS)
def test_help_has_a_group_that_tells_it_from_the_option_of_mflux(command: str, capsys) -> None:
    with preserved_globals(), mock.patch.object(sys, "argv", [command, "--help"]), pytest.raises(SystemExit) as exit_:
        entry_point(command)()
    assert exit_.value.code == 0
    _, _, after = capsys.readouterr().out.partition("\nTeaCache (mflux-teacache-plugin ")
    group = " ".join(after.partition("\n\n")[0].split())
    assert "--teacache [VALUE]" in group
    assert all(option in group for option in OPTIONS)
    assert "mflux's own --teacache-ratio skips a fixed share of the steps" in group


def test_supported_is_what_the_tests_run() -> None:
    from tests.tiny.cases import CASES

    assert {each.command for each in CASES if each.cacheable} < SUPPORTED
    assert {each.command for each in CASES if not each.cacheable} < set(REFUSED)


def test_capabilities_list_it_everywhere_and_are_stock_afterwards() -> None:
    from mflux.cli.capabilities import build_capabilities

    bridge.uninstall()
    stock = build_capabilities()
    assert "teacache_" not in json.dumps(stock) and not any(f'"{option}"' in json.dumps(stock) for option in OPTIONS)
    bridge.install()
    listed = {}
    for command in build_capabilities()["commands"]:
        options = {option["flag"]: option for option in command["options"]}
        listed[command["command"]] = options["--teacache"]
        assert {options[option]["status"] for option in OPTIONS} == {options["--teacache"]["status"]}
    assert sorted(listed) == IMAGE_COMMANDS
    assert {name for name, option in listed.items() if option["status"] == "honored"} == set(IMAGE_COMMANDS) - set(
        REFUSED
    )
    reasons = {name: option["reason"] for name, option in listed.items() if option["status"] == "rejected"}
    assert set(reasons) == set(REFUSED) & set(IMAGE_COMMANDS)
    assert "attention maps come from the blocks" in reasons["mflux-concept"]
    bridge.uninstall()
    assert build_capabilities() == stock


def test_zsh_completions_have_it_on_image_commands_only() -> None:
    from mflux.cli.completions.generator import CompletionGenerator

    generator = CompletionGenerator()
    parts = re.split(r"(?m)^_(mflux[\w.]*)\(\) \{", generator.generate())
    functions = dict(zip(parts[1::2], parts[2::2], strict=True))
    with_it = [command for command in SCRIPTS if "'--teacache'" in functions.get(command.replace("-", "_"), "")]
    assert with_it == IMAGE_COMMANDS


def test_training_has_no_such_option(capsys) -> None:
    message = refused(capsys, "mflux-train", "--config", "none.json", "--teacache", "0.2")
    assert "unrecognized arguments: --teacache 0.2" in message


@pytest.mark.parametrize("command", ["mflux-generate-flux3", "mflux-generate-fibo2"])
def test_commands_whose_pipeline_inherits_its_constructor_still_load(command: str, tmp_path: Path) -> None:
    if command not in SCRIPTS:
        pytest.skip("this mflux does not have it")
    argv = [command, "--model", str(tmp_path / "nothing"), "--prompt", '{"short_description": "x"}', "--steps", "2"]
    with preserved_globals(), mock.patch.object(sys, "argv", argv), pytest.raises(Exception, match="nothing"):
        entry_point(command)()


# ---- what it refuses, before any weights -----------------------------------------------------------------------------


@pytest.fixture
def no_weights(tmp_path: Path) -> Iterator[list[str]]:
    """Arguments for a model that is not there: whoever looks for its weights fails in another way than with exit 2."""
    yield ["--model", str(tmp_path / "nothing"), "--prompt", "x", "--steps", "4"]


def test_a_model_that_is_not_there_fails_in_another_way(no_weights: list[str]) -> None:
    argv = ["mflux-generate", *no_weights, "--base-model", "dev", "--teacache", "0.2"]
    with preserved_globals(), mock.patch.object(sys, "argv", argv), pytest.raises(Exception, match="nothing"):
        entry_point("mflux-generate")()


@pytest.mark.parametrize("value", ["0", "-1", "3", "nan", "abc", "inf", ""])
def test_a_bad_value(value: str, capsys, no_weights: list[str]) -> None:
    message = refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", "--teacache", value)
    assert f"argument --teacache: '{value}' is n" in message
    assert "try 0.2" in message or "use 'off'" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--teacache 0.5x", "argument --teacache: '0.5x' is not a speed-up above 1x and at most 10x; try 1.5x"),
        ("--teacache abc", "'abc' is neither a number nor a speed-up nor 'auto' nor 'off'; try 0.2 or 1.5x"),
        ("--teacache nothing:1", "'nothing' is no method; there are cuts, dualcache, easycache, magcache, seacache"),
        ("--teacache 0.2+cubic", "'cubic' is no forecast; there are reuse, linear, quadratic"),
        ("--teacache-forecast cubic", "argument --teacache-forecast: invalid choice: 'cubic'"),
        ("--dualcache keen", "'keen' is neither a preset (aggressive, conservative) nor of the form F=8,B=0,rdt=0.08"),
        ("--dualcache rdt=nan", "rdt=nan is not between 0 and 1; try 0.08"),
        ("--seacache 3", "'3' is not above 0 and at most 2; try 0.3"),
        ("--teacache 0.2 --dualcache aggressive", "error: --teacache and --dualcache are two methods"),
        ("--teacache 0.2 --seacache 0.3", "error: --teacache and --seacache are two methods"),
        ("--dualcache aggressive --seacache 0.3", "error: --dualcache and --seacache are two methods"),
        (
            "--teacache 2x",
            "error: 4 steps at 2x cannot be met\n  cause: the first and the last step are always computed",
        ),
        ("--teacache 2x+quadratic", "hint: take at least 8 --steps, or a smaller speed-up"),
    ],
)
def test_what_no_run_can_meet(argv: str, words: str, capsys, no_weights: list[str]) -> None:
    assert words in refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", *argv.split())


def test_more_blocks_than_there_are(capsys, tiny) -> None:
    """How many there are is known when the model is loaded."""
    message = refused(capsys, "mflux-generate", *case("flux1").argv(tiny, "--dualcache", "F=99"))
    assert message.splitlines()[-3:] == [
        "error: dualcache: F=99 is more than there is",
        "  cause: transformer_blocks has 2 blocks",
        "  hint: take at most F=2",
    ]


def test_a_bad_environment(capsys, no_weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE", "abc")
    message = refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev")
    assert "MFLUX_TEACACHE: 'abc' is neither a number nor" in message
    assert "hint: set MFLUX_TEACACHE=auto, or unset it" in message


def test_a_command_without_an_adapter(capsys, monkeypatch) -> None:
    monkeypatch.setattr("mflux_teacache_plugin.choose.BUILT_IN", (KLEIN,))
    message = refused(capsys, "mflux-generate-z-image", "--prompt", "x", "--teacache")
    assert message.startswith(
        "error: mflux-generate-z-image cannot skip steps\n  cause: no adapter says where its transformer is\n"
    )


@pytest.mark.parametrize("id", ["flux1-concept", "flux1-concept-from-image"])
def test_attention_maps_cannot_be_skipped(id: str, capsys, tiny) -> None:
    message = refused(capsys, case(id).command, *case(id).argv(tiny, "--teacache", "0.2"))
    assert message.startswith(f"error: {case(id).command} cannot skip steps\n  cause: its attention maps come from")


def test_a_model_without_coefficients_is_refused_a_threshold(capsys, tiny, tmp_path) -> None:
    klein = case("klein")
    model = str(tmp_path / "nothing")
    message = refused(capsys, klein.command, *klein.argv(tiny, "--model", model, "--teacache", "0.2"))
    assert message.startswith(f"error: there are no coefficients for {model}\n")
    assert "flux1-dev, flux1-kontext-dev" in message
    assert "ask for a speed-up instead, such as --teacache 1.5x" in message
    assert f"write {tmp_path}/config/mflux/teacache/<id>.toml with adapter = " in message
    assert f'models = ["{model}"]' in message


@pytest.mark.parametrize("argv", [["--teacache"], ["--teacache", "1.5x"], ["--teacache-forecast", "linear"]])
def test_a_model_without_coefficients_runs_a_schedule(argv: list[str], capsys, said, tiny) -> None:
    klein, method = case("klein"), "1.5x+linear" if "linear" in argv else "1.5x"
    if "1.5x" in argv:
        assert "4 steps at 1.5x cannot be met" in refused(capsys, klein.command, *klein.argv(tiny, *argv))
    else:  # what is recommended for so few steps is plain mflux
        assert np.array_equal(klein.run(tiny, *argv).pixels, klein.run(tiny).pixels)
        assert said()[0].startswith(f"nothing to skip, this run is plain mflux: 4 steps at {method} cannot be met")
    steps, skipped = (6, 2) if "1.5x" in argv else (15, 5)
    plain = klein.run(tiny, "--steps", str(steps))
    saved = klein.run(tiny, "--steps", str(steps), *argv)
    note, line = said()
    told = f"there are no coefficients for .*, so {re.escape(method)} computes the steps that published .* share"
    assert re.fullmatch(told, note) and line == f"skipped {skipped} of {steps} steps ({method})"
    assert not np.array_equal(saved.pixels, plain.pixels)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("0.2", "switched off for this run: there are no coefficients for "),
        (
            "1.5x",
            "switched off for this run: 4 steps at 1.5x cannot be met (the first and the last step are always computed",
        ),
    ],
)
def test_what_the_environment_asks_for_and_cannot_be_is_one_warning(
    value: str, why: str, said, tiny, monkeypatch
) -> None:
    klein = case("klein")
    plain = klein.run(tiny)
    assert said() == []
    monkeypatch.setenv("MFLUX_TEACACHE", value)
    saved = klein.run(tiny)
    (warning,) = said()
    assert warning.startswith(why)
    assert np.array_equal(saved.pixels, plain.pixels)


def test_what_is_recommended_for_few_steps_is_plain_mflux(said, tiny, monkeypatch) -> None:
    klein = case("klein")
    plain = klein.run(tiny)
    monkeypatch.setenv("MFLUX_TEACACHE", "auto")
    saved = klein.run(tiny)
    assert said() == ["nothing to skip, this run is plain mflux: 4 steps at 1.5x cannot be met"]
    assert np.array_equal(saved.pixels, plain.pixels)


def test_the_environment_on_a_command_that_cannot_is_one_warning(said, tiny, monkeypatch) -> None:
    concept = case("flux1-concept")
    plain = concept.run(tiny)
    monkeypatch.setenv("MFLUX_TEACACHE", "0.2")
    saved = concept.run(tiny)
    (warning,) = said()
    assert warning.startswith("switched off for this run: mflux-concept cannot skip steps (its attention maps come")
    assert np.array_equal(saved.pixels, plain.pixels)


@pytest.mark.parametrize("explicit", [True, False], ids=["option", "environment"])
def test_a_broken_file_in_the_users_folder(explicit: bool, capsys, mine: Path, no_weights, monkeypatch) -> None:
    mine.write_text(mine.read_text().replace("threshold = 0.25", 'threshold = "high"\ncolour = 1'))
    if not explicit:
        monkeypatch.setenv("MFLUX_TEACACHE", "0.2")
    option = ["--teacache"] if explicit else []
    message = refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", *option)
    assert str(mine) in message
    assert "threshold: expected a number" in message
    assert "colour: unknown key" in message


def test_a_coefficient_file_for_another_family(capsys, no_weights, tmp_path) -> None:
    path = write_variant(tmp_path, adapter="klein")
    message = refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", "--teacache-coefficients", path)
    assert f"{path} does not fit this model" in message
    assert "its adapter is klein; the model works with flux1" in message


def test_a_coefficient_file_that_is_not_there(capsys, no_weights, tmp_path) -> None:
    path = tmp_path / "none.toml"
    message = refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", "--teacache-coefficients", path)
    assert f"error: {path} cannot be read" in message


@LEFT_OPEN
@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        ({"teacache_method": 0.2}, "teacache_method: 0.2 is not a string"),
        ({"teacache_method": "high"}, "teacache_method: 'high' is neither"),
        ({"teacache_method": "4x"}, "4 steps at 4x cannot be met"),
        ({"teacache_method": "0.2", "teacache_variant": 7}, "teacache_variant: 7 is not a string"),
        ({"teacache_method": "0.2", "teacache_variant": "gone"}, "there is no variant 'gone'"),
        ({"teacache_method": "0.2", "teacache_variant": "flux2-klein-4b"}, "flux2-klein-4b does not fit Flux1"),
        ({"teacache_method": "0.2", "teacache_variant": ""}, "there are no coefficients for "),
    ],
)
def test_a_sidecar_that_cannot_be_replayed(recorded: dict, words: str, capsys, no_weights, tmp_path) -> None:
    file = tmp_path / "image.metadata.json"
    file.write_text(json.dumps(recorded))
    assert words in refused(capsys, "mflux-generate", *no_weights, "--base-model", "dev", "-C", file)


@pytest.mark.parametrize("option", ["--step-cache-ratio", "--teacache-ratio"])
def test_the_step_cache_of_mflux_is_not_combined_with_this_one(option: str, capsys) -> None:
    command = "mflux-generate-qwen-2.1"
    with preserved_globals(), mock.patch.object(sys, "argv", [command, "--help"]), pytest.raises(SystemExit):
        entry_point(command)()
    if option not in capsys.readouterr().out:
        pytest.skip("this mflux has no such option")
    message = refused(capsys, command, "--prompt", "x", option, "0.3", "--teacache", "1.5x")
    assert message.startswith("error: mflux's own step cache is asked for too\n  hint: use either --teacache or")


def test_debug_shows_where_it_was_refused(tiny, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE_DEBUG", "1")
    with pytest.raises(SystemExit) as exit_:
        case("flux1-concept").run(tiny, "--teacache")
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" in said and "mflux-concept cannot skip steps" in said


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_one_line_after_the_image(mine: Path, said, tiny) -> None:
    case("flux1").run(tiny, "--steps", "6", "--teacache")
    assert said() == ["skipped 3 of 6 steps (threshold 0.25, mine)"]
    case("flux1").run(tiny, "--steps", "6", "--teacache", "0.15")
    assert said() == ["skipped 2 of 6 steps (threshold 0.15, mine)"]


def test_the_progress_bar_counts_skipped_steps(mine: Path, capsys, tiny) -> None:
    case("flux1").run(tiny, "--steps", "6", "--teacache")
    assert re.search(r"6/6 \[.*skipped=3\]", capsys.readouterr().err)


def test_off_goes_over_the_environment(mine: Path, said, tiny, monkeypatch) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE", "0.15")
    cached = case("flux1").run(tiny, "--metadata")
    assert said() == ["skipped 1 of 4 steps (threshold 0.15, mine)"]
    plain = case("flux1").run(tiny, "--metadata", "--teacache", "off")
    assert said() == []
    assert {k: v for k, v in sidecar(plain).items() if k.startswith("teacache")} == {"teacache_method": "off"}, "for -C"
    assert not np.array_equal(plain.pixels, cached.pixels)


def test_too_few_steps_say_so(mine: Path, said, tiny) -> None:
    saved = case("flux1").run(tiny, "--steps", "2", "--teacache")
    (line,) = said()
    assert line == (
        "skipped 0 of 2 steps (threshold 0.25, mine): "
        "all of them are first or last steps, which always compute; take more than 2"
    )
    assert saved.pixels.any()


def test_image_to_image_counts_its_active_steps(mine: Path, said, tiny) -> None:
    case("flux1-from-image").run(tiny, "--steps", "8", "--teacache")
    assert said() == ["skipped 2 of 4 steps (threshold 0.25, mine)"]


def test_the_floor_of_published_coefficients_shows(said, tiny) -> None:
    case("flux1").run(tiny, "--teacache", "0.1")
    _, line = said()
    reason = r"the smallest estimated change was (\S+); a threshold above that skips"
    smallest = re.fullmatch(rf"skipped 0 of 4 steps \(threshold 0.1, flux1-dev\): {reason}", line)
    assert smallest is not None, line
    assert float(smallest[1]) >= 0.18, "the polynomial is nowhere lower"


def test_changes_above_the_fitted_range_show(said, tiny, tmp_path) -> None:
    path = write_variant(tmp_path, range=[0.0, 1e-6])
    case("flux1").run(tiny, "--teacache-coefficients", path)
    (line,) = said()
    assert re.search(r"above the range that mine was fitted on \(1e-06\); more --steps make smaller changes$", line)


def test_a_distilled_model_is_told_beforehand_and_runs(said, tiny) -> None:
    plain = case("flux1-schnell").run(tiny)
    saved = case("flux1-schnell").run(tiny, "--teacache", "0.01")
    _, warning, summary = said()
    assert warning == "flux1-schnell is distilled: its few steps are too large to skip any, so expect no gain"
    assert summary.endswith("a distilled model takes few, large steps; use a base model to gain from skipping")
    assert np.array_equal(saved.pixels, plain.pixels)


def test_a_checkpoint_that_only_resembles_is_told(said, tiny) -> None:
    case("flux1").run(tiny, "--teacache", "2")
    line, _ = said()
    assert line == (
        f"{tiny.checkpoint('dev')} (mflux takes it for black-forest-labs/FLUX.1-dev) is not what flux1-dev was "
        "calibrated for; look at the pictures before you trust the setting"
    )


def test_what_mflux_takes_a_nameless_klein_for_is_told(said, tiny) -> None:
    """mflux falls back to the 4B model for a folder whose name says nothing."""
    argv = ["--model", tiny.checkpoint("flux2"), "--prompt", "x", "--steps", "2", "--width", "64", "--height", "64"]
    with flux2.tiny_builtin("flux2-klein-4b"):
        run_command("mflux-generate-flux2", [str(word) for word in (*argv, "--teacache")], tiny.folder)
    line = said()[0]
    assert line.startswith(f"{tiny.checkpoint('flux2')} (mflux takes it for black-forest-labs/FLUX.2-klein-4B) is not")


def test_two_seeds_are_two_generations(mine: Path, said, tiny) -> None:
    both = case("flux1").run(tiny, "--seed", "1", "2", "--teacache")
    assert said() == ["skipped 2 of 4 steps (threshold 0.25, mine)"] * 2
    alone = case("flux1").run(tiny, "--seed", "2", "--teacache")
    assert [path.name for path in both.paths] == ["image_seed_1.png", "image_seed_2.png"]
    assert np.array_equal(read_pixels(both.paths[1]), alone.pixels), "the first seed left something behind"


@pytest.mark.parametrize("id", ["flux1", "klein-base"])
def test_little_memory_gives_the_same_picture(id: str, said, tiny, tmp_path) -> None:
    adapter = {"flux1": "flux1", "klein-base": "klein-base"}[id]
    path = write_variant(tmp_path, adapter=adapter)
    usual = case(id).run(tiny, "--teacache-coefficients", path)
    # Tiled decoding, which --low-ram implies, is not bit-identical to the usual one, on mflux alone either.
    saved = case(id).run(tiny, "--teacache-coefficients", path, "--low-ram")
    first, second = (line for line in said() if line.startswith("skipped"))
    assert first == second == "skipped 2 of 4 steps (threshold 0.25, mine)"
    assert np.abs(saved.pixels.astype(int) - usual.pixels).max() <= 2


def test_dualcache_says_how_often_its_blocks_were_skipped(said, tiny) -> None:
    case("flux1").run(tiny, "--steps", "6", "--dualcache", "F=1,rdt=0.999,warmup=2")
    (line,) = said()
    assert re.fullmatch(
        r"skipped 2.4 of 6 steps \(dualcache:F=1,B=0,rdt=0.999,warmup=2, flux1-dev\); hit rate 67%; "
        r"changes \S+ to \S+, quartiles \S+, \S+, \S+",
        line,
    ), line
    case("flux1").run(tiny, "--dualcache", "F=1,rdt=0.000001,warmup=1")
    assert said()[0].endswith("no list of blocks changed by less than 1e-06; a higher rdt skips")


# ---- what it records, and replays ------------------------------------------------------------------------------------


def test_the_record_is_flat_in_sidecar_and_exif(mine: Path, tiny) -> None:
    from mflux.utils.metadata_reader import MetadataReader

    from mflux_teacache_plugin.variants import read_variant

    saved = case("flux1").run(tiny, "--steps", "6", "--metadata", "--teacache", "0.15")
    expected = {
        "teacache_method": "0.15",
        "teacache_variant": "mine",
        "teacache_numbers": read_variant(mine).digest,
        "teacache_skipped": 2,
        "teacache_computed": 4,
    }
    exif = MetadataReader.read_exif_metadata(saved.path)
    for record in (sidecar(saved), exif):
        assert {key: value for key, value in record.items() if key.startswith("teacache")} == expected


@LEFT_OPEN
def test_replay_gives_the_same_picture(said, tiny, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "numbers"
    write_variant(folder)
    monkeypatch.chdir(folder)
    plain = case("flux1").run(tiny)
    first = case("flux1").run(tiny, "--metadata", "--teacache", "0.3", "--teacache-coefficients", "mine.toml")
    before = said()
    monkeypatch.chdir(tmp_path)  # the record holds wherever it is replayed
    record = first.path.with_suffix(".metadata.json")
    again = run_command("mflux-generate", ["-C", str(record), "--metadata"], tiny.folder)
    assert said() == before == ["skipped 2 of 4 steps (threshold 0.3, mine)"]
    assert np.array_equal(again.pixels, first.pixels)
    assert not np.array_equal(again.pixels, plain.pixels)
    assert {k: v for k, v in sidecar(again).items() if k.startswith("teacache")} == {
        k: v for k, v in sidecar(first).items() if k.startswith("teacache")
    }


#: Options, what they are recorded as, and how many of twelve steps they skip; None where it depends on the model.
METHODS = [
    ("--teacache 2x", "2x", 6),
    ("--teacache 3x+reuse", "3x+reuse", 8),
    ("--dualcache aggressive", "dualcache:aggressive", None),
    ("--dualcache F=1,rdt=0.999,warmup=2", "dualcache:F=1,B=0,rdt=0.999,warmup=2", 6),
    ("--seacache 0.3", "seacache:0.3", None),
    ("--seacache 2", "seacache:2", 9),
    ("--teacache 0.25 --teacache-forecast linear", "0.25+linear", 7),
]


@LEFT_OPEN
@pytest.mark.parametrize(("options", "recorded", "skipped"), METHODS, ids=[row[0].replace(" ", "") for row in METHODS])
def test_every_method_is_recorded_and_replayed_to_the_pixel(
    options: str, recorded: str, skipped: int | None, mine: Path, said, tiny
) -> None:
    first = case("flux1").run(tiny, "--steps", "12", "--metadata", *options.split())
    keys = sidecar(first)
    assert keys["teacache_method"] == recorded
    assert keys["teacache_skipped"] + keys["teacache_computed"] == pytest.approx(12)
    if skipped is not None:
        assert keys["teacache_skipped"] == skipped
        assert not np.array_equal(first.pixels, case("flux1").run(tiny, "--steps", "12").pixels)
    before = said()
    again = run_command("mflux-generate", ["-C", str(first.path.with_suffix(".metadata.json"))], tiny.folder)
    assert said() == before
    assert np.array_equal(again.pixels, first.pixels)


def test_an_option_of_its_own_is_the_method_by_name(mine: Path, tiny) -> None:
    for option, value in (("dualcache", "F=1,rdt=0.999,warmup=2"), ("seacache", "2")):
        one = case("flux1").run(tiny, "--steps", "6", f"--{option}", value)
        other = case("flux1").run(tiny, "--steps", "6", "--teacache", f"{option}:{value}")
        assert np.array_equal(one.pixels, other.pixels)


@LEFT_OPEN
def test_a_run_without_a_variant_is_replayed_without_one(said, tiny, tmp_path) -> None:
    first = case("klein").run(tiny, "--steps", "6", "--metadata", "--teacache", "2x")
    assert (sidecar(first)["teacache_variant"], sidecar(first)["teacache_numbers"]) == ("", "")
    write_variant(
        tmp_path / "config" / "mflux" / "teacache", adapter="klein", models=["flux2"], recommended="3x"
    )  # is for it by now
    again = run_command(
        "mflux-generate-flux2", ["-C", str(first.path.with_suffix(".metadata.json")), "--metadata"], tiny.folder
    )
    assert np.array_equal(again.pixels, first.pixels)
    assert sidecar(again)["teacache_variant"] == ""


@LEFT_OPEN
def test_replay_pins_the_variant_and_tells_changed_numbers(mine: Path, said, tiny) -> None:
    first = case("flux1").run(tiny, "--metadata", "--teacache")
    record = first.path.with_suffix(".metadata.json")
    write_variant(mine.parent, models=["something-else"])  # who it is for does not count any more
    said()
    run_command("mflux-generate", ["-C", str(record)], tiny.folder)
    assert said() == ["skipped 2 of 4 steps (threshold 0.25, mine)"]
    write_variant(mine.parent, polynomial=[0.0, 0.0, 0.0, 0.0, 0.2])
    run_command("mflux-generate", ["-C", str(record)], tiny.folder)
    warning, summary = said()
    assert warning == f"the numbers of mine changed since -C {record} was recorded; the image may differ"
    assert summary == "skipped 1 of 4 steps (threshold 0.25, mine)"


@LEFT_OPEN
def test_options_go_over_the_replayed_file(mine: Path, said, tiny) -> None:
    first = case("flux1").run(tiny, "--metadata", "--teacache")
    record = str(first.path.with_suffix(".metadata.json"))
    said()
    plain = run_command("mflux-generate", ["-C", record, "--teacache", "off"], tiny.folder)
    assert said() == []
    assert np.array_equal(plain.pixels, case("flux1").run(tiny).pixels)


# ---- other ways in ---------------------------------------------------------------------------------------------------


def test_a_python_script_under_the_environment(tiny, tmp_path) -> None:
    """The script knows nothing of the plugin; the start-up file connects it."""
    script = tmp_path / "pictures.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.tiny.cases import case\n"
        "from tests.tiny.workspace import tiny_mflux\n"
        "with tiny_mflux(Path(sys.argv[1])) as tiny:\n"
        "    case('flux1').generate(case('flux1').build(tiny), tiny)\n"
    )
    coefficients = write_variant(tmp_path)
    tiny.checkpoint("dev")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MFLUX_TEACACHE": "auto",
        "MFLUX_TEACACHE_COEFFICIENTS": str(coefficients),
    }
    done = subprocess.run(
        [sys.executable, script, tiny.folder], env=environment, capture_output=True, text=True, check=True
    )
    assert re.findall("TeaCache: .*", done.stderr) == ["TeaCache: skipped 2 of 4 steps (threshold 0.25, mine)"]


@pytest.mark.parametrize("value", ["auto", "high"])
def test_in_python_what_cannot_be_done_is_one_line(value: str, mine: Path, said, tiny, monkeypatch) -> None:
    mine.write_text(mine.read_text().replace("threshold = 0.25", "threshold = 5"))
    monkeypatch.setenv("MFLUX_TEACACHE", value)
    model = case("flux1").build(tiny)
    (line,) = said()
    assert line.startswith("switched off for this run: ")
    named = [str(mine), "threshold: "] if value == "auto" else ["MFLUX_TEACACHE: 'high' is neither a number"]
    assert all(words in line for words in named), line
    assert case("flux1").generate(model, tiny).any()
    assert said() == []


def test_python_m() -> None:
    argv = [sys.executable, "-m", "mflux.models.flux.cli.flux_concept", "--concept", "x", "--prompt", "x", "--teacache"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert "flux_concept.py cannot skip steps" in done.stderr
    assert done.returncode == 2
