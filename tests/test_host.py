"""The plugin host: every hook on a real generation, other people's plugins, and mflux as it was afterwards."""

import importlib
import importlib.util
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mflux_teacache_plugin import _startup, apply, choose, hookimpl, methods
from mflux_teacache_plugin import hooks as own_hooks
from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.adapters.families import FLUX1
from mflux_teacache_plugin.caching.gate import Change, Facts, Gate, Setup, Verdict
from mflux_teacache_plugin.cli import main
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host import bridge, specs
from mflux_teacache_plugin.host.manager import Loaded, contributions, load_plugins
from mflux_teacache_plugin.host.specs import hookspec
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.variants import Variant
from tests.support import a_variant, deactivate
from tests.tiny.cases import PROMPT, SEED, case
from tests.tiny.commands import run_command

pytestmark = pytest.mark.usefixtures("tiny", "eager")

Connect = Callable[..., Loaded]


@pytest.fixture(autouse=True)
def start_up_file_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """For doctor; tests that came before may have reset the count."""
    monkeypatch.setitem(_startup._facts, "calls", 1)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect the installed plugins and those that are passed to mflux; disconnected at the end of the test."""

    def connect(*plugins: object) -> Loaded:
        load_plugins.cache_clear()
        loaded = load_plugins()
        for plugin in plugins:
            loaded.manager.register(plugin)
            loaded.manager.check_pending()
        bridge.install()
        return loaded

    yield connect
    bridge.uninstall()
    deactivate()
    load_plugins.cache_clear()


def variant(**changes: Any) -> Variant:
    """A variant for the tiny FLUX.1 [dev] whose estimate is 0.1 for every step."""
    keys = {"id": "theirs", "models": ("tiny-dev",), "polynomial": (0, 0, 0, 0, 0.1), "threshold": 0.25}
    return a_variant(case("flux1"), **{**keys, **changes})


# ---- one test per hook -----------------------------------------------------------------------------------------------


def test_every_hook_has_a_test_and_a_documentation() -> None:
    hooks = {name: spec for name, spec in {**vars(specs), **vars(own_hooks)}.items() if name.startswith("mflux_")}
    assert {f"test_{name}" for name in hooks} == {name for name in globals() if name.startswith("test_mflux_")}
    assert all(spec.__doc__ for spec in hooks.values())


def test_mflux_models(connect: Connect, tiny) -> None:
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig
    from mflux.models.common.resolution.config_resolution import ConfigResolution

    class Plugin:
        @hookimpl
        def mflux_models(self) -> Mapping[str, Any]:
            config = ConfigResolution._create_config(str(tiny.checkpoint("dev")), AVAILABLE_MODELS["dev"])
            config.base_model, config.aliases = None, ["their-model"]
            return {"their-model": config}

    connect(Plugin())
    model = case("flux1").pipeline_class(model_config=ModelConfig.from_name("their-model"))
    assert np.array_equal(case("flux1").generate(model, tiny), case("flux1").run(tiny).pixels)
    bridge.uninstall()
    assert "their-model" not in AVAILABLE_MODELS


def test_mflux_add_options(connect: Connect, tiny) -> None:
    from mflux.cli.capabilities import describe_command
    from mflux.models.flux.cli import flux_generate

    told = []

    class Plugin:
        @hookimpl
        def mflux_add_options(self, parser: ArgumentParser, pipelines: list[type], rejected: dict[str, str]) -> None:
            parser.add_argument("--sparkle", type=int, default=0)
            rejected["--sparkle"] = "this model does not sparkle"
            told.append((type(parser).__name__, [pipeline.__name__ for pipeline in pipelines]))

        @hookimpl
        def mflux_options_parsed(self, args: Namespace) -> None:
            told.append(args.sparkle)

    connect(Plugin())
    case("flux1").run(tiny, "--sparkle", "3")
    assert told == [("CommandLineParser", ["Flux1"]), 3]
    options = {each["flag"]: each for each in describe_command("mflux-generate", flux_generate.__name__)["options"]}
    assert options["--sparkle"]["status"] == "rejected"
    assert options["--sparkle"]["reason"] == "this model does not sparkle"
    assert options["--teacache"]["status"] == "honored"


def test_mflux_options_parsed(connect: Connect, tiny, capsys) -> None:
    told = []

    class Plugin:
        @hookimpl
        def mflux_options_parsed(
            self, parser: ArgumentParser, args: Namespace, command: str, pipelines: list[type]
        ) -> None:
            told.append((args.prompt, args.steps, command, [pipeline.__name__ for pipeline in pipelines]))
            if args.steps == 3:
                parser.error("three is not my number")

    connect(Plugin())
    case("flux1").run(tiny)
    assert told == [(PROMPT, 4, "mflux-generate", ["Flux1"])]
    with pytest.raises(SystemExit) as exit_:
        case("flux1").run(tiny, "--steps", "3", "--model", "there-is-no-such-model")
    assert exit_.value.code == 2
    assert "three is not my number" in capsys.readouterr().err


def test_mflux_model_loading(connect: Connect, tiny) -> None:
    told: list[tuple[Any, ...]] = []

    class Plugin:
        @hookimpl
        def mflux_model_loading(
            self, pipeline: type, model_config: Any, source: str | None, args: Namespace | None
        ) -> None:
            told.append((pipeline.__name__, model_config.base_model, source, args and args.prompt))

        @hookimpl
        def mflux_model_loaded(self) -> None:
            told.append(("loaded",))

    connect(Plugin())
    case("flux1").build(tiny)
    source = str(tiny.checkpoint("dev"))
    assert told == [("Flux1", None, source, None), ("loaded",)]
    told.clear()
    with pytest.raises(Exception, match="nothing"):
        case("flux1").run(tiny, "--model", str(tiny.folder / "nothing"))
    assert told == [("Flux1", "black-forest-labs/FLUX.1-dev", str(tiny.folder / "nothing"), PROMPT)]


def test_mflux_model_loaded(connect: Connect, tiny) -> None:
    told: list[tuple[Any, ...]] = []

    class Plugin:
        @hookimpl
        def mflux_model_loaded(self, model: Any, source: str | None, args: Namespace | None) -> None:
            callbacks = [callback for each in vars(model.callbacks).values() for callback in each]
            mflux_callbacks = [each for each in callbacks if type(each).__module__.startswith("mflux.")]
            told.append((type(model).__name__, source, args and args.seed, mflux_callbacks))
            assert model.transformer is not None

    connect(Plugin())
    source = str(tiny.checkpoint("dev"))
    case("flux1").build(tiny)
    case("flux1").run(tiny)
    assert told == [("Flux1", source, None, []), ("Flux1", source, [SEED], [])]


def test_mflux_generation_begin(connect: Connect, tiny) -> None:
    told = []

    class Plugin:
        @hookimpl
        def mflux_generation_begin(self, model: Any, seed: int, prompt: str, config: Any) -> None:
            told.append((type(model).__name__, seed, prompt, config.num_inference_steps, config.width))

    connect(Plugin())
    case("flux1").run(tiny, "--seed", "1", "2")
    assert told == [("Flux1", 1, PROMPT, 4, 64), ("Flux1", 2, PROMPT, 4, 64)]


def test_mflux_step_end(connect: Connect, tiny, capsys) -> None:
    told = []

    class Plugin:
        @hookimpl
        def mflux_step_end(self, model: Any, t: int, time_steps: Any) -> None:
            time_steps.set_postfix(mine=t, refresh=False)
            told.append((type(model).__name__, t))

    connect(Plugin())
    case("flux1-from-image").run(tiny)
    assert told == [("Flux1", 2), ("Flux1", 3)], "image-to-image starts in the middle"
    assert "mine=3" in capsys.readouterr().err


class Diary:
    """A plugin that writes down what happens to a generation."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @hookimpl
    def mflux_generation_begin(self) -> None:
        self.events.append("begin")

    @hookimpl
    def mflux_step_end(self, t: int) -> None:
        self.events.append(t)

    @hookimpl
    def mflux_loop_end(self, model: Any) -> None:
        assert model.transformer is not None, "not freed yet"
        self.events.append("loop end")

    @hookimpl
    def mflux_generation_interrupted(self, model: Any) -> None:
        self.events.append(f"interrupted {type(model).__name__}")

    @hookimpl
    def mflux_generation_end(self, image: Any) -> None:
        self.events.append("end" if image is not None else "end without an image")


