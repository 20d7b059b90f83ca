"""What the distributions hold, and what every way of installing them leaves in an environment.

Without dependencies throughout: the start-up file and the hook need none, and a fake mflux is enough to see them fire.
"""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parent.parent
STARTUP_FILES = {"mflux_teacache_plugin_startup.pth", "mflux_teacache_plugin_startup.start"}
COEFFICIENTS = sorted(path.name for path in (ROOT / "coefficients").glob("*.toml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Run where the plugin is installed: says whether the hook waits for mflux, and that it fires when mflux comes.
FIRES = """
import sys, types
bridge = types.ModuleType("bridge")
bridge.install = lambda: print("fired")
sys.modules["mflux_teacache_plugin.host"] = sys.modules["mflux_teacache_plugin.host.bridge"] = bridge
startup = sys.modules.get("mflux_teacache_plugin._startup")
print(startup and startup.state()["pending"])
import mflux
"""


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MFLUX_", "PYTHON"))}
    kept.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        [str(part) for part in command], env={**kept, **environment}, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if command[0] != sys.executable:  # the installers may say something there, a starting interpreter must not
        assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def wheel_files(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def dist_info(files: dict[str, bytes], name: str) -> str:
    return next(text for path, text in files.items() if path.endswith(f".dist-info/{name}")).decode()


def checkout(folder: str, pattern: str) -> set[str]:
    paths = (ROOT / folder).rglob(pattern)
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_the_startup_files_and_the_coefficients(wheel_files):
    wanted = checkout("mflux_teacache_plugin", "*.py") | {"mflux_teacache_plugin/py.typed"} | STARTUP_FILES
    wanted |= {f"mflux_teacache_plugin/coefficients/{name}" for name in COEFFICIENTS}
    found = {name for name in wheel_files if ".dist-info/" not in name}
    assert wanted <= found
    assert {name for name in found if "/" not in name} == STARTUP_FILES
    assert {name.partition("/")[0] for name in found} - STARTUP_FILES == {"mflux_teacache_plugin"}


def test_record_lists_every_file_once(wheel_files):
    listed = [line.split(",")[0] for line in dist_info(wheel_files, "RECORD").splitlines()]
    assert sorted(listed) == sorted(wheel_files)


def test_startup_files_are_one_readable_line(wheel_files):
    pth = wheel_files["mflux_teacache_plugin_startup.pth"].decode("ascii")
    assert pth.startswith("import sys; exec(") and pth.count("\n") == 1 and pth.endswith("\n")
    assert "mflux_teacache_plugin._startup" in pth and "except ImportError: pass" in pth
    start = wheel_files["mflux_teacache_plugin_startup.start"].decode("ascii")
    assert start == "mflux_teacache_plugin._startup:activate\n"


def test_metadata(wheel_files):
    metadata = email.message_from_string(dist_info(wheel_files, "METADATA"))
    assert metadata["Name"] == "mflux-teacache-plugin"
    assert metadata["Version"] == PROJECT["project"]["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Tag: py3-none-any" in dist_info(wheel_files, "WHEEL")
    assert "Apache License" in dist_info(wheel_files, "licenses/LICENSE")
    requirements = metadata.get_all("Requires-Dist")
    assert "mflux>=0.22" in requirements
    assert not any("torch" in requirement for requirement in requirements)


def test_the_package_index_gets_the_readme_with_whole_addresses(wheel_files):
    links = re.compile(r"(!?)\[[^\]]*\]\(([^)]+)\)")
    metadata = email.message_from_string(dist_info(wheel_files, "METADATA"))
    shown = links.findall(metadata.get_payload())
    repository = PROJECT["project"]["urls"]["Repository"]
    page, raw = f"{repository}/blob/main/", f"{repository.replace('github.com', 'raw.githubusercontent.com')}/main/"
    written = links.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    own = [(mark, to if to.startswith("https:") else (raw if mark else page) + to) for mark, to in written]
    assert metadata["Description-Content-Type"] == "text/markdown" and ("!", f"{raw}docs/comparison.png") in shown
    assert shown == own


def test_entry_points(wheel_files):
    assert dist_info(wheel_files, "entry_points.txt").split() == [
        *("[console_scripts]", "mflux-teacache", "=", "mflux_teacache_plugin.cli:main"),
        *("[mflux]", "teacache", "=", "mflux_teacache_plugin.plugin"),
    ]


def test_sdist_is_the_checkout(distributions):
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "Makefile", ".ci/run", "build_support/hatch_build.py"}
    wanted |= {f"build_support/{name}" for name in STARTUP_FILES}
    for folder in ("mflux_teacache_plugin", "tests", "benchmarks", "examples", "coefficients", "docs"):
        wanted |= checkout(folder, "*.py") | checkout(folder, "*.toml") | checkout(folder, "*.md")
    assert wanted <= names
    assert not [name for name in names if name.startswith((".venv", "dist/", ".git/"))]


def test_the_demo_group_is_the_extra_for_users():
    assert PROJECT["dependency-groups"]["demo"] == PROJECT["project"]["optional-dependencies"]["pictures"]


class Environment:
    """A throw-away venv, without pip: both installers work on it from outside."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        (self.site / "other.txt").touch()  # pip removes a site-packages that gets empty
        (folder / "library" / "mflux").mkdir(parents=True)
        (folder / "library" / "mflux" / "__init__.py").touch()

    def install(self, tool: str, *what: object) -> None:
        if tool == "pip":
            pip = (sys.executable, "-m", "pip", "--python", self.python, "--no-input", "install", "--quiet")
            run(*pip, "--no-deps", "--no-compile", *what, PIP_DISABLE_PIP_VERSION_CHECK="1")
        else:
            run(*self.uv("install"), "--no-deps", *what, cwd=self.folder)

    def uninstall(self, tool: str) -> None:
        if tool == "pip":
            pip = (sys.executable, "-m", "pip", "--python", self.python, "--no-input", "uninstall", "--quiet")
            run(*pip, "--yes", "mflux-teacache-plugin", PIP_DISABLE_PIP_VERSION_CHECK="1")
        else:
            run(*self.uv("uninstall"), "mflux-teacache-plugin", cwd=self.folder)

    def uv(self, verb: str) -> tuple[object, ...]:
        return (sys.executable, "-m", "uv", "pip", verb, "--quiet", "--python", self.python)

    def start(self, program: str, *options: str, **environment: str) -> str:
        paths = {"PYTHONPATH": str(self.folder / "library"), "PYTHONDONTWRITEBYTECODE": "1"}
        return run(self.python, *options, "-c", program, cwd=self.folder, **paths, **environment)

    def files(self) -> set[str]:
        paths = {path.relative_to(self.folder).as_posix() for path in (self.folder / "venv").rglob("*")}
        return paths - {"venv/.lock"}  # uv's own, it stays


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """One environment per installer: each installation must leave it as it was for the next."""
    return {tool: Environment(tmp_path_factory.mktemp(tool)) for tool in ("pip", "uv")}


@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_install_fire_uninstall(kind, tool, environments, distributions):
    environment = environments[tool]
    before = environment.files()
    environment.install(tool, *(["--editable", ROOT] if kind == "editable" else [distributions[kind]]))
    installed = {name: (environment.site / name).is_file() for name in STARTUP_FILES}
    assert all(installed.values()), installed
    assert (environment.folder / "venv" / "bin" / "mflux-teacache").is_file()
    copied = environment.site / "mflux_teacache_plugin" / "coefficients"
    if kind == "editable":
        assert not copied.parent.exists()
    else:
        assert sorted(path.name for path in copied.iterdir()) == COEFFICIENTS

    assert environment.start(FIRES, MFLUX_TEACACHE="0.2") == "['mflux']\nfired\n"
    assert environment.start(FIRES) == "[]\n"
    assert environment.start(FIRES, MFLUX_TEACACHE="0.2", MFLUX_TEACACHE_DISABLE="1") == "[]\n"
    assert environment.start(FIRES, "-S", MFLUX_TEACACHE="0.2") == "None\n"
    version = "import mflux_teacache_plugin; print(mflux_teacache_plugin.__version__)"
    assert environment.start(version) == PROJECT["project"]["version"] + "\n"

    environment.uninstall(tool)
    assert environment.files() == before
    assert environment.start(FIRES, MFLUX_TEACACHE="0.2") == "None\n"


@pytest.mark.parametrize("damage", ["no package", "syntax error"])
def test_a_damaged_installation_does_not_stop_the_interpreter(damage, tmp_path):
    environment = Environment(tmp_path)
    startup_file = environment.site / "mflux_teacache_plugin_startup.pth"
    startup_file.write_bytes((ROOT / "build_support" / startup_file.name).read_bytes())
    if damage == "syntax error":
        (environment.site / "mflux_teacache_plugin").mkdir()
        (environment.site / "mflux_teacache_plugin" / "__init__.py").touch()
        (environment.site / "mflux_teacache_plugin" / "_startup.py").write_text("not python\n")
    done = subprocess.run([environment.python, "-c", "print('alive')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert done.stderr == "" if damage == "no package" else startup_file.name in done.stderr
