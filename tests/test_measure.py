"""`compare` and `bench`: what they make of runs, what they leave behind, and what they say to bad input.

The runs are pretended (`tests.pretended`), but for those at the end: the demo model through mflux's own command.
"""

import errno
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import mflux_demo_model as demo_model
import numpy as np
import pytest
from PIL import Image

from mflux_teacache_plugin.cli import main
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import files, ledger, metrics, runs, series, shards, suite
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.runs import Command, Run
from tests import pretended
from tests.test_options import write_variant

ROOT = Path(__file__).parents[1]
COMMAND = ["mflux-generate", "--model", "dev", "--prompt", "a <b>red</b> apple", "--steps", "10"]

SUITE = """
title = "a test"
source = "made up"
prompts = ["apples", "pears"]
seeds = [1, 2]
settings = ["0.1", "0.3"]
repetitions = 2

[[recipes]]
command = "mflux-generate"
models = ["dev"]
steps = [10]
quantizations = ["none", 4]
"""


@pytest.fixture
def pretend(monkeypatch) -> None:
    pretended.made.clear()
    monkeypatch.setattr(runs, "picture", pretended.picture)
    monkeypatch.setattr(runs, "check", pretended.check)


@pytest.fixture
def run(capsys, pretend) -> Callable[..., tuple[int, str, str]]:
    """Run `mflux-teacache` in this process: exit code, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def user_folder(tmp_path) -> Path:
    return tmp_path / "config" / "mflux" / "teacache"


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Charts take a second each."""
    from mflux_teacache_plugin.measure import report

    for name in ("grid", "frontier", "sizes"):
        monkeypatch.setattr(report, name, lambda *_: None)
    monkeypatch.setattr(report, "_save", lambda figure, file: file.touch())


@pytest.fixture
def a_suite(tmp_path) -> Callable[..., Path]:
    def write(text: str = SUITE) -> Path:
        (tmp_path / "suite.toml").write_text(text)
        return tmp_path / "suite.toml"

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_a_picture_that_is_the_same(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    near = metrics.similarity(tmp_path / "a.png", picture)
    assert (near.ssim, near.psnr) == (1.0, math.inf)


def test_psnr_in_decibels() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert metrics.similarity(grey + 10, grey).psnr == pytest.approx(20 * math.log10(255 / 10))


def test_ssim_as_most_tables_have_it(tmp_path) -> None:
    """Wang et al. 2004: Gaussian weights over 11 pixels, here computed by hand for one window."""
    picture, reference = np.random.default_rng(0).integers(0, 256, (2, 11, 11, 3), dtype=np.uint8)
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    of_colour = []
    for x, y in zip(np.moveaxis(picture / 1.0, 2, 0), np.moveaxis(reference / 1.0, 2, 0), strict=True):
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        spread_x, spread_y = (weights * x * x).sum() - mean_x**2, (weights * y * y).sum() - mean_y**2
        shared = (weights * x * y).sum() - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        of_colour.append(
            (2 * mean_x * mean_y + c1) * (2 * shared + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))
        )  # fmt: skip
    assert metrics.similarity(picture, reference).ssim == pytest.approx(np.mean(of_colour))


def test_a_summary_has_the_mean_and_the_worst() -> None:
    found = metrics.summarize([Similarity(1.0, math.inf), Similarity(0.5, 21.0)])
    assert (found.ssim, found.ssim_worst, found.psnr, found.psnr_worst) == (0.75, 0.5, 60.0, 21.0)


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch, run, tmp_path) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    code, _, err = run("compare", "--settings", "0.1", "--out", tmp_path / "out", "--", *COMMAND)
    assert code == 2 and 'pip install "mflux-teacache-plugin[pictures]"' in err


# ---- commands and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "there is no image command"),
        (["--"], "there is no image command"),
        (["mflux-generade", "--prompt", "x"], "did you mean mflux-generate?"),
        (["ls"], "ls is not a command of mflux"),
        (["mflux-teacache", "demo"], "mflux-teacache is not a command of mflux"),
    ],
)
def test_an_unknown_command(words: list[str], error: str) -> None:
    with pytest.raises(TeaCacheError) as raised:
        Command.of(words)
    assert error in str(raised.value)


def test_options_go_behind_those_that_are_there() -> None:
    command = Command.of(["--", "/usr/bin/mflux-generate", "--steps", "4"]).with_options(steps=9, guidance=None)
    assert str(command) == "mflux-generate --steps 4 --steps 9"


