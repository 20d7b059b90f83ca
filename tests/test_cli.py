"""`mflux-teacache <verb>`: what each prints, where it prints it, and its exit code."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mflux_teacache_plugin import _startup, choose
from mflux_teacache_plugin.cli import VERBS, doctor, main
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.host import versions
from tests.test_options import write_variant
from tests.tiny.cases import case
from tests.tiny.commands import preserved_globals, read_pixels

pytestmark = pytest.mark.usefixtures("tiny")

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.stem for path in (ROOT / "coefficients").glob("*.toml"))


@pytest.fixture(autouse=True)
def _fresh_plugins(fresh_plugins: None) -> None:
    """Each test has its own."""


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    return tmp_path / "config" / "mflux" / "teacache"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `mflux-teacache` in this process: exit code, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


# ---- variants --------------------------------------------------------------------------------------------------------


def test_variants_lists_what_is_shipped_and_what_is_mine(run, user_folder: Path) -> None:
    write_variant(user_folder)
    code, out, err = run("variants")
    assert (code, err) == (0, "")
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["VARIANT", "ADAPTER", "THRESHOLD", "DISTILLED", "FITTED", "FROM", "MODELS"]
    assert [row[0] for row in rows] == sorted([*SHIPPED, "mine"])
    by_id = {row[0]: row for row in rows}
    assert by_id["mine"] == ["mine", "flux1", "0.25", "no", "no", "user", "tiny-dev"]
    assert by_id["flux1-schnell"][1:6:2] == ["flux1", "yes", "package"]


def test_variants_as_json_say_what_one_of_them_says(run, user_folder: Path) -> None:
    path = write_variant(user_folder, range=[0.03, 0.2])
    code, out, err = run("variants", "--format", "json")
    assert (code, err) == (0, "")
    listed = {each["id"]: each for each in json.loads(out)}
    assert sorted(listed) == sorted([*SHIPPED, "mine"])
    _, shown, _ = run("variants", "mine", "--format", "json")
    assert json.loads(shown) == {**listed["mine"], "shadows": []}
    mine = listed["mine"]
    assert (mine["path"], mine["origin"], mine["range"]) == (str(path), "user", [0.03, 0.2])
    assert mine["provenance"]["source"] == "made up for a test"
    assert len(mine["digest"]) == 12


def test_variants_of_one_id_prints_everything_that_is_known(run) -> None:
    code, out, err = run("variants", "flux1-dev")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line and not line.startswith(" "))
    assert lines["polynomial"] == "498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861"
    assert lines["weights_licence"] == "FLUX.1 [dev] Non-Commercial License"
    assert lines["provenance.fitted"] == "True"
    assert lines["path"].endswith("flux1-dev.toml")
    assert "range" not in lines, "it has none"


def test_variants_of_one_id_names_the_keys_of_tables_as_a_file_does(run, user_folder: Path) -> None:
    path = write_variant(user_folder, recommended="2x")
    path.write_text(
        path.read_text()
        + "[profile]\nsigma = [1.0, 0.5]\nchange = [0, 2]\n"
        + "".join(f'[[step_lists]]\nsteps = {steps}\ncomputed = "0-1,{steps - 1}"\n' for steps in (4, 5))
    )
    code, out, err = run("variants", "mine")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (lines["guard.first"], lines["recommended"]) == ("1", "2x")
    assert (lines["profile.sigma"], lines["profile.change"]) == ("1.0, 0.5", "0.0, 2.0")
    assert (lines["step_lists[1].steps"], lines["step_lists[1].computed"]) == ("5", "0, 1, 4")
    assert "{" not in out


def test_variants_of_one_id_says_what_a_file_shadows(run, user_folder: Path) -> None:
    path = write_variant(user_folder, id="flux1-dev")
    _, out, _ = run("variants", "flux1-dev", "--format", "json")
    shown = json.loads(out)
    assert shown["path"] == str(path)
    assert [Path(each).name for each in shown["shadows"]] == ["flux1-dev.toml"]
    assert shown["shadows"] != [str(path)]


def test_variants_of_one_id_of_an_unknown_id_names_the_known(run) -> None:
    code, out, err = run("variants", "flux1-dex")
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no variant 'flux1-dex'\n")
    assert all(id in err for id in SHIPPED)


@pytest.mark.parametrize("argv", [["variants"], ["variants", "--format", "json"], ["variants", "flux1-dev"]])
def test_a_broken_file_is_an_error_of_every_listing(argv: list[str], run, user_folder: Path) -> None:
    path = write_variant(user_folder, threshold="high")
    code, out, err = run(*argv)
    assert (code, out) == (2, ""), "other numbers than the user meant are not listed"
    assert err.startswith(f"error: {path} is not a usable coefficient file\n  cause: threshold: expected a number")


def test_debug_gives_the_traceback(run, monkeypatch) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE_DEBUG", "1")
    with pytest.raises(TeaCacheError, match="there is no variant"):
        run("variants", "flux1-dex")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["varients"], "invalid choice: 'varients'"),
        (["show", "flux1-dev"], "invalid choice: 'show'"),
        (["doctor", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_asked_wrongly(argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("closed", "argv", "code"), [(">&-", "variants", 0), ("2>&-", "variants nosuch", 2)])
def test_a_closed_stream_is_no_fault(closed: str, argv: str, code: int) -> None:
    command = f"{sys.executable} -m mflux_teacache_plugin {argv} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_what_breaks_is_one_line_and_a_hint(run, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(choose, "catalog", broken)
    code, out, err = run("variants")
    assert (code, out) == (1, "")
    assert err == "error: ValueError: a fault of ours\n  hint: MFLUX_TEACACHE_DEBUG=1 shows where; please report it\n"


def test_nobody_reads_on() -> None:
    """`mflux-teacache variants | head -1`"""
    words = [sys.executable, "-m", "mflux_teacache_plugin", "variants", "--format", "json"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()


def test_help_and_version(capsys) -> None:
    for argv in (["--help"], *([verb, "--help"] for verb in VERBS)):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 0
        assert "usage: mflux-teacache" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == version("mflux-teacache-plugin")


# ---- doctor ----------------------------------------------------------------------------------------------------------

Findings = dict[str, doctor.Finding]


@pytest.fixture
def examine(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Findings]]:
    """Run doctor as if the start-up file had run: exit code, and the findings by what they are about."""

    def examine(calls: int = 1) -> tuple[int, Findings]:
        monkeypatch.setitem(_startup._facts, "calls", calls)
        code, out, _ = run("doctor", "--format", "json")
        findings = [doctor.Finding(**each) for each in json.loads(out)]
        problems = [finding for finding in findings if finding.status == doctor.PROBLEM]
        assert code == (1 if problems else 0)
        assert all(finding.fix for finding in problems), "every problem comes with its fix"
        text_code, text, _ = run("doctor")
        assert text_code == code
        for finding in findings:
            assert f"{finding.what}: {finding.detail}" in text
            assert not finding.fix or f"-> {finding.fix}" in text
        return code, {finding.what: finding for finding in findings}

    return examine


def install(folder: Path, name: str, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a distribution of this name and version be installed, before any other of that name."""
    info = folder / "site-packages" / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    monkeypatch.syspath_prepend(str(info.parent))


