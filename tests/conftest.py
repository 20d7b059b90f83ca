"""Every test leaves the process as it found it, and none sees the user's own settings.

`make test` runs the suite in several processes (pytest-xdist): what a test changes, it changes in its own.
"""

import importlib
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import deactivate

settings.register_profile("on any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("on any machine")

pytest_plugins = ["tests.tiny.fixtures"]

# Where the plugin patches mflux, and what of the class each patch would change.
_PATCHED = (
    ("mflux.cli.parser.parsers", "CommandLineParser"),
    ("mflux.callbacks.callback_manager", "CallbackManager"),
    ("mflux.callbacks.callback_registry", "CallbackRegistry"),
    ("mflux.utils.apple_silicon", "AppleSiliconUtil"),
    ("mflux.models.flux2.flux2_initializer", "Flux2Initializer"),
    ("mflux.models.flux2.variants.txt2img.flux2_klein", "Flux2Klein"),
    ("mflux.models.flux2.variants.edit.flux2_klein_edit", "Flux2KleinEdit"),
    ("mflux.models.flux.variants.txt2img.flux", "Flux1"),
)


#: Need mflux in its own sizes, which the tiny models change for the rest of the session.
FIRST = ("test_demo_model.py", "test_cache_dit.py", "test_real_size.py")

#: One after the other in one process, for they share what is dear to make. This group also gets what goes FIRST, all
#: that is marked `compiles`, and what is in it by name: a kernel takes g++ most of a second, and each process has its own.
COMPILED, PACKAGING = "compiled", "packaging"


def pytest_configure(config: pytest.Config) -> None:
    """Several processes share the machine: one thread each for the matrices, and a folder each for MLX's compiled code.

    MLX compiles into the folder for temporary files, and two processes that compile the same would read each other's
    half-written files. The folder stays, so the next session finds what this one compiled.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        environment = zlib.crc32(sys.prefix.encode())
        folder = Path(tempfile.gettempdir()) / f"mflux-teacache-tests-{os.getuid()}-{environment:08x}-{worker}"
        folder.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(folder)
    elif config.getoption("numprocesses", None):
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when a worker starts
            os.environ.setdefault(name, "1")


@pytest.hookimpl(tryfirst=True)  # xdist looks for the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo model first, and what belongs together in one process. On a CPU, MLX compiles with g++."""
    for item in items:
        group = None
        if item.path.name in FIRST or item.get_closest_marker("compiles"):
            group = COMPILED
        elif item.get_closest_marker("packaging"):
            group = PACKAGING
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    groups = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("xdist_group"))}
    items.sort(key=lambda item: (item.path.name not in FIRST, groups.get(item) != COMPILED, item not in groups))
    if sys.platform != "darwin" and shutil.which("g++") is None:
        for item in items:
            if item.get_closest_marker("compiles") is not None:
                item.add_marker(pytest.mark.skip(reason="there is no g++"))


def _state() -> dict[str, object]:
    # pytest's own, and what OpenCV sets when mflux imports it
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_CURRENT", "QT_", "LD_LIB"))
    }
    state: dict[str, object] = {"sys.meta_path": list(sys.meta_path), "os.environ": environ}
    for module, name in _PATCHED:
        if module in sys.modules:
            state[f"{module}:{name}"] = dict(vars(getattr(sys.modules[module], name)))
    config = sys.modules.get("mflux.models.common.config.model_config")
    if config is not None:
        state["AVAILABLE_MODELS"] = list(config.AVAILABLE_MODELS)
        state["precision"] = config.ModelConfig.precision
    return state


@pytest.fixture(autouse=True)
def as_found(tmp_path):
    """A clean environment before, and after it the same `sys.meta_path`, `os.environ` and mflux classes."""
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which is undone before this looks again
        for name in list(os.environ):
            if name.startswith("MFLUX_") and not name.startswith("MFLUX_TINY"):
                patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        before = _state()
        yield
        after = _state()
    changed = [key for key, value in before.items() if after.get(key) != value]
    assert not changed, f"the test left behind changes of {', '.join(changed)}"


@pytest.fixture
def connected(fresh_plugins):
    """The plugins connected to mflux, as the start-up file does it, and disconnected afterwards."""
    from mflux_teacache_plugin.host import bridge
    from mflux_teacache_plugin.host.manager import load_plugins

    importlib.import_module("mflux")
    bridge.install()
    return load_plugins()


@pytest.fixture
def fresh_plugins():
    """Plugins are loaded once per process; here a test has its own, and leaves none."""
    from mflux_teacache_plugin.host import bridge
    from mflux_teacache_plugin.host.manager import load_plugins

    load_plugins.cache_clear()
    yield
    bridge.uninstall()
    deactivate()
    load_plugins.cache_clear()