def test_mflux_loop_end(connect: Connect, tiny) -> None:
    diary = Diary()
    connect(diary)
    case("flux1").run(tiny, "--low-ram")
    assert diary.events == ["begin", 0, 1, 2, 3, "loop end", "end"]


def test_mflux_generation_interrupted(connect: Connect, tiny, capsys) -> None:
    class Impatient(Diary):
        @hookimpl
        def mflux_step_end(self, t: int) -> None:
            super().mflux_step_end(t)
            if t == 1:
                raise KeyboardInterrupt

    diary = Impatient()
    connect(diary)
    with pytest.raises(FileNotFoundError, match="saved no picture"):
        case("flux1").run(tiny, "--teacache", "2")
    assert diary.events == ["begin", 0, 1, "interrupted Flux1", "end without an image"]
    captured = capsys.readouterr()
    assert "Stopping image generation at step 2/4" in captured.out
    assert "TeaCache: skipped" not in captured.err


def test_mflux_generation_end(connect: Connect, tiny) -> None:
    class Plugin(Diary):
        @hookimpl
        def mflux_generation_end(self, model: Any, image: Any | None) -> None:
            super().mflux_generation_end(image)
            if image is not None:
                image.generation_parameters = {**image.generation_parameters, "their_key": type(model).__name__}

    plugin = Plugin()
    connect(plugin)
    saved = case("flux1").run(tiny, "--metadata", "--teacache", "2")
    record = json.loads(saved.path.with_suffix(".metadata.json").read_text())
    assert record["their_key"] == "Flux1"
    assert record["teacache_method"] == "2"
    model = case("flux1").build(tiny)
    model.transformer.proj_out = None
    plugin.events.clear()
    with pytest.raises(TypeError):
        case("flux1").generate(model, tiny)
    assert plugin.events == ["begin", "end without an image"]


