"""Every image command of mflux takes `--teacache 1.5x`, or says why not, before any weights are loaded."""

import functools
import importlib
import inspect
import json
import sys
from importlib.metadata import distribution
from unittest import mock

import pytest

from mflux_teacache_plugin.host import bridge
from tests.tiny.commands import preserved_globals, run_command
from tests.tiny.families import SIDE, family

PROMPT = '{"short_description": "a tiny random picture"}'

#: What a command needs beside a prompt; PHOTO is some picture.
NEEDS = {
    "mflux-concept": "--concept x",
    "mflux-concept-from-image": "--concept x --input-image-path PHOTO",
    "mflux-generate": "--model dev",
    "mflux-generate-anima": "--scheduler euler",
    "mflux-generate-controlnet": "--model dev --controlnet-image-path PHOTO",
    "mflux-generate-depth": "--depth-image-path PHOTO",
    "mflux-generate-fibo-edit": '--image-path PHOTO --prompt {"edit_instruction":"x"}',
    "mflux-generate-fibo2-edit": "--image-paths PHOTO --prompt x",
    "mflux-generate-fill": "--image-path PHOTO --masked-image-path PHOTO",
    "mflux-generate-flux2-edit": "--image-paths PHOTO",
    "mflux-generate-flux3-edit": "--image-paths PHOTO",
    "mflux-generate-in-context": "--reference-image PHOTO",
    "mflux-generate-in-context-catvton": "--garment-image PHOTO --person-image PHOTO --person-mask PHOTO",
    "mflux-generate-in-context-edit": "--reference-image PHOTO",
    "mflux-generate-iris": "--model iris-3b-base",
    "mflux-generate-kontext": "--image-path PHOTO",
    "mflux-generate-krea2": "--scheduler euler",
    "mflux-generate-krea2-controlnet": "--scheduler euler --depth-image-path PHOTO",
    "mflux-generate-qwen-2.1-controlnet": "--controlnet-image-path PHOTO",
    "mflux-generate-qwen-2.1-edit": "--image-paths PHOTO",
    "mflux-generate-qwen-edit": "--image-paths PHOTO",
    "mflux-generate-redux": "--redux-image-paths PHOTO",
    "mflux-generate-z-image-controlnet": "--control canny:PHOTO",
    "mflux-upscale-controlnet": "--controlnet-image-path PHOTO",
    "mflux-upscale-seedvr2": "--image-path PHOTO",
}

#: The only commands that cannot, with any options.
REFUSED = {
    "mflux-concept": "its attention maps come from the blocks",
    "mflux-concept-from-image": "its attention maps come from the blocks",
    "mflux-generate-boogu": "adds fresh noise",
    "mflux-upscale-seedvr2": "it takes a single step",
}

SCRIPTS = {script.name: script for script in distribution("mflux").entry_points.select(group="console_scripts")}
IMAGE_COMMANDS = sorted(
    name for name in SCRIPTS if name.startswith(("mflux-generate", "mflux-concept", "mflux-upscale"))
)


class Loads(Exception):
    """Nothing is refused, and the pipeline would load its weights now."""


def _stopped(stock):
    @functools.wraps(stock)
    def __init__(self, *args, **kwargs):
        raise Loads

    return __init__


