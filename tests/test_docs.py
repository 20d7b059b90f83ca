"""The documentation cannot drift: what it says of the code is compared with the code, and its examples are run."""

import ast
import difflib
import importlib
import inspect
import re
import sys
import tomllib
from importlib.metadata import distribution, entry_points, version
from pathlib import Path

import pytest

from mflux_teacache_plugin import apply_teacache, cli
from mflux_teacache_plugin import settings as settings_module
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host import specs
from mflux_teacache_plugin.methods import parse
from mflux_teacache_plugin.methods.dualcache import DualCacheSettings
from mflux_teacache_plugin.methods.teacache import TeaCache
from mflux_teacache_plugin.summary import metadata
from mflux_teacache_plugin.variants import read_variant
from mflux_teacache_plugin.variants.catalog import packaged_folder
from tests import regenerate_docs
from tests.tiny.cases import case

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mflux_teacache_plugin"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
OPTIONS, HOOKS, FAMILY = (PAGES[f"docs/{name}.md"] for name in ("options", "hooks", "add-a-family"))

#: A fenced block: what the comment on the line before it says, the language, the code.
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)

#: Pictures that are made by `make demo` and then copied here.
MADE_BY_THE_DEMO = {"docs/comparison.png"}


@pytest.fixture(scope="module", autouse=True)
def mflux_is_imported() -> None:
    """Before any test: importing mflux's commands changes the process, which the tests are held not to do."""
    regenerate_docs.commands()


def marked(page: str, mark: str) -> str:
    """The code of the one block of a page that has this comment before it."""
    found = [fence["code"] for fence in FENCE.finditer(page) if fence["mark"] == mark]
    assert len(found) == 1, f"{len(found)} blocks marked <!-- {mark} -->, expected one"
    return found[0]


def table(page: str, heading: str) -> dict[str, str]:
    """The rows of the first table below a heading: what its first cell has in backticks, to the rest of the row."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"^\| `?([^`|]+?)`? \| (.*) \|$", section, re.MULTILINE)[1:])


def compared(documented: set[str], true: set[str], where: str) -> str:
    """What to add and what to remove."""
    add, remove = sorted(true - documented), sorted(documented - true)
    return "; ".join(filter(None, (add and f"{where}: add {add}", remove and f"{where}: remove {remove}")))


# ---- what is made from the code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", regenerate_docs.BLOCKS)
def test_the_generated_parts_are_up_to_date(file: str) -> None:
    blocks = regenerate_docs.BLOCKS[file]
    assert regenerate_docs.named(PAGES[file]) == set(blocks), (
        f"{file}: other blocks than tests/regenerate_docs.py makes"
    )
    now = regenerate_docs.regenerated(PAGES[file], blocks)
    difference = "\n".join(
        difflib.unified_diff(PAGES[file].splitlines(), now.splitlines(), file, "the code", "", "", 1)
    )
    assert now == PAGES[file], f"run `python -m tests.regenerate_docs`, look at the change and commit it:\n{difference}"


def test_the_models_in_the_readme_are_those_that_ship() -> None:
    """Read independently of the script that writes the table."""
    rows = re.findall(r"^\| ([^|]+) \| `([a-z0-9.-]+)` \| ([0-9.]+|–) \|", PAGES["README.md"], re.MULTILINE)
    shipped = [read_variant(path) for path in sorted(packaged_folder().glob("*.toml"))]
    thresholds = ["–" if variant.threshold is None else f"{variant.threshold:g}" for variant in shipped]
    models = [", ".join(variant.models) for variant in shipped]
    assert rows == list(zip(models, [variant.id for variant in shipped], thresholds, strict=True))


# ---- hooks -----------------------------------------------------------------------------------------------------------


def _hooks() -> dict[str, str]:
    functions = {name: value for name, value in vars(specs).items() if name.startswith("mflux_")}
    return {name: f"{name}({', '.join(inspect.signature(value).parameters)})" for name, value in functions.items()}


def test_every_hook_has_a_heading_with_its_signature() -> None:
    headings = re.findall(r"^## (mflux_\w+\(.*\))$", HOOKS, re.MULTILINE)
    assert not (wrong := compared(set(headings), set(_hooks().values()), "docs/hooks.md, headings")), wrong
    assert headings == list(_hooks().values()), "docs/hooks.md has the hooks in another order than host/specs.py"


@pytest.mark.parametrize("hook", _hooks())
def test_every_hook_has_an_example_that_takes_true_arguments(hook: str) -> None:
    section = HOOKS.split(f"\n## {hook}(", 1)[1].split("\n## ", 1)[0]
    functions = [
        node
        for fence in FENCE.finditer(section)
        for node in ast.walk(ast.parse(fence["code"]))
        if isinstance(node, ast.FunctionDef) and node.name == hook
    ]
    assert functions, f"docs/hooks.md: no example for {hook}"
    true = set(inspect.signature(getattr(specs, hook)).parameters)
    for function in functions:
        assert not (wrong := {arg.arg for arg in function.args.args} - true), f"docs/hooks.md: {hook} has no {wrong}"


# ---- names that users type -------------------------------------------------------------------------------------------


def _constants() -> set[str]:
    """Every text in the package's code that is the name of an environment variable."""
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if re.fullmatch(r"MFLUX_[A-Z_]+", text)}