@pytest.mark.parametrize(
    ("steps", "computed", "fewer"),
    [(50, 27, 27), (50, 20.6, 21), (50, 0.2, 1), (50, 50, 50)],
)
def test_plain_steps_that_cost_as_much(steps: int, computed: float, fewer: int) -> None:
    plain = Run(steps, steps, 0, 1, 1, None, None, None)
    assert Run(steps, computed, 0, 1, 1, None, None, None).fewer(plain) == fewer


def test_plain_steps_that_cost_as_much_from_a_picture() -> None:
    """50 steps from a picture are a loop of 30: half of them is asked for as half of 50."""
    plain = Run(50, 30, 0, 1, 1, None, None, None)
    assert Run(50, 15, 15, 1, 1, None, None, None).fewer(plain) == 25
    half_guided = Run(12, 9, 3, 1, 1, None, None, None)  # --cfg-end 0.5 in the command: its plain run has it too
    assert Run(12, 4.5, 7.5, 1, 1, None, None, None).fewer(half_guided) == 6


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_compare_writes_everything_and_prints_a_table(run, tmp_path) -> None:
    out = tmp_path / "out"
    code, text, err = run("compare", "--settings", "off", "0.1", "0.3", "0.1", "--out", out, "--", *COMMAND)
    assert code == 0, err
    *table, empty, verdict = text.splitlines()[3:]
    ways = [re.split(r"\s{2,}", line.strip())[0] for line in table]
    assert (empty, verdict.partition(": ")[2]) == (
        "",
        "No setting keeps its pictures and beats plain mflux with as many steps.",
    )
    assert ways == ["off", "0.1", "plain, as many", "0.3", "plain, as many"]
    assert "report: " in err and str(out / "report.html") in err
    pictures = {f"42-{way}.png" for way in ("plain-10-steps", "plain-8-steps", "plain-5-steps", "0.1", "0.3")}
    made = {"comparison.png", "frontier.png", "report.html", "results.json"}
    assert {path.name for path in out.iterdir()} == pictures | made
    assert all((out / name).read_bytes()[1:4] == b"PNG" for name in ("comparison.png", "frontier.png"))


@pytest.mark.usefixtures("undrawn")
def test_a_second_comparison_leaves_no_picture_of_the_first_and_all_that_is_not_its_own(run, tmp_path) -> None:
    out = tmp_path / "out"
    run("compare", "--settings", "0.1", "--out", out, "--", *COMMAND)
    (out / "42-mine.png").write_bytes(b"mine")
    run("compare", "--settings", "0.3", "--out", out, "--", *COMMAND)
    assert {path.name for path in out.glob("42-*")} == {
        *(f"42-{way}.png" for way in ("plain-10-steps", "plain-5-steps", "0.3", "mine"))
    }


@pytest.mark.usefixtures("undrawn")
def test_compare_as_json(run, tmp_path) -> None:
    out = tmp_path / "out"
    code, text, _ = run("compare", "--settings", "0.3", "--out", out, "--format", "json", "--", *COMMAND)
    found = json.loads(text)
    assert code == 0 and found == json.loads((out / "results.json").read_text())
    plain, cached = found["rows"]
    assert (plain["setting"], plain["computed"], plain["speedup"]) == ("off", 10, 1.0)
    assert (cached["computed"], cached["fewer_computed"], cached["skipped"]) == (5, 5, 0.5)
    assert (cached["speedup"], cached["ideal"], cached["of_ideal"]) == (2.0, 2.0, 1.0)
    assert cached["psnr"] < cached["fewer_psnr"] and cached["advice"] == "plain with as many steps is nearer"
    assert [each["psnr"] for each in found["runs"] if each["setting"] == "off" and each["steps"] == 10] == [None]
    assert found["machine"]["mflux"] and found["command"] == shlex.join(COMMAND)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("given", "seed"), [([], "42"), (["--seed", "7"], "7"), (["--seed=8", "--seed", "8"], "8")])
def test_every_run_of_a_comparison_has_one_seed(given: list[str], seed: str, run, tmp_path) -> None:
    run("compare", "--settings", "0.3", "--out", tmp_path / "out", "--", *COMMAND, *given)
    assert {pretended.option(command, "seed") for command, _ in pretended.made} == {seed}


