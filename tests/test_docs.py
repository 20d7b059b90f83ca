"""The documentation cannot drift: what it says of the code is compared with the code, and its examples are run."""

import ast
import difflib
import importlib
import inspect
import re
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import distribution, entry_points, version
from pathlib import Path

import pytest
import yaml

from mflux_teacache_plugin import Handle, apply_teacache, cli, hooks
from mflux_teacache_plugin import settings as settings_module
from mflux_teacache_plugin.api import Method
from mflux_teacache_plugin.caching.stats import Decision, Generation, Stats
from mflux_teacache_plugin.host import specs, versions
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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
OPTIONS, HOOKS, FAMILY, INTERFACE = (
    PAGES[f"docs/{name}.md"] for name in ("options", "hooks", "add-a-family", "python")
)

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
    """The rows of the tables below a heading: what the first cell has in backticks, to the rest of the row."""
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


def test_the_models_on_their_page_are_those_that_ship() -> None:
    """Read independently of the script that writes the table."""
    rows = re.findall(r"^\| ([^|]+) \| `([a-z0-9.-]+)` \| ([0-9.]+|–) \|", PAGES["docs/models.md"], re.MULTILINE)
    shipped = [read_variant(path) for path in sorted(packaged_folder().glob("*.toml"))]
    thresholds = ["–" if variant.threshold is None else f"{variant.threshold:g}" for variant in shipped]
    models = [", ".join(variant.models) for variant in shipped]
    assert rows == list(zip(models, [variant.id for variant in shipped], thresholds, strict=True))


# ---- hooks -----------------------------------------------------------------------------------------------------------


def _hooks() -> dict[str, str]:
    """The host's hooks and step caching's, with their arguments."""
    functions = [item for module in (specs, hooks) for item in vars(module).items() if item[0].startswith("mflux_")]
    return {name: f"{name}({', '.join(inspect.signature(value).parameters)})" for name, value in functions}


def test_every_hook_has_a_heading_with_its_signature() -> None:
    headings = re.findall(r"^### (mflux_\w+\(.*\))$", HOOKS, re.MULTILINE)
    assert not (wrong := compared(set(headings), set(_hooks().values()), "docs/hooks.md, headings")), wrong
    assert headings == list(_hooks().values()), (
        "docs/hooks.md has the hooks in another order than specs.py and hooks.py"
    )


@pytest.mark.parametrize("hook", _hooks())
def test_every_hook_has_an_example_that_takes_true_arguments(hook: str) -> None:
    section = HOOKS.split(f"\n### {hook}(", 1)[1].split("\n##", 1)[0]
    functions = [
        node
        for fence in FENCE.finditer(section)
        for node in ast.walk(ast.parse(fence["code"]))
        if isinstance(node, ast.FunctionDef) and node.name == hook
    ]
    assert functions, f"docs/hooks.md: no example for {hook}"
    true = set(inspect.signature(getattr(specs, hook, None) or getattr(hooks, hook)).parameters)
    for function in functions:
        assert not (wrong := {arg.arg for arg in function.args.args} - true), f"docs/hooks.md: {hook} has no {wrong}"


def test_all_that_a_method_may_bring_is_documented() -> None:
    section = HOOKS.split("\n### mflux_methods(", 1)[1].split("\n## ", 1)[0]
    documented = set(re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \|", section, re.MULTILINE))
    the_users = {"forecast", "order", "with_forecast", "window", "with_window", "cfg_end", "with_cfg_end"}
    brought = {name for name in vars(Method) if not name.startswith("_")} - the_users
    assert not (wrong := compared(documented, brought, "docs/hooks.md, mflux_methods")), wrong
    for name, arguments in re.findall(r"^\| `(\w+)\(([\w, ]*)\)` \|", section, re.MULTILINE):
        assert list(inspect.signature(getattr(Method, name)).parameters)[1:] == arguments.split(", "), name


# ---- the Python interface --------------------------------------------------------------------------------------------


def _public(cls: type) -> set[str]:
    """The attributes that a class's docstring, its fields and its properties name."""
    described = set(re.findall(r"^ {4,8}(\w+): ", (cls.__doc__ or "").partition("Attributes:")[2], re.MULTILINE))
    properties = {name for name, value in vars(cls).items() if isinstance(value, property)}
    return described | properties | {field.name for field in getattr(cls, "__dataclass_fields__", {}).values()}


@pytest.mark.parametrize("cls", [Handle, Stats, Generation, Decision])
def test_the_python_interface_is_documented(cls: type) -> None:
    true = _public(cls) | ({"restore()"} if cls is Handle else set())
    assert not (wrong := compared(set(table(INTERFACE, cls.__name__)), true, f"docs/python.md, {cls.__name__}")), wrong


def test_the_arguments_and_errors_of_apply_teacache_are_documented() -> None:
    rows = set(table(INTERFACE, "apply_teacache")) - {"error"}
    errors = {row for row in rows if row.endswith("Error")}
    raised = set(re.findall(r"\w+Error", (apply_teacache.__doc__ or "").partition("Raises:")[2]))
    assert not (wrong := compared(errors, raised, "docs/python.md, errors")), wrong
    arguments = set(inspect.signature(apply_teacache).parameters)
    assert not (wrong := compared(rows - errors, arguments, "docs/python.md, arguments")), wrong


# ---- names that users type -------------------------------------------------------------------------------------------


def _constants(folder: Path = PACKAGE) -> set[str]:
    """Every text in the code of a folder that is the name of an environment variable."""
    nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if re.fullmatch(r"MFLUX_[A-Z_]+", text)}