def test_mflux_hookspecs(connect: Connect, tiny, capsys) -> None:
    """A plugin may have hooks of its own, for plugins of its own."""

    class Specs:
        @hookspec
        def mflux_colours(self) -> str:
            """What colour?"""

    class Asking:
        @hookimpl
        def mflux_hookspecs(self) -> type:
            return Specs

    class Answering:
        @hookimpl(optionalhook=True)
        def mflux_colours(self) -> str:
            return "green"

    loaded = connect(Answering(), Asking())
    assert contributions("mflux_colours") == [], "not specified when the plugins were loaded"
    loaded.manager.add_hookspecs(Specs)
    assert contributions("mflux_colours") == ["green"]
    assert contributions("mflux_no_such_hook") == []


def test_mflux_pipelines(connect: Connect, tiny, tmp_path, monkeypatch) -> None:
    """A pipeline that no adapter names is watched in Python once a plugin names it."""
    (tmp_path / "their_watched.py").write_text(
        "from mflux.models.flux.variants.txt2img.flux import Flux1\nclass Watched(Flux1):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []

    class Plugin:
        @hookimpl
        def mflux_pipelines(self) -> list[str]:
            return ["their_watched:Watched"]

        @hookimpl
        def mflux_model_loading(self, pipeline: type) -> None:
            seen.append(pipeline.__name__)

    connect(Plugin())
    pipeline = importlib.import_module("their_watched").Watched
    monkeypatch.delitem(sys.modules, "their_watched")
    from mflux.models.common.config.model_config import AVAILABLE_MODELS

    pipeline(model_path=str(tiny.checkpoint("dev")), model_config=AVAILABLE_MODELS["dev"])
    assert seen == ["Watched"]
    bridge.uninstall()
    assert "__init__" not in vars(pipeline)


def test_mflux_adapters(connect: Connect, tiny, tmp_path, monkeypatch, capsys) -> None:
    """Somebody's own pipeline, in somebody's own module, is served under the environment variable."""
    (tmp_path / "their_pipelines.py").write_text(
        "from mflux.models.flux.variants.concept_attention.flux_concept import Flux1Concept\n"
        "from mflux.models.flux.variants.txt2img.flux import Flux1\n"
        "class TheirFlux(Flux1):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MFLUX_TEACACHE", "auto")
    adapter = Adapter(id="their-flux", pipelines=("their_pipelines:TheirFlux",), taps=FLUX1.taps, branches=1)

    class Plugin:
        @hookimpl
        def mflux_adapters(self) -> list[Adapter]:
            return [adapter]

        @hookimpl
        def mflux_variants(self) -> list[Variant]:
            return [variant(adapter="their-flux", models=("tiny-dev",))]

    connect(Plugin())
    pipeline = importlib.import_module("their_pipelines").TheirFlux
    monkeypatch.delitem(sys.modules, "their_pipelines")
    from mflux.models.common.config.model_config import AVAILABLE_MODELS

    model = pipeline(model_path=str(tiny.checkpoint("dev")), model_config=AVAILABLE_MODELS["dev"])
    case("flux1").generate(model, tiny)
    assert "TeaCache: skipped 2 of 4 steps (threshold 0.25, theirs)" in capsys.readouterr().err
    bridge.uninstall()
    assert "__init__" not in vars(pipeline)


def test_mflux_variants(connect: Connect, tiny, tmp_path, capsys) -> None:
    from tests.test_options import write_variant

    path = write_variant(tmp_path / "theirs", id="from-a-file", models=["tiny-krea-dev"], threshold=0.15)

    class Plugin:
        @hookimpl
        def mflux_variants(self) -> list[Variant | Path]:
            return [variant(), path]

    connect(Plugin())
    case("flux1").run(tiny, "--teacache")
    case("flux1-krea").run(tiny, "--teacache")
    said = capsys.readouterr().err
    assert "TeaCache: skipped 2 of 4 steps (threshold 0.25, theirs)" in said
    assert "TeaCache: skipped 1 of 4 steps (threshold 0.15, from-a-file)" in said
    assert "calibrated" not in said
    main(["doctor"])
    assert "variant theirs: made in Python by a plugin (plugin)" in capsys.readouterr().out
    user = write_variant(tmp_path / "config" / "mflux" / "teacache", id="theirs")
    main(["variants", "theirs"])
    shown = capsys.readouterr().out
    assert str(user) in shown, "the user's own files win"
    assert "made in Python by a plugin" in shown
    assert "None" not in shown


@dataclass(frozen=True)
class Every(Method):
    """A method that counts, whatever the signal says, and reads it all the same."""

    count: int = 2

    @property
    def setting(self) -> str:
        return f"every:{self.count}"

    def check(self, variant: Variant | None, blocks: Mapping[str, int] | None = None) -> None:
        if variant is None:
            raise SettingsError("every: there is no variant")

    def check_steps(self, steps: int | None) -> None:
        if steps is not None and steps < self.count:
            raise SettingsError(f"{steps} steps are too few for {self}")

    def gate(self, setup: Setup) -> Gate:
        return EveryGate(self.count)

    def transform(self, signal: mx.array, sigma: float, facts: Facts) -> mx.array:
        return signal * sigma


class EveryGate:
    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, step: int, change: Change) -> Verdict:
        assert change() > 0
        return Verdict(skip=step % self.count != 0, reason="it is not its turn")

    def reset(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # mflux leaves the file of -C open
def test_mflux_methods(connect: Connect, tiny, capsys, monkeypatch) -> None:
    class Brings:
        @hookimpl
        def mflux_variants(self) -> list[Variant]:
            return [variant(recommended="every:2")]

        @hookimpl
        def mflux_methods(self) -> Mapping[str, Callable[[str], Every]]:
            return {"every": lambda text: Every(int(text))}

    def refused(*options: str) -> str:
        nothing = tiny.folder / "nothing" / "tiny-dev"
        with pytest.raises(SystemExit) as exit_:
            case("flux1").run(tiny, "--model", str(nothing), *options)
        assert exit_.value.code == 2
        return capsys.readouterr().err

    connect(Brings())
    case("flux1").run(tiny, "--steps", "7", "--teacache")
    assert "TeaCache: skipped 3 of 7 steps (every:2, theirs)" in capsys.readouterr().err
    saved = case("flux1").run(tiny, "--steps", "7", "--metadata", "--teacache", "every:3+linear")
    assert "TeaCache: skipped 4 of 7 steps (every:3+linear, theirs)" in capsys.readouterr().err
    record = saved.path.with_suffix(".metadata.json")
    assert json.loads(record.read_text())["teacache_method"] == "every:3+linear"
    again = run_command("mflux-generate", ["-C", str(record)], tiny.folder)
    assert np.array_equal(saved.pixels, again.pixels)
    assert "4 steps are too few for every:5" in refused("--teacache", "every:5")
    bridge.uninstall()

    connect(Brings())
    monkeypatch.setenv("MFLUX_TEACACHE", "every:2")
    model = case("flux1").build(tiny)  # as a Python script does
    assert str(apply.handle_of(model).method) == "every:2"
    monkeypatch.delenv("MFLUX_TEACACHE")
    bridge.uninstall()

    connect()
    message = refused("--teacache", "every:2")
    there_are = ", ".join(sorted(methods.BUILT_IN))
    assert f"argument --teacache: 'every:2': 'every' is no method; there are {there_are}" in message


# ---- other people's packages -----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a package with one plugin: its entry point's name, and its module's source."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    modules = []

    def install(name: str, source: str, whose: str = "their") -> None:
        modules.append(f"{name}_module")
        (folder / f"{name}_module.py").write_text(source)
        info = folder / f"{whose}_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {whose}-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[mflux]\n{name} = {name}_module\n")
        importlib.invalidate_caches()

    yield install
    for module in modules:
        sys.modules.pop(module, None)


