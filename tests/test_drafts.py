"""`mflux-teacache drafts` on a tiny checkpoint, through mflux's own command.

What the command's parser says of the options comes from a process of its own, which knows no tiny models: it is pretended
(`tests.pretended`), but for the last test, with the demo model.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import mflux_demo_model as demo_model
import numpy as np
import pytest

from mflux_teacache_plugin.calibration import takeover
from mflux_teacache_plugin.cli import main
from mflux_teacache_plugin.measure import metrics, runs
from tests import pretended
from tests.tiny.cases import SEED, case
from tests.tiny.commands import preserved_globals, read_pixels, run_command

pytestmark = pytest.mark.usefixtures("tiny", "eager")

STEPS = 6


@pytest.fixture(autouse=True)
def _fresh_plugins(fresh_plugins: None) -> None:
    """Each test has its own."""


@pytest.fixture
def drafts(tiny, tmp_path, capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Drafts of a tiny FLUX.2 Klein base: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "check", pretended.check)
    of = case("klein-base")

    def drafts(*options: object, more: tuple = ()) -> tuple[int, str, str]:
        words = ("drafts", *options, "--", of.command, *of.argv(tiny, "--steps", STEPS, *more))
        capsys.readouterr()
        with preserved_globals():
            code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return drafts


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """The seed of every picture made from now on."""
    seeds: list[int] = []
    generate = takeover.Model.generate

    def counted(self, prompt, seed, **changes):
        seeds.append(seed)
        return generate(self, prompt, seed, **changes)

    monkeypatch.setattr(takeover.Model, "generate", counted)
    return seeds


@pytest.fixture
def no_model(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(takeover, "run", lambda *_: pytest.fail("the command was run"))


def test_drafts_and_then_the_best_one_in_full(drafts, made, tmp_path) -> None:
    two = ("--setting", "2x", "--format", "json")
    code, out, err = drafts("--seeds", 2, *two)
    assert code == 0, err
    found = json.loads(out)
    sheet, pictures = Path(found["sheet"]), Path(found["pictures"])
    assert made == [SEED, SEED + 1] == [each["seed"] for each in found["drafts"]]
    assert all(each["final"] is None and each["psnr"] is None for each in found["drafts"])
    assert sheet.parent.parent == Path("drafts") and sheet.read_text().count("data:image/png") == 2
    assert sheet.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    made.clear()
    code, out, err = drafts("--final", SEED + 1, *two)
    assert code == 0, err
    assert made == [SEED + 1], "the drafts are those of the first call"
    other, best = json.loads(out)["drafts"]
    assert other["final"] is None and best["computed"] < STEPS
    draft, final = pictures / best["draft"], pictures / best["final"]
    near = metrics.similarity(draft, final)
    assert (best["ssim"], best["psnr"]) == (near.ssim, near.psnr)
    assert f"PSNR {near.psnr:.1f} dB" in sheet.read_text() and sheet.read_text().count("data:image/png") == 3

    made.clear()
    assert drafts(*two) == (0, out, f"sheet: {sheet}, or sheet.png beside it\n") and made == [], "all is there"

    assert drafts("--setting", "1.5x")[0] == 0
    assert made == [SEED, SEED + 1], "another setting, the same seeds"

    name, *options = shlex.split(best["command"])
    assert np.array_equal(run_command(name, options, tmp_path).pixels, read_pixels(final))
    assert np.array_equal(run_command(name, [*options, "--teacache", "2x"], tmp_path).pixels, read_pixels(draft))


def test_another_command_has_a_folder_of_its_own(drafts, made) -> None:
    two = ("--seeds", 1, "--setting", "2x", "--format", "json", "--folder", "mine")
    folders = {json.loads(drafts(*two, more=("--steps", steps))[1])["pictures"] for steps in (STEPS, STEPS + 1)}
    assert len(folders) == 2 and {Path(folder).parts[0] for folder in folders} == {"mine"}
    assert drafts(*two, "--fresh")[0] == 0
    assert made == [SEED] * 3, "what is there counts, unless --fresh is given"
    assert drafts(*two, "--fresh", "--final", SEED + 9)[0] == 2
    assert drafts(*two)[0] == 0 and made == [SEED] * 3, "what is refused clears nothing"


def test_what_the_command_cuts_of_guidance_is_cut_in_both(drafts, tmp_path) -> None:
    code, out, err = drafts(
        "--seeds", 1, "--final", SEED, "--setting", "2x", "--format", "json", more=("--cfg-end", 0.5)
    )
    assert code == 0, err
    found = json.loads(out)
    (only,) = found["drafts"]
    name, *options = shlex.split(only["command"])
    for file, setting in ((only["final"], "off"), (only["draft"], "2x")):
        saved = run_command(name, [*options, "--teacache", setting], tmp_path)
        assert np.array_equal(saved.pixels, read_pixels(Path(found["pictures"], file)))


@pytest.mark.parametrize(
    ("options", "more", "told"),
    [
        (("--seeds", 0), (), "makes no draft"),
        (("--seeds", 2, "--final", SEED, SEED + 2), (), f"there is no draft of seed {SEED + 2}"),
        (("--folder", "taken/here"), (), "taken is no folder"),
        (("--seeds", 2), ("--seed", -1), "--seed -1 is none that MLX takes"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_loads(drafts, no_model, tmp_path, options, more, told) -> None:
    (tmp_path / "taken").write_text("")
    code, out, err = drafts(*options, more=more)
    assert (code, out) == (2, "") and err.startswith("error: ") and told in err and "\n  hint: " in err


def test_so_is_what_the_command_or_the_setting_has_wrong(no_model, capsys) -> None:
    drafts, demo = ["drafts", "--"], ["mflux-generate-flux2", "--model", demo_model.NAME, "--prompt", "a fox"]
    for options, told in ((["--steps", "6"], "6 steps at 3x cannot be met"), (["--seed", "1", "2"], "several seeds")):
        assert main([*drafts, *demo, *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and told in err