def test_a_comparison_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PRETENDED_FAILS", COMMAND[4])
    code, out, err = run("compare", "--settings", "0.1", "--out", tmp_path / "deep" / "out", "--", *COMMAND)
    assert (code, out) == (2, "")
    assert "failed with exit code 1\n  cause: out of memory" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_is_an_error_and_the_former_results_stay(run, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    run("compare", "--settings", "0.1", "--out", out, "--", *COMMAND)
    before = contents(out)

    def full(path: Path, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run("compare", "--settings", "0.3", "--out", out, "--", *COMMAND)
    assert code == 2 and err.splitlines()[-1].startswith("error: No space left on device: ")
    assert contents(out) == before


@pytest.mark.parametrize("verb", ["compare", "bench"])
def test_a_folder_that_cannot_be_written_to_is_told_before_the_first_run(verb: str, run, tmp_path, a_suite) -> None:
    (tmp_path / "file").touch()
    argv = ["--settings", "0.1", "--out", tmp_path / "file" / "out", "--", *COMMAND]
    if verb == "bench":
        argv = [a_suite(), *argv[2:4]]
    code, out, err = run(verb, *argv)
    assert (code, out, pretended.made) == (2, "", [])
    assert "cannot be written" in err and "file is no folder" in err


def test_a_command_with_several_seeds_is_refused(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "check", lambda command, _: {**pretended.check(command, _), "seed": [1, 2]})
    code, _, err = run("compare", "--settings", "0.1", "--out", tmp_path / "out", "--", *COMMAND, "--seed", "1", "2")
    assert code == 2 and "bench` takes many" in err


def test_a_comparison_with_nothing_beside_plain_is_refused(run, tmp_path) -> None:
    code, _, err = run("compare", "--settings", "off", "--out", tmp_path / "out", "--", *COMMAND)
    assert code == 2 and "nothing to be compared with" in err and not (tmp_path / "out").exists()


def test_a_terminated_run_leaves_nothing_half_done(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "picture", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    code, out, err = run("compare", "--settings", "0.1", "--out", tmp_path / "out", "--", *COMMAND)
    assert (code, out) == (130, "") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


def test_a_prompt_file_that_is_not_there(run, tmp_path) -> None:
    file = tmp_path / "prompt.txt"
    argv = ["--settings", "0.1", "--out", tmp_path / "out", "--", *COMMAND[:3], "--prompt-file", file]
    code, _, err = run("compare", *argv)
    assert (code, pretended.made) == (2, []) and f"error: No such file or directory: {file}" in err


@pytest.mark.parametrize("setting", ["7", "soon", "0"])
def test_a_setting_that_makes_no_sense(setting: str, run, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        run("compare", "--settings", setting, "--", *COMMAND)
    assert raised.value.code == 2
    assert f"argument --settings: '{setting}' is" in capsys.readouterr().err


class _Links(HTMLParser):
    """What a page would load or run, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_needs_nothing_else(run, tmp_path) -> None:
    run("compare", "--settings", "0.1", "--out", tmp_path / "out", "--", *COMMAND)
    page = (tmp_path / "out" / "report.html").read_text()
    links = _Links(page)
    assert len(links.loaded) == 4, "three pictures, one chart"
    assert all(re.match(r"data:image/(png|webp);base64,", link) for link in links.loaded)
    assert not links.tags & {"script", "link", "iframe", "a", "b<"} and "@import" not in page and "url(" not in page
    assert "a <b>red</b> apple" in links.text, "a prompt is text"


def test_large_pictures_are_scaled_down_for_the_report(tmp_path) -> None:
    from mflux_teacache_plugin.measure import report

    Image.new("RGB", (2000, 1000)).save(tmp_path / "large.png")
    assert report.inlined(tmp_path / "large.png").startswith("data:image/webp;base64,")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_what_it_was(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file"
    files.write(file, "before")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        files.write(file, "after")
    assert contents(tmp_path) == {"file": b"before"}


# ---- suites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("repetitions", "repetitons"), "repetitons: unknown key; did you mean repetitions?"),
        (("repetitions = 2", "repetitions = 0"), "repetitions: expected a whole number, at least 1, got 0 (integer)"),
        (('"0.3"]', '"7"]'), "settings[1]: '7' is not above 0"),
        (('prompts = ["apples", "pears"]', ""), 'prompts: missing; add prompts = ["a red apple"]'),
        (('"apples"', '" "'), 'prompts[0]: expected text, got " " (string)'),
        (('["apples", "pears"]', "[]"), "prompts: expected a list"),
        (("seeds = [1, 2]", "seeds = [1]\npaired_seeds = true"), "seeds: 1 for 2 prompts"),
        (("mflux-generate", "mflux-generade"), "recipes[0].command: mflux-generade is not a command of mflux"),
        (('"none", 4', '"none", 7'), 'recipes[0].quantizations[1]: not a quantization: 7 (integer); write "none" or'),
        (("steps = [10]", "steps = 10"), "recipes[0].steps: expected a list, got 10 (integer)"),
        (("steps = [10]", "steps = [10]\nsize = [64]"), "recipes[0].size: expected width and height"),
        (("seeds = [1, 2]", "seeds = [1, 1]"), "asks for the same picture twice"),
        (("[10]", "[1_000_000]"), "recipes[0].steps[0]: expected a whole number of steps, at most 9999, got 1000000"),
        (("title =", "title"), "is not valid TOML\n  cause: "),
        (("title", f"x = {'9' * 5000}\ntitle"), "is not valid TOML\n  cause: "),
        (("title", f"x = {'[' * 50_000}\ntitle"), "is not valid TOML\n  cause: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_suite_that_cannot_be_used(change: tuple[str, str], error: str, run, a_suite) -> None:
    code, out, err = run("bench", a_suite(SUITE.replace(*change)))
    assert (code, out, pretended.made) == (2, "", [])
    assert error in err


def test_a_suite_that_is_not_there(run, tmp_path) -> None:
    code, _, err = run("bench", tmp_path / "none.toml")
    assert code == 2 and "none.toml cannot be read\n  cause: No such file or directory" in err


def test_a_byte_order_mark_is_read_over(tmp_path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8-sig")
    assert suite.read(tmp_path / "suite.toml").title == "a test"


def test_seeds_in_pairs_or_each_with_each(a_suite) -> None:
    crossed = [(case.prompt, case.seed) for case in suite.read(a_suite()).cases()][:4]
    assert crossed == [("apples", 1), ("apples", 2), ("pears", 1), ("pears", 2)]
    paired = suite.read(a_suite(SUITE.replace("settings", "paired_seeds = true\nsettings", 1))).cases()
    assert [(case.prompt, case.seed) for case in paired][:2] == [("apples", 1), ("pears", 2)]


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "suites").glob("*.toml")), ids=lambda file: file.stem)
def test_the_suites_that_ship_can_be_used(file: Path) -> None:
    found = suite.read(file)
    assert found.source and found.cases()


# ---- bench -----------------------------------------------------------------------------------------------------------


def test_bench_writes_everything_and_prints_a_table(run, tmp_path, a_suite) -> None:
    out = tmp_path / "out"
    code, text, err = run("bench", a_suite(), "--out", out)
    assert code == 0, err
    assert "\ndev, 10 steps\nSETTING" in text and "\ndev, 4 bits, 10 steps\nSETTING" in text
    assert "dev, 10 steps: No setting keeps its pictures and beats plain mflux with as many steps" in text
    made = {"comparison-1.png", "comparison-2.png", "frontier.png", "sizes.png", "report.html"}
    assert {path.name for path in out.iterdir()} == made | {"pictures", "results.json", "runs"}
    found = json.loads((out / "results.json").read_text())
    assert [(row["group"], row["setting"]) for row in found["rows"]][:3] == [
        ("dev, 10 steps", "off"),
        ("dev, 10 steps", "0.1"),
        ("dev, 10 steps", "0.3"),
    ]
    assert found["suite"]["prompts"] == ["apples", "pears"] and found["machine"]["mlx"]
    rows = found["rows"]
    assert [row["speedup"] for row in rows[:3]] == [1.0, 1.25, 2.0]
    assert rows[0]["whole"] is None and rows[3]["whole"] == "dev, 10 steps" and rows[3]["whole_ssim"] == 1.0
    # two quantizations, two prompts, two seeds: plain, two settings, two plain with fewer steps
    assert len(list((out / "pictures").iterdir())) == 2 * 2 * 2 * 5
    assert len(found["runs"]) == 2 * 2 * 2 * 5 * 2


@pytest.mark.usefixtures("undrawn")
def test_conditions_take_turns_after_a_warm_up(run, tmp_path, a_suite) -> None:
    run("bench", a_suite(), "--out", tmp_path / "out")
    ways = [(pretended.option(command, "steps"), wanted) for command, wanted in pretended.made]
    assert ways[:6] == [("10", "off"), ("10", "0.1"), ("10", "0.3")] * 2, "one round for each model to warm up"
    assert ways[6:11] == [("10", "off"), ("10", "0.1"), ("10", "0.3"), ("8", "off"), ("5", "off")]
    assert len(ways) == 6 + 80


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_bench_goes_on_where_it_stopped(run, tmp_path, a_suite, monkeypatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    file = a_suite(SUITE.replace("repetitions = 2", "repetitions = 2\nwarm_up = 0"))
    run("bench", file, "--out", whole)
    monkeypatch.setenv("PRETENDED_FAILS", "pears")
    code, _, err = run("bench", file, "--out", out)
    assert code == 2 and "out of memory" in err
    kept = list((out / "runs").iterdir())
    assert len(kept) == 10, "two seeds of the first prompt"
    kept[-1].write_text(kept[-1].read_text()[:40])  # torn: it was being written
    monkeypatch.delenv("PRETENDED_FAILS")
    pretended.made.clear()
    code, _, err = run("bench", file, "--out", out)
    assert code == 0 and "9 of 80 runs were there already" in err
    assert len(pretended.made) == 71
    assert contents(out) == contents(whole)


@pytest.mark.usefixtures("undrawn")
def test_a_changed_suite_uses_again_only_what_it_asks_for_again(run, tmp_path, a_suite) -> None:
    out = tmp_path / "out"
    run("bench", a_suite(), "--out", out)
    pretended.made.clear()
    changed = SUITE.replace('"apples"', '"plums"').replace("repetitions = 2", "repetitions = 1\nwarm_up = 0")
    run("bench", a_suite(changed), "--out", out)
    assert {pretended.option(command, "prompt") for command, _ in pretended.made} == {"plums"}
    assert len(pretended.made) == 2 * 2 * 5
    pretended.made.clear()
    run("bench", a_suite(changed), "--out", out)
    assert pretended.made == []
    (out / "pictures" / "dev-10-steps-p2-s1-0.3.png").unlink()
    run("bench", a_suite(changed), "--out", out)
    assert [wanted for _, wanted in pretended.made] == ["0.3"], "a picture that is gone is made again"
    pretended.made.clear()
    run("bench", a_suite(changed), "--out", out, "--fresh")
    assert len(pretended.made) == 2 * 2 * 2 * 5


@pytest.mark.usefixtures("undrawn")
def test_a_bench_measures_again_after_a_coefficient_file_changed(run, tmp_path, a_suite, user_folder) -> None:
    """Also one beside the model, or one that the command names."""
    model, named = tmp_path / "model", tmp_path / "named.toml"
    model.mkdir()
    places = (user_folder / "mine.toml", model / "teacache.toml", named)
    recipe = f'command = "mflux-generate --teacache-coefficients {named}"\nmodels = ["{model}"]'
    text = SUITE.replace('command = "mflux-generate"\nmodels = ["dev"]', recipe).replace(
        "repetitions = 2", "repetitions = 1\nwarm_up = 0"
    )
    file = a_suite(text.replace('"pears"]', "]").replace("seeds = [1, 2]", "seeds = [1]"))
    for place in places:
        write_variant(place.parent, id=place.stem)
    for place in (*places, None):
        if place is not None:
            write_variant(place.parent, id=place.stem, recommended="3x")  # by which nothing else is told apart
        assert run("bench", file, "--out", tmp_path / "out")[0] == 0
        again = {wanted for _, wanted in pretended.made}
        pretended.made.clear()
        assert run("bench", file, "--out", tmp_path / "out")[0] == 0
        assert again == ({"off", "0.1", "0.3"} if place == places[0] else set() if place is None else {"0.1", "0.3"})
        assert pretended.made == []


def test_numbers_stand_in_for_every_coefficient_file(tmp_path) -> None:
    """A calibration's own file beside the model, written at its end, does not make its pictures again."""
    command = Command("mflux-generate", ("--model", str(tmp_path), "--seed", "1"))
    case = series.Case("a", "m", "x", 1, 10, ("2x",), command)
    first, none = ledger.Ledger(tmp_path / "out", numbers=["1"]), ledger.Ledger(tmp_path / "other")
    for each in (first, none):
        each.maker = lambda case, setting, steps, _, here=each: series.Shot(
            case.name, setting, steps, 0, "a.png", pretended.picture(case.command, setting, here.pictures / "a.png")
        )
        each.make(case, "2x", 10, 0)
    write_variant(tmp_path, id="teacache")
    assert ledger.Ledger(tmp_path / "out", numbers=["1"]).find(case, "2x", 10, 0) is not None
    assert ledger.Ledger(tmp_path / "out", numbers=["2"]).find(case, "2x", 10, 0) is None
    assert ledger.Ledger(tmp_path / "other").find(case, "2x", 10, 0) is None, "which the command would read"


@pytest.mark.usefixtures("undrawn")
def test_a_rank_gathers_only_what_it_has_made(run, tmp_path, a_suite, monkeypatch) -> None:
    """Three pictures for two ranks, each repeated: a picture and its repetitions are one rank's."""
    gathered: list[Path] = []
    monkeypatch.setattr(shards, "world", lambda: (1, 2))
    monkeypatch.setattr(shards, "wait", lambda: None)
    monkeypatch.setattr(shards, "gather_files", lambda files, _: gathered.extend(files))
    text = (
        SUITE.replace("seeds = [1, 2]", "seeds = [1]")
        .replace('"pears"]', '"pears", "plums"]')
        .replace('"none", 4', '"none"')
    )
    assert run("bench", a_suite(text), "--out", tmp_path / "out")[0] == 0
    assert len(gathered) == 5 + 2 * 5 and all(file.exists() for file in gathered)


def test_settings_that_look_alike_have_pictures_of_their_own(tmp_path, run) -> None:
    steps = ["steps:0-4,9", "steps:0,4,9"]
    assert run("compare", "--settings", *steps, "--out", tmp_path / "out", "--", *COMMAND)[0] == 0
    made = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert len({each["file"] for each in made}) == len(made) == 4


def test_a_name_that_is_too_long_for_a_file_stays_different_from_others() -> None:
    one, other = (series.slug("a" * 300, way) for way in ("2x", "3x"))
    assert one != other and len(one) == len(other) <= series.LONGEST


def test_the_whole_model_is_the_least_quantized(a_suite) -> None:
    for written, whole in (('4, "none"', "dev, 10 steps"), ("4, 8", "dev, 8 bits, 10 steps")):
        cases = suite.read(a_suite(SUITE.replace('"none", 4', written))).cases()
        groups = {case.group: {other.group for other in cases if other.name == case.whole} for case in cases}
        assert groups == {"dev, 4 bits, 10 steps": {whole}, whole: set()}


def test_dollars_are_no_formula_and_a_plain_group_is_no_reason_to_fail(run, tmp_path, a_suite) -> None:
    text = SUITE.replace('"apples", "pears"', "'menu: $4.50 #1, $6 #2', '$100_$'").replace(
        "repetitions = 2", "repetitions = 1"
    )
    text = text.replace('"none", 4', '"none"') + '\n[[recipes]]\ncommand = "mflux-generate"\nmodels = ["me/$x_$"]\n'
    code, out, err = run("bench", a_suite(text + 'steps = [10]\nsettings = ["off"]\n'), "--out", tmp_path / "out")
    assert code == 0 and "me/$x_$" in out, err
    assert (tmp_path / "out" / "frontier.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_what_a_killed_bench_left_is_cleared(run, tmp_path, a_suite) -> None:
    out = tmp_path / "out"
    (out / "pictures" / ".run-x7").mkdir(parents=True)
    (out / "pictures" / ".run-x7" / "picture.png").touch()
    (out / "pictures" / ".dev-again.png").touch()
    assert run("bench", a_suite(), "--out", out)[0] == 0
    assert not [path for path in (out / "pictures").iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("undrawn")
def test_a_bench_measures_again_after_the_code_changed(run, tmp_path, a_suite, monkeypatch) -> None:
    file = a_suite(SUITE.replace("repetitions = 2", "repetitions = 1\nwarm_up = 0"))
    run("bench", file, "--out", tmp_path / "out")
    whole = len(pretended.made)
    pretended.made.clear()
    monkeypatch.setattr(ledger, "code_digest", lambda: "other code")
    run("bench", file, "--out", tmp_path / "out")
    assert len(pretended.made) == whole == 2 * 2 * 2 * 5


def test_the_digest_of_the_code_leaves_out_what_makes_no_picture(tmp_path) -> None:
    for name in ("apply.py", "methods/teacache.py", "measure/report.py", "cli/bench.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    before = ledger.code_digest(tmp_path)
    (tmp_path / "measure" / "report.py").write_text("2")
    assert ledger.code_digest(tmp_path) == before
    (tmp_path / "methods" / "teacache.py").write_text("2")
    assert ledger.code_digest(tmp_path) != before


def test_the_demo_is_a_bench_of_its_prompts() -> None:
    cases = suite.read(ROOT / "examples" / "demo_model" / "demo.toml").cases()
    assert [{"prompt": case.prompt, "seed": case.seed} for case in cases] == demo_model.prompts("demo")
    assert {case.group for case in cases} == {f"{demo_model.NAME}, 128x128, 50 steps, guidance 4"}


# ---- several ranks ---------------------------------------------------------------------------------------------------


def launched(ranks: int, *argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mflux-teacache ARGV` under mlx.launch, with the pretended mflux."""
    launcher = [Path(sysconfig.get_path("scripts"), "mlx.launch"), "-n", str(ranks), "--backend", "ring"]
    words = [*launcher, "--", sys.executable, "-m", "tests.pretended", *map(str, argv)]
    return subprocess.run(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, env={**os.environ, **environment}, capture_output=True, text=True
    )


#: Four pictures: of two ranks, the second makes those of the pears and the plums.
SHARED = SUITE.replace('"pears"]', '"pears", "cherries", "plums"]').replace("seeds = [1, 2]", "seeds = [1]")
SHARED = SHARED.replace("repetitions = 2", "repetitions = 1\nwarm_up = 0").replace('"none", 4', '"none"')


def test_two_ranks_write_what_one_process_writes(run, tmp_path, a_suite) -> None:
    code, text, _ = run("bench", a_suite(SHARED), "--out", tmp_path / "one")
    done = launched(2, "bench", a_suite(SHARED), "--out", tmp_path / "two")
    assert code == 0 and done.returncode == 0, done.stderr
    assert done.stdout == text, "one rank speaks"
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("how", ["FAILS", "DIES"])
def test_a_rank_that_fails_is_named_and_what_was_streamed_is_kept(how: str, tmp_path, a_suite) -> None:
    out = tmp_path / "out"
    done = launched(2, "bench", a_suite(SHARED), "--out", out, **{f"PRETENDED_{how}": "plums"})
    name = {"FAILS": r"rank 1 \(.*\): error: `mflux-generate .*plums", "DIES": "Node with rank 1 exited with code -9"}
    assert re.search(name[how], done.stdout + done.stderr), done.stderr
    assert len(list((out / "runs").glob("*-p2-*.json"))) == 5, "the pears"
    assert not (out / "results.json").exists()


# ---- real runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["mflux-concept", "--concept", "x", "--prompt", "x", "--model", "schnell"], "cannot skip steps"),
        (["mflux-info", "x"], "mflux-info makes no pictures"),
        (["mflux-generate", "--prompt", "x", "--stepz", "3"], "unrecognized arguments: --stepz"),
    ],
)
def test_a_command_that_cannot_be_cached_is_told_without_a_run(words: list[str], error: str) -> None:
    with pytest.raises(TeaCacheError) as raised:
        runs.check(Command.of(words), ["0.1"])
    assert error in str(raised.value)


@pytest.mark.xdist_group("compiled")
def test_compare_on_the_demo_model(tmp_path) -> None:
    """Through mflux's own command, each run in a process of its own."""
    options = [
        "--model",
        demo_model.NAME,
        "--width",
        "128",
        "--height",
        "128",
        "--prompt",
        "a fox on a blue background",
        "--steps",
        "9",
    ]
    argv = ["--settings", "0.3", "--out", "out", "--format", "json", "--", "mflux-generate-flux2", *options]
    words = [sys.executable, "-m", "mflux_teacache_plugin", "compare", *argv]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    plain, cached = found["rows"]
    assert plain["computed"] == 9 and cached["computed"] + 1 <= 9
    assert cached["fewer_computed"] == cached["computed"] and 0 < cached["ssim"] < 1 and cached["seconds"] > 0
    assert plain["memory"] > 10**8 and found["runs"][0]["method"] is None
    assert (tmp_path / "out" / "report.html").exists()