TELLING = """
from mflux_teacache_plugin import hookimpl

@hookimpl
def mflux_step_end(model, t):
    print("they saw step", t)
"""


def findings(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    capsys.readouterr()
    code = main(["doctor", "--format", "json"])
    return code, {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_an_installed_plugin_takes_part(package, connect: Connect, tiny, capsys) -> None:
    package("telling", TELLING)
    connect()
    case("flux1").run(tiny, "--steps", "2")
    assert "they saw step 0\nthey saw step 1\n" in capsys.readouterr().out
    code, found = findings(capsys)
    assert found["plugin telling"]["detail"] == "loaded, from their-telling 1.2"
    assert found["plugin teacache"]["status"] == found["plugin telling"]["status"] == "ok"
    assert code == 0


def test_a_second_plugin_of_one_name_is_left_out_and_named(package, connect: Connect, tiny, capsys) -> None:
    package("telling", TELLING)
    package("telling", TELLING, whose="another")
    connect()
    assert "has a plugin of that name" in capsys.readouterr().err
    case("flux1").run(tiny, "--steps", "2")
    assert capsys.readouterr().out.count("they saw step 0") == 1
    assert findings(capsys)[0] == 1


def test_a_plugin_can_be_blocked(package, connect: Connect, tiny, capsys, monkeypatch) -> None:
    package("telling", TELLING)
    monkeypatch.setenv("MFLUX_LOAD_PLUGINS", "teacache, other")
    connect()
    case("flux1").run(tiny, "--steps", "2", "--teacache", "0.2")
    captured = capsys.readouterr()
    assert "they saw" not in captured.out
    assert "skipped 0 of 2" in captured.err
    code, found = findings(capsys)
    assert found["plugin telling"] == {
        "status": "note",
        "what": "plugin telling",
        "detail": "blocked by MFLUX_LOAD_PLUGINS",
        "fix": "add telling to MFLUX_LOAD_PLUGINS",
    }
    assert code == 0


def test_blocking_all_plugins_leaves_stock_mflux(connect: Connect, tiny, capsys, monkeypatch) -> None:
    monkeypatch.setenv("MFLUX_LOAD_PLUGINS", "")
    connect()
    with pytest.raises(SystemExit):
        case("flux1").run(tiny, "--teacache")
    assert "unrecognized arguments: --teacache" in capsys.readouterr().err
    code, found = findings(capsys)
    assert found["plugin teacache"]["status"] == "problem"
    assert code == 1


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit('enough')\n", "SystemExit: enough"),
        (TELLING.replace("mflux_step_end", "mflux_step_over"), "unknown hook 'mflux_step_over'"),
        (TELLING.replace("model, t", "model, colour"), "Argument(s) {'colour'} are declared in the hookimpl but"),
    ],
    ids=["import", "exit", "unknown hook", "unknown argument"],
)
def test_a_plugin_that_cannot_be_loaded_is_named(source: str, why: str, package, connect, tiny, capsys) -> None:
    package("broken", source)
    package("telling", TELLING)
    connect()
    told = capsys.readouterr().err
    assert "mflux: the plugin 'broken' is left out: " in told
    assert why in told
    case("flux1").run(tiny, "--steps", "2", "--teacache", "0.2")
    captured = capsys.readouterr()
    assert "they saw step 1" in captured.out, "the other plugins work"
    assert "TeaCache: skipped 0 of 2 steps" in captured.err
    code, found = findings(capsys)
    assert why in found["plugin broken"]["detail"]
    assert found["plugin broken"]["fix"] == "fix or uninstall the package that brings broken"
    assert code == 1