def test_doctor_finds_nothing_wrong_here(examine) -> None:
    code, found = examine()
    assert code == 0, [finding for finding in found.values() if finding.status == doctor.PROBLEM]
    assert {finding.status for finding in found.values()} == {"ok"}
    assert found["mflux"].detail == f"{version('mflux')} (tested: 0.22, 0.23, 0.24)"
    assert found["start-up file"].detail.endswith("mflux_teacache_plugin_startup.pth ran")
    assert found["plugin teacache"].detail == f"loaded, from mflux-teacache-plugin {version('mflux-teacache-plugin')}"
    assert {f"variant {id}" for id in SHIPPED} < set(found)
    assert "mflux.models.flux.variants.txt2img.flux:Flux1" in found
    assert "mflux.cli.parser.parsers:CommandLineParser.parse_args" in found


def test_doctor_as_a_command() -> None:
    """The real one, in a process that the start-up file was part of."""
    command = Path(sysconfig.get_path("scripts"), "mflux-teacache")
    done = subprocess.run([command, "doctor", "--format", "json"], capture_output=True, text=True)
    assert all(finding["status"] != "problem" for finding in json.loads(done.stdout)), done.stdout
    assert done.returncode == 0


def test_doctor_and_a_start_up_file_that_is_missing(examine, monkeypatch, tmp_path) -> None:
    real = sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda name, *a, **k: str(tmp_path) if name == "purelib" else real(name))
    code, found = examine()
    assert code == 1
    assert found["start-up file"].detail == f"{tmp_path}/mflux_teacache_plugin_startup.pth is missing"
    assert "mflux-teacache exec --" in found["start-up file"].fix


