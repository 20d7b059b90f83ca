"""The start-up file's gate and import hook. Whatever concerns the interpreter's start runs in a real one."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.host import imports
from tests.support import deactivate

ROOT = Path(__file__).resolve().parent.parent
STARTUP_FILE = "mflux_teacache_plugin_startup.pth"
# Runs last at the interpreter's start, writes down what the start-up file did, and stands in for the bridge.
REPORT = """
import os, sys
report = [sorted(sys.modules), 0, {}]
startup = sys.modules.get("mflux_teacache_plugin._startup")
if startup:
    imports = sys.modules.get("mflux_teacache_plugin.host.imports")
    report[1:] = sys.meta_path.count(imports._FINDER) if imports else 0, startup.state()
import json, types
with open(os.environ["REPORT"], "w") as file:
    json.dump(report, file)
bridge = types.ModuleType("bridge")
bridge.install = lambda: print("installed after", "mflux" in sys.modules)
sys.modules["mflux_teacache_plugin.host.bridge"] = bridge
"""


@pytest.fixture(autouse=True)
def _as_found(monkeypatch):
    """Every test starts with an idle hook and leaves `sys` as it was."""
    finders, modules, facts = list(sys.meta_path), set(sys.modules), dict(_startup._facts)
    pending = {name: list(callbacks) for name, callbacks in imports._pending.items()}
    for name in [name for name in os.environ if name.startswith("MFLUX_TEACACHE")]:
        monkeypatch.delenv(name)
    deactivate()
    yield
    deactivate()
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("mflux", "sample"):
            del sys.modules[name]
    _startup._facts.update(facts)
    imports._pending.update(pending)
    sys.meta_path[:] = finders


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """A package `sample` with a module `sample.part`; neither is imported yet."""
    package = tmp_path / "library" / "sample"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("value = 1\n")
    (package / "part.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


class Python:
    """A new interpreter, in a venv with the start-up file and a fake mflux; a call gives what it did at its start."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        library = folder / "library"
        (folder / "commands").mkdir()
        for package in (library / "mflux", library / "mflux" / "cli"):
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
        (library / "mflux" / "cli" / "tool.py").touch()
        for name in ("mflux-generate", "mflux-teacache", "train.py"):
            (folder / "commands" / name).touch()
        (library / "zz_report.py").write_text(REPORT)
        (site / "_paths.pth").write_text(f"{ROOT}\n{library}\n")
        (site / "zz_report.pth").write_text("import sys; sys.modules.pop('zz_report', None); import zz_report\n")
        self.startup_file = site / STARTUP_FILE
        self.install()

    def install(self) -> None:
        self.startup_file.write_bytes((ROOT / "build_support" / STARTUP_FILE).read_bytes())

    def __call__(self, *arguments: str, **environment: str) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MFLUX_", "PYTHON"))}
        report = self.folder / "report.json"
        done = subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            env={**kept, "REPORT": str(report), **environment},
            cwd=self.folder / "commands",
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        modules, finders, facts = json.loads(report.read_text())
        return {**facts, "modules": set(modules), "finders": finders, "stdout": done.stdout}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return Python(tmp_path_factory.mktemp("python"))


@pytest.mark.parametrize(
    ("arguments", "environment", "opens"),
    [
        pytest.param(["-c", "pass"], {}, False, id="nothing to do with mflux"),
        pytest.param(["train.py", "mflux-generate"], {}, False, id="a script with an argument that looks like it"),
        pytest.param(["mflux-generate"], {}, True, id="an mflux command"),
        pytest.param(["-X", "dev", "mflux-generate", "-m"], {}, True, id="an mflux command, interpreter options"),
        pytest.param(["-u", "-X", "utf8", "train.py"], {}, False, id="a script, interpreter options"),
        pytest.param(["mflux-teacache"], {}, False, id="the plugin's own command"),
        pytest.param(["-m", "mflux.cli.tool", "--steps", "4"], {}, True, id="-m mflux.…"),
        pytest.param(["-um", "mflux.cli.tool"], {}, True, id="-um mflux.…"),
        pytest.param(["-mmflux.cli.tool"], {}, True, id="-mmflux.…, joined"),
        pytest.param(["-m", "keyword", "mflux.cli.tool"], {}, False, id="-m something else about mflux"),
        pytest.param(["-c", "pass"], {"MFLUX_TEACACHE": "0.2"}, True, id="environment"),
        pytest.param(["-I", "-c", "pass"], {"MFLUX_TEACACHE": "0.2"}, True, id="isolated is no way to switch it off"),
        pytest.param(["-c", "pass"], {"MFLUX_TEACACHE": ""}, False, id="environment, empty"),
        pytest.param(["mflux-generate"], {"MFLUX_TEACACHE_DISABLE": "1"}, False, id="disabled"),
        pytest.param(
            ["-c", "pass"], {"MFLUX_TEACACHE_DISABLE": "yes", "MFLUX_TEACACHE": "0.2"}, False, id="disabled wins"
        ),
        pytest.param(["mflux-generate"], {"MFLUX_TEACACHE_DISABLE": "0"}, True, id="disabled with 0 is not"),
    ],
)
def test_gate(python, arguments, environment, opens):
    facts = python(*arguments, **environment)
    assert facts["activated"] is opens, facts["why"]
    assert facts["pending"] == (["mflux"] if opens else [])
    assert facts["finders"] == (1 if opens else 0)
    assert facts["calls"] == (2 if sys.version_info < (3, 15) else 1)  # a venv's files ran twice until 3.15
    imports_mflux = "tool" in arguments[-1] or "--steps" in arguments
    assert facts["stdout"] == ("installed after True\n" if opens and imports_mflux else "")