@pytest.mark.parametrize(
    "hook",
    [
        "mflux_add_options(parser)",
        "mflux_options_parsed(args)",
        "mflux_model_loading(pipeline)",
        "mflux_model_loaded(model)",
        "mflux_generation_begin(model)",
        "mflux_step_end(model)",
        "mflux_loop_end(model)",
        "mflux_generation_end(model)",
        "mflux_models()",
        "mflux_adapters()",
        "mflux_variants()",
        "mflux_methods()",
    ],
)
def test_a_plugin_that_fails_in_a_hook_keeps_nobody_else_from_working(hook, package, connect, tiny, capsys) -> None:
    source = f"from mflux_teacache_plugin import hookimpl\n@hookimpl\ndef {hook}:\n    1 / 0\n"
    package("unlucky", source)  # called before `teacache`
    connect()
    saved = case("flux1").run(tiny, "--steps", "3", "--teacache", "2")
    said = capsys.readouterr().err
    assert f"mflux: the plugin 'unlucky' failed in {hook.partition('(')[0]}: ZeroDivisionError: division" in said
    assert "TeaCache: skipped 1 of 3 steps (threshold 2, flux1-dev)" in said
    assert saved.pixels.any()


def test_a_hook_wrapper_is_refused(package, connect: Connect, capsys) -> None:
    package("wrapping", TELLING.replace("@hookimpl", "@hookimpl(wrapper=True)").replace("print", "yield"))
    connect()
    assert "the plugin 'wrapping' is left out: mflux_step_end is a hook wrapper" in capsys.readouterr().err