def test_the_environment_variables_are_documented() -> None:
    documented = set(table(OPTIONS, "Environment variables"))
    assert not (wrong := compared(documented, _constants(), "docs/options.md, Environment variables")), wrong


@pytest.mark.parametrize("file", PAGES)
def test_no_page_names_a_variable_that_does_not_exist(file: str) -> None:
    unknown = set(re.findall(r"MFLUX_[A-Z_]*[A-Z]", PAGES[file])) - _constants()
    assert not unknown, f"{file} names {sorted(unknown)}, which the code does not read"


def test_the_metadata_keys_are_documented() -> None:
    variant = read_variant(packaged_folder() / "flux1-dev.toml")
    written = set(metadata(Generation(4, alone=2), TeaCache(0.2, cfg_end=0.5), variant, "some.toml"))
    read = {value for name, value in vars(settings_module).items() if name.endswith("_KEY")}
    rows = table(OPTIONS, "Metadata")
    assert not (wrong := compared(set(rows), written, "docs/options.md, Metadata")), wrong
    replayed = {key for key, row in rows.items() if row.rsplit("|", 1)[1].strip().startswith("yes")}
    assert replayed == read, f"docs/options.md, Metadata: -C reads {sorted(read)}"


def test_the_exit_codes_are_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    codes = {cli.main(["variants"]), cli.main(["show", "no-such-variant"])}
    with monkeypatch.context() as patch:
        patch.setenv("MFLUX_TEACACHE_DISABLE", "1")
        codes.add(cli.main(["doctor"]))
    with monkeypatch.context() as patch:
        patch.setattr("mflux_teacache_plugin.cli.variants.run", interrupted)
        codes.add(cli.main(["variants"]))
    with pytest.raises(SystemExit) as usage:
        cli.main(["no-such-verb"])
    codes.add(usage.value.code)
    capsys.readouterr()
    documented = set(table(OPTIONS, "Exit codes"))
    assert not (wrong := compared(documented, set(map(str, codes)), "docs/options.md, Exit codes")), wrong
    returned = {
        str(node.value.value)
        for path in (PACKAGE / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and type(node.value.value) is int
    }
    assert returned <= documented, f"docs/options.md, Exit codes: cli/ returns {sorted(returned - documented)} too"


def test_the_architecture_names_every_module() -> None:
    page = PAGES["docs/architecture.md"]
    documented = set(re.findall(r"`([a-z0-9_/]+\.py)`", page.split("\n## The path of one step")[0]))
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    rooms = {str(path.parent.relative_to(PACKAGE)) + "/" for path in PACKAGE.glob("*/__init__.py")}
    true = {module for module in modules if module == "__init__.py" or not module.endswith("__init__.py")}
    assert not (wrong := compared(documented, true, "docs/architecture.md, The rooms")), wrong
    named = set(re.findall(r"\*\*`([a-z_]+/)`\*\*", page))
    assert not (wrong := compared(named, rooms, "docs/architecture.md, The rooms")), wrong


def test_the_changelog_has_the_version() -> None:
    newest = re.findall(r"^## \[([0-9.]+)\]", PAGES["CHANGELOG.md"], re.MULTILINE)[0]
    assert newest == version("mflux-teacache-plugin"), "CHANGELOG.md: give the newest section the version's number"


# ---- commands and links ----------------------------------------------------------------------------------------------


def _commands(file: str) -> list[str]:
    """The lines of a page's shell blocks, those that go on with a backslash in one piece."""
    blocks = [fence["code"] for fence in FENCE.finditer(PAGES[file]) if fence["language"] == "sh"]
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("file", [file for file in PAGES if _commands(file)])
def test_the_commands_exist(file: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    scripts = set(distribution("mflux").entry_points.select(group="console_scripts").names)
    for line in _commands(file):
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"{file}: the Makefile has no target {target}"
        for verb in re.findall(r"(?:^|\| *)mflux-teacache ([a-z]+)", line):
            assert verb in cli.VERBS, f"{file}: mflux-teacache has no verb {verb}"
        for command in re.findall(r"(?<![\w/.-])(mflux-(?:generate|concept|upscale|save|capabilities)[\w.-]*)", line):
            assert command in scripts, f"{file}: mflux {version('mflux')} has no command {command}"


@pytest.mark.parametrize("file", [file for file in PAGES if "mflux-generate" in " ".join(_commands(file))])
def test_the_options_exist(file: str, connected: object) -> None:
    """Every option beside one of mflux's commands is one that this command takes."""
    for line in _commands(file):
        for name, rest in re.findall(r"\b(mflux-generate[\w.-]*)((?: [^|]*)?)", line):
            script = next(iter(entry_points(group="console_scripts", name=name)))
            parser = getattr(importlib.import_module(script.module), "build_parser", None)
            if parser is None or "--stopwatch" in rest:
                continue  # an older mflux; the example of a plugin
            known = set(parser()._option_string_actions)
            for option in re.findall(r"(?<!\S)(--?[a-zA-Z][\w-]*)", rest):
                assert option in known, f"{file}: {name} has no option {option}"


def _anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", PAGES)
def test_the_links_lead_somewhere(file: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[file])):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / file).parent / target if target else ROOT / file
        where = str(path.resolve().relative_to(ROOT))
        assert path.exists() or where in MADE_BY_THE_DEMO, f"{file}: the link to {link} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(PAGES[where]), f"{file}: {where} has no heading for #{anchor}"