def test_doctor_and_a_start_up_file_that_did_not_run(examine) -> None:
    code, found = examine(calls=0)
    assert code == 1
    assert found["start-up file"].detail.endswith("is there, but did not run (python -S?)")


def test_doctor_and_a_plugin_that_is_switched_off(examine, monkeypatch) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE_DISABLE", "1")
    code, found = examine()
    assert code == 1
    assert found["MFLUX_TEACACHE_DISABLE"].fix == "unset MFLUX_TEACACHE_DISABLE"


@pytest.mark.parametrize("number", ["0.21.3", "0.25.0", "1.0", "0.25.0.dev1"])
def test_doctor_and_an_untested_mflux(number: str, examine, monkeypatch, tmp_path) -> None:
    install(tmp_path, "mflux", number, monkeypatch)
    code, found = examine()
    assert code == 0, "what does not fit it is a problem of its own"
    assert found["mflux"].status == doctor.NOTE
    assert found["mflux"].detail == f"{number} is not among the tested 0.22, 0.23, 0.24"


def test_doctor_without_mflux(examine, monkeypatch) -> None:
    installed = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name="mflux": None if name == "mflux" else installed(name))
    code, found = examine()
    assert code == 1
    assert (found["mflux"].detail, found["mflux"].fix) == ("not installed", "pip install mflux")


def test_doctor_and_a_patch_point_that_is_gone(examine, monkeypatch) -> None:
    import mflux.callbacks.callback_registry as module

    monkeypatch.delattr(module.CallbackRegistry, "register")
    code, found = examine()
    assert code == 1
    finding = found["mflux.callbacks.callback_registry:CallbackRegistry.register"]
    assert finding.detail.startswith("not found: ")
    assert "install a tested version of mflux" in finding.fix


def test_doctor_and_broken_coefficient_files(run, examine, user_folder: Path) -> None:
    broken = write_variant(user_folder, threshold="high", colour="red")
    code, found = examine()
    assert code == 1
    detail = found["coefficient file"].detail
    assert str(broken) in detail
    assert "threshold: expected a number" in detail
    assert "colour: unknown key" in detail
    assert {f"variant {id}" for id in SHIPPED} < set(found), "the others are listed all the same"


def test_doctor_shows_which_file_wins_and_what_it_shadows(examine, user_folder: Path, tmp_path, monkeypatch) -> None:
    named = write_variant(tmp_path / "named", id="flux1-dev")
    users = write_variant(user_folder, id="flux1-dev")
    monkeypatch.setenv("MFLUX_TEACACHE_COEFFICIENTS", str(named))
    code, found = examine()
    assert code == 0
    shipped = ROOT / "coefficients" / "flux1-dev.toml"
    assert found["variant flux1-dev"].detail == f"{named} (environment); shadows {users}, {shipped}"