@pytest.fixture
def run(monkeypatch, capsys, tiny):
    """Run a command up to where its pipeline loads; gives what it said if it was refused, else raises Loads."""

    def run(command, *argv):
        module = importlib.import_module(SCRIPTS[command].module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and hasattr(value, "generate_image"):
                monkeypatch.setattr(value, "__init__", _stopped(value.__init__))
        needs = [word.replace("PHOTO", str(tiny.pictures.photo)) for word in NEEDS.get(command, "").split()]
        asked = [] if command == "mflux-upscale-seedvr2" else ["--prompt", PROMPT, "--steps", "20"]
        bridge.install()
        try:
            words = [command, *asked, *needs, *argv]
            with preserved_globals(), mock.patch.object(sys, "argv", words), pytest.raises(SystemExit) as exit_:
                module.main()
        finally:
            bridge.uninstall()
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return run


pytestmark = pytest.mark.filterwarnings("ignore:.*is ignored:UserWarning")


@pytest.mark.parametrize("command", IMAGE_COMMANDS)
def test_every_command_takes_a_speed_up_or_says_why_not(command, run):
    if command not in REFUSED:
        with pytest.raises(Loads):
            run(command, "--teacache", "1.5x")
        return
    message = run(command, "--teacache", "1.5x")
    assert message.startswith(f"error: {command} cannot skip steps\n  cause: ") and REFUSED[command] in message


@pytest.mark.parametrize(
    ("command", "argv", "words"),
    [
        ("mflux-generate-krea2", "--scheduler linear", "er_sde adds noise between the steps"),
        ("mflux-generate-krea2-controlnet", "--scheduler er_sde", "er_sde adds noise between the steps"),
        ("mflux-generate-anima", "--scheduler er_sde", "er_sde adds noise between the steps"),
        ("mflux-generate-iris", "--model iris-3b", "Iris Turbo takes four large steps"),
        ("mflux-generate-lens", "--steps 4", "4 steps at 1.5x cannot be met"),
        ("mflux-generate-ideogram4", "--preset V4_TURBO_12 --teacache 8x", "12 steps at 8x cannot be met"),
        ("mflux-generate-qwen-2.1", "--step-cache-ratio 0.3", "mflux's own step cache"),
        ("mflux-generate-qwen-2.1-edit", "--use-step-cache", "mflux's own step cache"),
        ("mflux-generate-fibo2", "--teacache-ratio 0.3", "mflux's own step cache"),
        ("mflux-generate-moss-image", "--step-cache-ratio 0.3", "mflux's own step cache"),
        ("mflux-generate-fibo2", "--teacache 0.2", "nobody has said where"),
        ("mflux-generate-z-image", "--dualcache aggressive --teacache off", ""),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_reason(command, argv, words, run):
    if command not in SCRIPTS:
        pytest.skip("this mflux does not have it")
    message = run(command, "--teacache", "1.5x", *argv.split())
    assert message.count("\n") >= 2 and "Traceback" not in message
    assert words in message


@pytest.mark.parametrize("argv", [[], ["--teacache-forecast", "reuse"]])
def test_where_the_environment_asks_it_is_one_warning(argv, run, monkeypatch, capsys):
    """Also with a forecast, which only says how; where nothing else asks for step caching it is an order."""
    if argv:
        assert "er_sde" in run("mflux-generate-krea2", "--scheduler", "er_sde", *argv)
    monkeypatch.setenv("MFLUX_TEACACHE", "1.5x")
    with pytest.raises(Loads):
        run("mflux-generate-krea2", "--scheduler", "er_sde", *argv)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("TeaCache: ")]
    assert len(said) == 1 and "switched off for this run" in said[0] and "er_sde" in said[0]


#: What leaves two of ten steps, or three, in the commands that have such an option and pass it on.
SHORTENED = {
    **dict.fromkeys(
        [
            "mflux-generate",
            "mflux-generate-ernie-image",
            "mflux-generate-ernie-image-turbo",
            "mflux-generate-fibo",
            "mflux-generate-flux2",
            "mflux-generate-krea2",
            "mflux-generate-qwen",
            "mflux-generate-qwen-2.1",
            "mflux-generate-z-image",
            "mflux-generate-z-image-turbo",
        ],
        "--image-path PHOTO --image-strength 0.8",
    ),
    "mflux-generate-qwen-2.1-edit": "--strength 0.2",
}


@pytest.mark.parametrize("command", [each for each in IMAGE_COMMANDS if each not in REFUSED])
def test_steps_that_image_strength_leaves_out_are_known_before_weights_are_loaded(command, run, tiny):
    """Where it counts, and where it does not: Kontext has the option, and takes all steps."""
    module = importlib.import_module(SCRIPTS[command].module)
    passes_on = "image_strength=args.image_strength" in inspect.getsource(module)
    if "--image-strength" not in SHORTENED.get(command, "--image-strength"):
        passes_on = True
    assert passes_on is (command in SHORTENED), "the list is what mflux's commands do"
    options = SHORTENED.get(command, "--image-path PHOTO --image-strength 0.8" if command in HAVE_IT else "")
    argv = ["--teacache", "2x", "--steps", "10", *options.replace("PHOTO", str(tiny.pictures.photo)).split()]
    if command == "mflux-generate-ideogram4":
        argv = argv[:2]
    if command in SHORTENED:
        message = run(command, *argv)
        assert message.startswith("error: 2 steps at 2x cannot be met\n") or message.startswith("error: 3 steps at 2x")
    else:
        with pytest.raises(Loads):
            run(command, *argv)


#: Has --image-strength, and does not pass it on.
HAVE_IT = ("mflux-generate-kontext",)


def test_the_newer_way_to_give_picture_and_strength(run, tiny):
    message = run("mflux-generate", "--teacache", "2x", "--steps", "10", "--image", str(tiny.pictures.photo), "0.8")
    assert message.startswith("error: 2 steps at 2x cannot be met")
    assert "\n  cause: of 10 steps the strength leaves 2; " in message and "take at least 26 --steps" in message
    asked = ["--teacache", "2x", "--image", str(tiny.pictures.photo)]
    assert "cannot be met" in run("mflux-generate", *asked, "0.8", "--steps", "25")
    with pytest.raises(Loads):
        run("mflux-generate", *asked, "0.8", "--steps", "26")
    assert "no number of steps will do at this strength" in run("mflux-generate", *asked, "1")
    with pytest.raises(Loads):  # a strength without a picture, or of 0, leaves nothing out
        run("mflux-generate", "--teacache", "2x", "--steps", "10", "--image-strength", "0.8")
    with pytest.raises(Loads):
        run("mflux-generate", "--teacache", "2x", "--steps", "10", "--image", str(tiny.pictures.photo), "0")


@pytest.mark.parametrize("options", ["--steps 4", "--steps 10 --image-path PHOTO --image-strength 0.8"])
def test_a_plain_teacache_on_few_steps_is_plain_mflux_with_a_line(options, run, tiny, capsys):
    """It asks for what is recommended, and for few steps that is nothing. A speed-up that was asked for stays refused."""
    argv = options.replace("PHOTO", str(tiny.pictures.photo)).split()
    with pytest.raises(Loads):
        run("mflux-generate-z-image", *argv, "--teacache")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("TeaCache: ")]
    assert len(said) == 1 and said[0].startswith("TeaCache: nothing to skip, this run is plain mflux: ")
    assert "cannot be met" in run("mflux-generate-z-image", *argv, "--teacache", "2X")


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # mflux leaves the file of -C open
@pytest.mark.parametrize(
    ("id", "command", "argv"),
    [
        ("lens", "mflux-generate-lens", "--steps 9"),
        ("anima", "mflux-generate-anima", "--model anima-base --scheduler euler --guidance 3 --steps 9"),
        ("moss-image", "mflux-generate-moss-image", "--uncond-skip-layers 1 --steps 9"),
        ("z-image:turbo", "mflux-generate-z-image-turbo", ""),
    ],
)
def test_a_picture_says_what_was_skipped_and_is_made_again_from_its_record(id, command, argv, tiny, capsys):
    size = ["--width", SIDE, "--height", SIDE, "--seed", 7, "--prompt", "x", "--metadata", *argv.split()]
    scheduler = ["--scheduler", "euler"] if "euler" in argv else []  # mflux records it nowhere
    with family(id).installed():
        bridge.install()
        try:
            saved = run_command(command, [str(word) for word in (*size, "--teacache", "1.5x")], tiny.folder)
            record = json.loads(saved.path.with_suffix(".metadata.json").read_text())
            path = saved.path.with_suffix(".metadata.json")
            again = run_command(command, ["-C", str(path), "--metadata", *scheduler], tiny.folder)
        finally:
            bridge.uninstall()
    assert record["teacache_method"] == "1.5x" and (record["teacache_computed"], record["teacache_skipped"]) == (6, 3)
    repeated = json.loads(again.path.with_suffix(".metadata.json").read_text())
    assert {k: v for k, v in repeated.items() if "teacache" in k} == {
        k: v for k, v in record.items() if "teacache" in k
    }
    assert capsys.readouterr().err.count("skipped 3 of 9 steps") == 2