# ---- examples --------------------------------------------------------------------------------------------------------

PYTHON = [
    (file, number, f["code"])
    for file in PAGES
    for number, f in enumerate(FENCE.finditer(PAGES[file]))
    if f["language"] == "python"
]


@pytest.mark.parametrize(
    ("file", "number", "code"), PYTHON, ids=lambda value: str(value) if len(str(value)) < 40 else "code"
)
def test_the_python_compiles_and_its_imports_exist(file: str, number: int, code: str) -> None:
    for node in ast.walk(ast.parse(code, f"{file}, block {number}")):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mflux"):
            if node.module == "mflux_stopwatch":
                continue  # the example
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{file}: {node.module} has no {name.name}"


@pytest.fixture
def stopwatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package of docs/hooks.md, found as if it were installed."""
    project = tomllib.loads(marked(HOOKS, "file: mflux-stopwatch/pyproject.toml"))["project"]
    folder = tmp_path / "site"
    info = folder / f"mflux_stopwatch-{project['version']}.dist-info"
    info.mkdir(parents=True)
    name = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}")
    groups = project["entry-points"].items()
    lines = [line for group, entries in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / "mflux_stopwatch.py").write_text(marked(HOOKS, "file: mflux-stopwatch/mflux_stopwatch.py"))
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("mflux_stopwatch", None)


def test_the_example_plugin_runs_on_mflux(stopwatch, connected, tiny, eager, capsys) -> None:
    """And the hooks are called in the order of the diagram."""
    assert connected.distributions["stopwatch"] == "mflux-stopwatch 0.1.0"
    called: dict[str, None] = {}
    asked_for = ("mflux_models", "mflux_adapters", "mflux_variants", "mflux_methods", "mflux_generation_interrupted")
    of_a_run = [f"@hookimpl\ndef {name}():\n    called['{name}'] = None" for name in _hooks() if name not in asked_for]
    recorder = _module("recorder", "\n".join(["from mflux_teacache_plugin import hookimpl", *of_a_run]), called=called)
    connected.manager.register(recorder)
    saved = case("flux1").run(tiny, "--stopwatch", 2, "--teacache", 0.2)
    printed = capsys.readouterr().err
    assert len(re.findall(r"^stopwatch: step \d took [\d.]+ s$", printed, re.MULTILINE)) == 2
    assert "stopwatch_slowest" in _exif(saved.path)

    diagram = HOOKS.split("\n## The life of a run\n")[1].split("```")[1]
    drawn = list(dict.fromkeys(re.findall(r"\b(mflux_\w+)", diagram)))
    assert set(drawn) == set(_hooks()), "docs/hooks.md: the diagram has other hooks than host/specs.py"
    order = [name for name in drawn if name not in asked_for]
    assert list(called) == order, "docs/hooks.md: the diagram's order is another"


def test_the_example_plugin_refuses_before_weights_load(stopwatch, connected, tiny, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        case("flux1").run(tiny, "--stopwatch", 0)
    assert refused.value.code == 2
    assert "argument --stopwatch: N is at least 1" in capsys.readouterr().err


def _exif(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return repr(picture.info) + repr(dict(picture.getexif()))


def test_the_example_of_testing_a_plugin_runs(stopwatch) -> None:
    exec(marked(HOOKS, "run: manager"), {})


def test_the_example_method_decides(connected, tiny, eager) -> None:
    plugin = _module("method_example", marked(HOOKS, "run: method"))
    connected.manager.register(plugin)
    the_case = case("klein")
    model = the_case.build(tiny)
    with apply_teacache(model, "every:3+reuse") as handle:
        the_case.generate(model, tiny, num_inference_steps=6)
    assert str(handle.method) == "every:3+reuse" and str(plugin.every("3")) == "every:3"
    assert [decision.skipped for decision in handle.stats.last.decisions] == [False, True, True, False, True, False]
    with pytest.raises(SettingsError, match="every: '0'"):
        apply_teacache(model, "every:0")


def test_every_setting_of_dualcache_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([\w.-]+)` \|", OPTIONS, re.MULTILINE)
    fields = DualCacheSettings.__dataclass_fields__
    assert {ours: default for ours, _, default in rows} == {
        name: str(field.default).lower().removesuffix(".0") for name, field in fields.items()
    }
    for ours, theirs, default in rows:
        assert parse(f"dualcache:{theirs}={default}") == parse(f"dualcache:{ours}={default}")


def test_the_example_adapter_fits_mflux(connected) -> None:
    from mflux_teacache_plugin.choose import registry

    plugin = _module("adapter_example", marked(FAMILY, "run: adapter"))
    connected.manager.register(plugin)
    for name in plugin.QWEN_IMAGE.pipelines:
        module, _, pipeline = name.partition(":")
        found = getattr(importlib.import_module(module), pipeline)
        assert "my-qwen-image" in registry().serving(found)
        transformer = importlib.import_module(
            "mflux.models.qwen.model.qwen_transformer.qwen_transformer"
        ).QwenTransformer
        source = inspect.getsource(transformer)
        assert all(f"self.{name} = " in source for name in ("transformer_blocks", "norm_out"))


def test_the_short_example_is_enough_for_speed_ups(eager, monkeypatch) -> None:
    from mflux_teacache_plugin.adapters import Registry
    from tests.tiny.families import family

    short = _module("short_example", marked(FAMILY, "run: short")).MOSS
    moss = family("moss-image")
    monkeypatch.setattr("mflux_teacache_plugin.choose.registry", lambda: Registry([short], {}))
    with moss.model() as model, apply_teacache(model, "1.5x") as handle:
        moss.generate(model, ROOT / "docs" / "comparison.png")
    assert handle.stats.last.fault is None and handle.stats.skipped > 0


@pytest.mark.parametrize(("id", "variant"), [("flux1", "flux1-dev"), ("klein-base", "flux2-klein-base-4b")])
def test_the_checks_of_a_family_pass_for_ours(tiny, eager, id: str, variant: str) -> None:
    check = _module("checks_example", marked(FAMILY, "run: checks")).check
    the_case = case(id)
    model = the_case.build(tiny)
    check(model, lambda: the_case.generate_image(model, tiny), variant)


def test_the_fields_of_an_adapter_are_documented() -> None:
    import dataclasses

    from mflux_teacache_plugin.adapters import Adapter
    from mflux_teacache_plugin.caching.taps import TapPoints

    of_taps = {f"taps.{field.name}" for field in dataclasses.fields(TapPoints)}
    true = {field.name for field in dataclasses.fields(Adapter)} - {"taps"} | of_taps
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", FAMILY, re.MULTILINE))
    assert not (wrong := compared(documented, true, "docs/add-a-family.md, fields")), wrong


def _module(name: str, code: str, **names: object) -> object:
    """The code as a module that is registered nowhere; it sees `names`."""
    module = type(sys)(name)
    vars(module).update(names)
    exec(compile(code, name, "exec"), vars(module))
    return module