@pytest.mark.parametrize("name", ["mlx-teacache", "mflux-teacache"])
def test_doctor_notes_another_step_cache(name: str, examine, monkeypatch, tmp_path) -> None:
    install(tmp_path, name, "0.4.1", monkeypatch)
    code, found = examine()
    assert code == 0, "installed is not yet active"
    assert (found[name].status, found[name].detail) == ("note", "0.4.1 is installed beside this plugin")
    assert "do not apply both to one model" in found[name].fix


# ---- exec ------------------------------------------------------------------------------------------------------------


def without_start_up_file(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mflux-teacache ARGV` in an interpreter that reads no .pth file."""
    program = (
        f"import sys; sys.path[:] = {[str(ROOT), *filter(None, sys.path)]!r}\n"
        "from mflux_teacache_plugin import _startup\n"
        "assert _startup.state()['calls'] == 0\n"
        "from mflux_teacache_plugin.cli import main\n"
        "sys.exit(main())\n"
    )
    words = [sys.executable, "-S", "-c", program, *map(str, argv)]
    return subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)


def test_exec_needs_no_start_up_file_for_a_command() -> None:
    argv = ["mflux-concept", "--concept", "x", "--prompt", "x", "--teacache"]
    done = without_start_up_file("exec", "--", *argv)
    assert "error: mflux-concept cannot skip steps" in done.stderr
    assert done.returncode == 2


def test_exec_needs_no_start_up_file_for_a_script(tiny, tmp_path: Path) -> None:
    (tmp_path / "settings_of_mine.py").write_text("SEED = 3\n")
    script = tmp_path / "pictures.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from settings_of_mine import SEED\n"
        "from tests.tiny.cases import case\n"
        "from tests.tiny.workspace import tiny_mflux\n"
        "with tiny_mflux(Path(sys.argv[1])) as tiny:\n"
        "    case('flux1').generate(case('flux1').build(tiny), tiny, seed=SEED)\n"
        "sys.exit(7)\n"
    )
    tiny.checkpoint("dev")
    coefficients = str(write_variant(tmp_path / "coefficients"))
    environment = {"MFLUX_TEACACHE": "auto", "MFLUX_TEACACHE_COEFFICIENTS": coefficients}
    done = without_start_up_file("exec", script, tiny.folder, **environment)
    assert "TeaCache: skipped 2 of 4 steps (threshold 0.25, mine)" in done.stderr, done.stderr
    assert done.returncode == 7


def test_exec_makes_the_picture_that_the_command_makes(run, tiny, eager, tmp_path: Path, user_folder: Path) -> None:
    write_variant(user_folder)
    output = tmp_path / "image.png"
    argv = case("flux1").argv(tiny, "--teacache", "--output", output)
    with preserved_globals(), mock.patch.object(sys, "argv", list(sys.argv)):
        code, _, err = run("exec", "mflux-generate", *argv)
    assert code == 0
    assert "TeaCache: skipped 2 of 4 steps (threshold 0.25, mine)" in err
    assert np.array_equal(read_pixels(output), case("flux1").run(tiny, "--teacache").pixels)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["exec"], "there is no command to run"),
        (["exec", "--"], "there is no command to run"),
        (["exec", "--", "mflux-generade", "--prompt", "x"], "mflux-generade is neither an mflux command nor"),
        (["exec", "--", "ls"], "ls is neither an mflux command nor"),
        (["exec", "none.py"], "none.py is neither an mflux command nor"),
    ],
)
def test_exec_of_nothing_that_can_run(argv: list[str], message: str, run) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("source", "code"),
    [("raise KeyboardInterrupt", 130), ("print('done')", 0)],
    ids=["interrupted", "done"],
)
def test_exit_codes_of_a_script(source: str, code: int, run, tmp_path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(source)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert run("exec", script)[0] == code


def test_an_error_of_a_script_stays_its_own(run, tmp_path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("open('none.txt')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(FileNotFoundError):
        run("exec", script)