def test_debug_shows_where_a_plugin_failed(package, connect, tiny, monkeypatch, capsys) -> None:
    package("failing", TELLING.replace("print(", "raise ValueError("))
    connect()
    monkeypatch.setenv("MFLUX_TEACACHE_DEBUG", "1")
    assert case("flux1").run(tiny, "--steps", "2").path.exists()
    said = capsys.readouterr().err
    assert "Traceback" in said and "failing_module.py" in said


# ---- mflux as it was -------------------------------------------------------------------------------------------------


def _is_there(module: str) -> bool:
    """Whether this mflux has such a module."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _patched() -> dict[str, Any]:
    """The namespaces of everything that is patched, and of what could be."""
    pipelines = [name.split(":") for name in choose.registry().pipelines()]
    pipelines = [(module, name) for module, name in pipelines if _is_there(module)]  # some came with a later mflux
    points = [*bridge.PATCH_POINTS, *pipelines]
    classes = {}
    for module, name in points:
        found = getattr(importlib.import_module(module), name.partition(".")[0])
        classes[f"{module}:{name}"] = dict(vars(found)) if isinstance(found, type) else dict(found)
    return classes


def test_connecting_is_idempotent_and_undone(connect: Connect, tiny) -> None:
    diary = Diary()
    before = _patched()
    connect(diary)
    bridge.install()
    bridge.install()
    case("flux1").run(tiny, "--steps", "2", "--teacache", "2")
    assert diary.events == ["begin", 0, 1, "loop end", "end"]
    assert _patched() != before
    bridge.uninstall()
    assert _patched() == before
    bridge.uninstall()
    diary.events.clear()
    case("flux1").run(tiny, "--steps", "2")
    assert diary.events == []
    with pytest.raises(SystemExit):
        case("flux1").run(tiny, "--teacache", "2")


def test_a_pipeline_that_inherits_its_constructor_is_undone_as_well(connect: Connect) -> None:
    from mflux.models.flux.variants.txt2img.flux import Flux1

    class Inherits(Flux1):
        pass

    stock = Flux1.__init__
    connect()
    bridge._bridge._patch(Inherits, "__init__", lambda model: None)
    Inherits()
    bridge.uninstall()
    assert "__init__" not in vars(Inherits)
    assert Flux1.__init__ is stock


@pytest.mark.parametrize("module", ["plugins", "hookspecs"])
def test_it_stands_down_where_mflux_has_a_host(module: str, connect: Connect, tiny, tmp_path, monkeypatch, capsys):
    import mflux

    (tmp_path / f"{module}.py").write_text("")
    monkeypatch.setattr(mflux, "__path__", [*mflux.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    before = _patched()
    connect()
    assert _patched() == before
    assert not _startup.state()["pending"]
    _, found = findings(capsys)
    assert found["mflux"]["status"] == "note"
    assert "stands down" in found["mflux"]["detail"]