@pytest.mark.parametrize("environment", [{}, {"MFLUX_TEACACHE": "0.2"}], ids=["closed", "open"])
def test_start_up_imports_only_itself(python, environment):
    with_it = python("-c", "pass", **environment)["modules"]
    python.startup_file.unlink()
    try:
        without = python("-c", "pass", **environment)["modules"]
    finally:
        python.install()
    ours = {"mflux_teacache_plugin", "mflux_teacache_plugin._startup"}
    if environment:
        ours |= {"mflux_teacache_plugin.host", "mflux_teacache_plugin.host.imports"}
    assert with_it - without == ours


def test_a_package_folder_that_is_gone_costs_nothing(python, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MFLUX_", "PYTHON"))}
    line = (ROOT / "build_support" / STARTUP_FILE).read_text().strip()
    program = f"import sys; before = set(sys.modules); exec({line!r}); print(sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], env=kept, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_bridge_is_installed_once_mflux_is_imported(python):
    program = """
import sys
print("before")
import mflux
from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.host import imports
print(_startup.state()["pending"], imports._FINDER in sys.meta_path)
"""
    assert python("-c", program, MFLUX_TEACACHE="0.2")["stdout"] == "before\ninstalled after True\n[] False\n"


def test_activation_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mflux-teacache"])
    monkeypatch.delitem(sys.modules, "mflux", raising=False)
    _startup.activate()
    assert _startup.state() == {"calls": 1, "activated": False, "why": "mflux-teacache is running", "pending": []}
    _startup.activate("exec asked for it")
    assert _startup.state() == {"calls": 2, "activated": True, "why": "exec asked for it", "pending": ["mflux"]}
    deactivate()
    assert not _startup.state()["activated"]
    assert imports._FINDER not in sys.meta_path


def test_disabled_wins_over_asking(monkeypatch):
    monkeypatch.setenv("MFLUX_TEACACHE_DISABLE", "1")
    _startup.activate("exec asked for it")
    assert _startup.state()["why"] == "MFLUX_TEACACHE_DISABLE is set"
    assert not _startup.state()["activated"]


@pytest.mark.parametrize("fault", [ValueError("two\nlines"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_nothing_leaves_activate(fault, monkeypatch, capsys):
    def gate(why):
        raise fault

    monkeypatch.setattr(_startup, "_gate", gate)
    _startup.activate()
    line = capsys.readouterr().err
    assert line.startswith(f"mflux-teacache: start-up failed: {type(fault).__name__}:")
    assert line.count("\n") == 1


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_fault_without_standard_error_is_silent(stream, monkeypatch, tmp_path):
    if stream == "closed":
        stream = (tmp_path / "err").open("w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_startup, "_gate", lambda why: 1 / 0)
    _startup.activate()


def test_odd_arguments_close_the_gate(monkeypatch):
    for argv in ([], [""], ["-m"], ["-m", "a", "b"], ["-c"]):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python"])
        assert _startup._gate("")[0] is False, argv
    monkeypatch.delattr(sys, "argv")
    assert _startup._gate("")[0] is False


def test_callback_follows_the_module(sample):
    seen = []
    imports.when_imported("sample.part", lambda module: seen.append((module.__name__, module.value)))
    assert sys.meta_path[0] is imports._FINDER
    assert importlib.import_module("sample").value == 1
    assert seen == []
    part = importlib.import_module("sample.part")
    assert seen == [("sample.part", 2)]
    assert imports._FINDER not in sys.meta_path
    assert type(part.__loader__).__name__ == "SourceFileLoader"
    assert part.__loader__ is part.__spec__.loader
    assert "exec_module" not in vars(part.__loader__)
    importlib.reload(part)
    assert len(seen) == 1


def test_one_finder_serves_all_targets(sample):
    seen = []
    imports.when_imported("sample", lambda module: seen.append("first"))
    imports.when_imported("sample", lambda module: seen.append("second"))
    imports.when_imported("sample.part", lambda module: seen.append("part"))
    assert sys.meta_path.count(imports._FINDER) == 1
    importlib.import_module("sample")
    assert seen == ["first", "second"]
    assert _startup.state()["pending"] == ["sample.part"]
    importlib.import_module("sample.part")
    assert seen == ["first", "second", "part"]
    assert imports._FINDER not in sys.meta_path


def test_a_callback_may_wait_for_more(sample):
    seen = []
    imports.when_imported(
        "sample", lambda module: imports.when_imported("sample.part", lambda part: seen.append(part.value))
    )
    importlib.import_module("sample.part")
    assert seen == [2]
    assert imports._FINDER not in sys.meta_path


def test_the_same_callback_registers_once(sample):
    seen = []
    for _ in range(2):
        imports.when_imported("sample", seen.append)
    importlib.import_module("sample")
    assert len(seen) == 1


def test_an_imported_module_is_served_at_once(sample):
    module = importlib.import_module("sample")
    seen = []
    imports.when_imported("sample", seen.append)
    assert seen == [module]
    assert imports._FINDER not in sys.meta_path


def test_forget(sample):
    seen = []
    imports.when_imported("sample", seen.append)
    imports.when_imported("sample.part", seen.append)
    assert _startup.state()["pending"] == ["sample", "sample.part"]
    imports.forget_all()
    assert imports._FINDER not in sys.meta_path
    importlib.import_module("sample.part")
    assert seen == []


def test_forgotten_between_finding_and_running(sample):
    seen = []
    imports.when_imported("sample", seen.append)
    spec = importlib.util.find_spec("sample")
    imports.forget_all()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert seen == []
    assert module.value == 1


def test_looking_up_the_spec_is_no_import(sample):
    seen = []
    imports.when_imported("sample", seen.append)
    assert importlib.util.find_spec("sample").origin.endswith("__init__.py")
    assert seen == []
    module = importlib.import_module("sample")
    assert seen == [module]


def test_a_module_that_fails_stays_awaited(sample):
    (sample / "part.py").write_text("1 / 0\n")
    seen = []
    imports.when_imported("sample.part", seen.append)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("sample.part")
    assert seen == []
    (sample / "part.py").write_text("value = 'mended'\n")
    importlib.invalidate_caches()
    assert importlib.import_module("sample.part") is seen[0]


def test_a_missing_module_is_still_missing(sample):
    imports.when_imported("sample.missing", print)
    with pytest.raises(ModuleNotFoundError, match=r"sample\.missing"):
        importlib.import_module("sample.missing")


def test_a_module_from_a_zip_file(tmp_path, monkeypatch):
    """A zip file's modules share one loader: the callback must not see another of them."""
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as archive:
        for name in ("__init__", "part", "other"):
            archive.writestr(f"sample/{name}.py", f"value = {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "library.zip"))
    importlib.import_module("sample")
    seen = []
    imports.when_imported("sample.part", lambda module: seen.append(module.value))
    importlib.util.find_spec("sample.part")
    importlib.import_module("sample.other")
    assert seen == []
    importlib.import_module("sample.part")
    assert seen == ["part"]


def test_built_in_modules_are_left_alone():
    """Their loader is a class that serves them all."""
    name = next(name for name in sys.builtin_module_names if name.startswith("_") and name not in sys.modules)
    loader = importlib.util.find_spec(name).loader
    before = dict(vars(loader))
    imports.when_imported(name, print)
    try:
        importlib.import_module(name)
        assert dict(vars(loader)) == before
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("fault", [RuntimeError("no such\nattribute"), SystemExit(2)])
def test_a_failing_callback_costs_nobody_the_import(sample, capsys, fault):
    def fail(module: ModuleType) -> None:
        raise fault

    seen = []
    imports.when_imported("sample", fail)
    imports.when_imported("sample", seen.append)
    assert importlib.import_module("sample").value == 1
    assert len(seen) == 1
    line = capsys.readouterr().err
    assert line.startswith("mflux: the hook on sample failed, mflux runs without it: ")
    assert type(fault).__name__ in line
    assert line.count("\n") == 1
    assert imports._FINDER not in sys.meta_path


def test_debug_shows_where_a_callback_failed(sample, capsys, monkeypatch):
    monkeypatch.setenv("MFLUX_TEACACHE_DEBUG", "1")
    imports.when_imported("sample", lambda module: module.no_such_attribute)
    importlib.import_module("sample")
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "no_such_attribute" in error


def test_ctrl_c_in_a_callback_reaches_the_user(sample):
    def interrupt(module: ModuleType) -> None:
        raise KeyboardInterrupt

    imports.when_imported("sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("sample")


def test_faults_do_not_end_a_starting_interpreter(sample, capsys):
    """mflux imported before the start-up file ran: the callback is called inside `activate`."""
    for fault in (SystemExit, KeyboardInterrupt):

        def install(module: ModuleType, fault=fault) -> None:
            raise fault

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "mflux", ModuleType("mflux"))
            patch.setattr(_startup, "_install_bridge", install)
            _startup.activate("a test")
        assert fault.__name__ in capsys.readouterr().err
        deactivate()
