"""`examples/plugin`, built, installed and run: what docs/hooks.md and docs/add-a-family.md quote."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mflux_teacache_plugin import apply_teacache, cli, hooks
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host import specs
from mflux_teacache_plugin.host.manager import load_plugins
from tests.test_docs import FENCE, HOOKS
from tests.tiny.cases import case
from tests.tiny.families import STEPS, exists, family

ROOT = Path(__file__).parents[1]
MODULE = "mflux_teacache_example"

#: Hooks that plugins answer when they are asked, at no fixed time of a run; and the one of a run that is stopped.
AT_ANY_TIME = {
    "mflux_hookspecs",
    "mflux_pipelines",
    "mflux_models",
    *(name for name in vars(hooks) if name[:6] == "mflux_"),
}
STOPPED = "mflux_generation_interrupted"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package is installed, from its own pyproject.toml."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable)
    command = [sys.executable, "-m", "uv", "pip", "install", *options, "--target", folder, ROOT / "examples" / "plugin"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def example(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, found as if it were installed beside this one."""
    monkeypatch.syspath_prepend(str(site))
    load_plugins.cache_clear()
    yield
    sys.modules.pop(MODULE, None)
    load_plugins.cache_clear()


def test_doctor_lists_it(example: None, capsys: pytest.CaptureFixture) -> None:
    cli.main(["doctor", "--format", "json"])
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    for name in ("example", "stopwatch"):
        assert found[f"plugin {name}"]["status"] == "ok"
        assert found[f"plugin {name}"]["detail"] == "loaded, from mflux-teacache-example 0.1.0"


def test_its_method_decides(example: None, connected: object, tiny, eager) -> None:
    the_case = case("klein")
    model = the_case.build(tiny)
    with apply_teacache(model, "every:3+reuse") as handle:
        the_case.generate(model, tiny, num_inference_steps=6)
    assert str(handle.method) == "every:3+reuse"
    assert handle.stats.last.fault is None
    assert [decision.skipped for decision in handle.stats.last.decisions] == [False, True, True, False, True, False]
    with pytest.raises(SettingsError, match="every: '0' is not a number of steps"):
        apply_teacache(model, "every:0")
    with pytest.raises(SettingsError, match="'sometimes' is no method"):
        apply_teacache(model, "sometimes:3")


def test_its_method_works_on_the_command_line(example: None, connected: object, tiny, eager, capsys) -> None:
    case("flux1").run(tiny, "--teacache", "every:2")
    assert "TeaCache: skipped 1 of" in (printed := capsys.readouterr().err), printed
    assert "(every:2" in printed


def test_its_option_works_and_the_hooks_are_called_in_the_order_of_the_diagram(
    example: None, connected, tiny, eager, capsys
) -> None:
    called: dict[str, None] = {}
    names = [name for module in (specs, hooks) for name in vars(module) if name.startswith("mflux_")]
    recorder = ModuleType("recorder")
    for name in names:
        if name not in AT_ANY_TIME:
            scope = {"called": called, "hookimpl": specs.hookimpl}
            exec(f"@hookimpl\ndef {name}():\n    called['{name}'] = None", scope)
            setattr(recorder, name, scope[name])
    connected.manager.register(recorder)
    saved = case("flux1").run(tiny, "--stopwatch", 2, "--teacache", "every:2")
    printed = capsys.readouterr().err
    assert len(re.findall(r"^stopwatch: step \d took [\d.]+ s$", printed, re.MULTILINE)) == 2
    assert "stopwatch_slowest" in _exif(saved.path)

    diagram = HOOKS.split("\n## The life of a run\n")[1].split("```")[1]
    drawn = list(dict.fromkeys(re.findall(r"\b(mflux_\w+)", diagram)))
    assert set(drawn) == set(names), "docs/hooks.md: the diagram has other hooks than host/specs.py and hooks.py"
    order = [name for name in drawn if name not in {*AT_ANY_TIME, STOPPED}]
    assert list(called) == order, "docs/hooks.md: the diagram's order is another"


def _exif(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return repr(picture.info) + repr(dict(picture.getexif()))


def test_its_option_refuses_before_weights_load(example: None, connected: object, tiny, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        case("flux1").run(tiny, "--stopwatch", 0)
    assert refused.value.code == 2
    assert "argument --stopwatch: N must be at least 1" in capsys.readouterr().err


lens = pytest.mark.skipif(
    not exists("mflux.models.lens.variants.txt2img.lens_image:LensImage"), reason="this mflux has no Lens"
)


def test_its_adapter_replaces_the_built_in_one(example: None, connected: object) -> None:
    import mflux_teacache_example

    from mflux_teacache_plugin import choose

    assert choose.registry().adapters["lens"] is mflux_teacache_example.LENS


@lens
def test_its_family_takes_every_method(example: None, connected: object, tiny, eager) -> None:
    the_family = family("lens")
    with the_family.model() as model:
        _, plain = the_family.generate(model, tiny.pictures.photo)
        with apply_teacache(model, "seacache:1e-9") as handle:
            _, latents = the_family.generate(model, tiny.pictures.photo)
        assert handle.stats.last.fault is None
        assert (handle.stats.skipped, handle.stats.computed) == (0, STEPS)
        assert np.array_equal(plain, latents)
        with apply_teacache(model, "seacache:2") as handle:
            the_family.generate(model, tiny.pictures.photo)
        assert handle.stats.last.fault is None and handle.stats.skipped > 0
        with apply_teacache(model, "dualcache:F=1,warmup=2,rdt=0.99") as handle:
            the_family.generate(model, tiny.pictures.photo)
        assert handle.stats.last.fault is None
        assert len(handle.stats.last.changes) == STEPS - 2  # random blocks change too much to be skipped
        _, latents = the_family.generate(model, tiny.pictures.photo)
        assert np.array_equal(plain, latents)


def test_the_example_of_testing_a_plugin_runs(example: None) -> None:
    code = next(fence["code"] for fence in FENCE.finditer(HOOKS) if fence["mark"] == "run: manager")
    exec(code, {})