def test_the_environment_variables_are_documented() -> None:
    documented = set(table(OPTIONS, "Environment variables"))
    assert not (wrong := compared(documented, _constants(), "docs/options.md, Environment variables")), wrong


@pytest.mark.parametrize("file", PAGES)
def test_no_page_names_a_variable_that_does_not_exist(file: str) -> None:
    known = _constants() | _constants(ROOT / "examples" / "demo_model" / "plugin")
    unknown = set(re.findall(r"MFLUX_[A-Z_]*[A-Z]", PAGES[file])) - known
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

    codes = {cli.main(["variants"]), cli.main(["bench", "no-such-suite.toml"])}
    with monkeypatch.context() as patch:
        patch.setenv("MFLUX_TEACACHE_DISABLE", "1")
        codes.add(cli.main(["doctor"]))
    with monkeypatch.context() as patch:
        patch.setattr("mflux_teacache_plugin.cli.listing.run", interrupted)
        codes.add(cli.main(["variants"]))
    with pytest.raises(SystemExit) as usage:
        cli.main(["no-such-verb"])
    codes.add(usage.value.code)
    capsys.readouterr()
    documented = set(table(OPTIONS, "Exit codes")) - {"141"}  # that takes a pipe which nobody reads
    assert not (wrong := compared(documented, set(map(str, codes)), "docs/options.md, Exit codes")), wrong
    returned = {
        str(node.value.value)
        for path in (PACKAGE / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and type(node.value.value) is int
    }
    assert returned <= {*documented, "141"}, (
        f"docs/options.md, Exit codes: cli/ returns {sorted(returned - documented)} too"
    )


def test_the_changelog_has_the_version() -> None:
    dated = re.findall(r"^## \[([0-9.]+)\] - \d{4}-\d{2}-\d{2}$", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert len(dated) == len(re.findall(r"^## \[[0-9]", PAGES["CHANGELOG.md"], re.MULTILINE)), (
        "give each version a date"
    )
    assert dated[0] == version("mflux-teacache-plugin"), "CHANGELOG.md: give the newest section the version's number"


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


def _links(page: str) -> list[str]:
    """Where links and pictures lead."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page))


REPOSITORY = PROJECT["urls"]["Repository"]
OWN = f"{REPOSITORY}/blob/main/"  # how the addresses of this repository's own files begin


@pytest.mark.parametrize("file", PAGES)
def test_the_links_lead_somewhere(file: str) -> None:
    for link in _links(PAGES[file]):
        base = (ROOT / file).parent
        if link.startswith(OWN):
            link, base = link.removeprefix(OWN), ROOT
        if re.match(r"[a-z]+:", link):
            if link.startswith(new_issue := f"{REPOSITORY}/issues/new?template="):
                assert (ROOT / ".github" / "ISSUE_TEMPLATE" / link.removeprefix(new_issue)).exists(), f"{file}: {link}"
            else:
                assert not link.startswith(REPOSITORY), f"{file}: {link} is not the address of a file"
            continue
        target, _, anchor = link.partition("#")
        path = base / target if target else ROOT / file
        where = str(path.resolve().relative_to(ROOT))
        assert path.exists() or where in MADE_BY_THE_DEMO, f"{file}: the link to {link} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(PAGES[where]), f"{file}: {where} has no heading for #{anchor}"


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 120, "README.md: move something to docs/"


def test_the_addresses_of_the_project_are_of_its_repository() -> None:
    for name, address in PROJECT["urls"].items():
        assert address.startswith(REPOSITORY), name
        if address.startswith(OWN):
            assert (ROOT / address.removeprefix(OWN)).exists(), f"pyproject.toml: {name} leads nowhere"


@pytest.mark.parametrize("file", ["README.md", "docs/troubleshooting.md"])
def test_the_tested_versions_of_mflux_are_named(file: str) -> None:
    named = re.findall(r"tested with mflux ([0-9., and]+[0-9])", PAGES[file])
    assert named == [" and ".join(versions.in_words().rsplit(", ", 1))]


def test_the_bug_form_asks_for_what_doctor_prints() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    asked = [
        field
        for field in form["body"]
        if "`mflux-teacache doctor --format json`" in field["attributes"].get("label", "")
    ]
    assert len(asked) == 1 and asked[0]["validations"]["required"]
    assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}


#: Words that a reader in a second language looks up in vain, and the words to use.
ODD_WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"foretell?(s|ing)?|foretold": "predict",
    r"placed steps|placements?": "schedule",
    r"amongst|whither|betwixt|hither|thence|lest|unasked|anew|likewise": "a plain word",
    r"goes over|go over": "replaces",
    r"rivals?": "plain mflux with as many steps",
    r"slip of the pen|in so many words|stood aside|stands aside": "plain words",
}


@pytest.mark.parametrize("file", PAGES)
def test_the_words_are_plain(file: str) -> None:
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", FENCE.sub("", PAGES[file]), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    for odd, plain in ODD_WORDS.items():
        found = sorted({match[0] for match in re.finditer(rf"\b({odd})\b", text, re.IGNORECASE)})
        assert not found, f"{file}: instead of {found} write: {plain}"


# ---- examples --------------------------------------------------------------------------------------------------------

PYTHON = [
    (file, number, f["code"])
    for file in PAGES
    for number, f in enumerate(FENCE.finditer(PAGES[file]))
    if f["language"] == "python"
]
SOURCES = [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted(ROOT.glob("examples/plugin/*.py"))]


@pytest.mark.parametrize(
    ("file", "number", "code"), PYTHON, ids=lambda value: str(value) if len(str(value)) < 40 else "code"
)
def test_the_python_compiles_and_its_imports_exist(file: str, number: int, code: str) -> None:
    for node in ast.walk(ast.parse(code, f"{file}, block {number}")):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mflux"):
            if node.module == "mflux_teacache_example":
                continue  # `test_example_plugin` runs it
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{file}: {node.module} has no {name.name}"


@pytest.mark.parametrize(("file", "code"), [*((file, code) for file, _, code in PYTHON), *SOURCES])
def test_documents_and_examples_import_only_the_public_names(file: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        private = [name for name in names if name.startswith("mflux_teacache_plugin.")]
        assert set(private) <= {"mflux_teacache_plugin.api"}, f"{file} imports {private}"


def test_every_setting_of_dualcache_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([\w.-]+)` \|", OPTIONS, re.MULTILINE)
    fields = DualCacheSettings.__dataclass_fields__
    assert {ours: default for ours, _, default in rows} == {
        name: str(field.default).lower().removesuffix(".0") for name, field in fields.items()
    }
    for ours, theirs, default in rows:
        assert parse(f"dualcache:{theirs}={default}") == parse(f"dualcache:{ours}={default}")


def test_the_short_example_is_enough_for_speed_ups(eager, monkeypatch) -> None:
    from mflux_teacache_plugin.adapters import Registry
    from tests.tiny.families import family

    short = _module("short_example", marked(FAMILY, "run: short")).MOSS
    moss = family("moss-image")
    monkeypatch.setattr("mflux_teacache_plugin.choose.registry", lambda: Registry([short], {}))
    with moss.model() as model, apply_teacache(model, "1.5x") as handle:
        moss.generate(model, ROOT / "docs" / "comparison.png")
    assert handle.stats.last.fault is None and handle.stats.skipped > 0


@pytest.mark.parametrize("id", ["flux1", "klein-base"])
def test_the_checks_of_a_family_pass_for_ours(tiny, eager, id: str) -> None:
    check = _module("checks_example", marked(FAMILY, "run: checks")).check
    the_case = case(id)
    model = the_case.build(tiny)
    check(model, lambda: the_case.generate_image(model, tiny), id)


def test_the_fields_of_an_adapter_are_documented() -> None:
    from mflux_teacache_plugin.api import Adapter, TapPoints

    of_taps = {f"taps.{field.name}" for field in fields(TapPoints)}
    true = {field.name for field in fields(Adapter)} - {"taps"} | of_taps
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", FAMILY, re.MULTILINE))
    assert not (wrong := compared(documented, true, "docs/add-a-family.md, fields")), wrong


def _module(name: str, code: str) -> object:
    """The code as a module that is registered nowhere."""
    module = type(sys)(name)
    exec(compile(code, name, "exec"), vars(module))
    return module
