"""The parts of the documentation that are made from the code: help texts, tables, quotes of the example plugin.

    python -m tests.regenerate_docs

writes them into the Markdown files, between `<!-- generated: NAME -->` and `<!-- end -->`. `test_docs` compares.
"""

import argparse
import ast
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points, version
from pathlib import Path
from unittest import mock

import pluggy

ROOT = Path(__file__).parents[1]

#: Width of the help texts.
COLUMNS = 100

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite every block that is out of date, and say which."""
    for file, blocks in BLOCKS.items():
        path = ROOT / file
        before = path.read_text(encoding="utf-8")
        after = regenerated(before, blocks)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{file} rewritten")


def regenerated(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """`text` with each of its blocks made anew. KeyError: a block that `blocks` does not know."""
    return _BLOCK.sub(lambda found: f"{found[1]}{blocks[found['name']]()}{found[3]}", text)


def named(text: str) -> set[str]:
    """The names of the blocks in a text."""
    return {found["name"] for found in _BLOCK.finditer(text)}


def help_texts() -> str:
    """What `mflux-teacache --help` prints, and `mflux-teacache VERB --help` of every verb."""
    from mflux_teacache_plugin.cli import VERBS, main

    blocks = []
    for argv in (["--help"], *([verb, "--help"] for verb in VERBS)):
        printed = io.StringIO()
        with _fixed_terminal(), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(argv)
        blocks.append(_fenced(f"$ mflux-teacache {' '.join(argv)}\n{printed.getvalue()}"))
    return "\n".join(blocks)


def option_help() -> str:
    """The plugin's own group in the `--help` of an image command."""
    from mflux_teacache_plugin import plugin
    from mflux_teacache_plugin.host import specs

    manager = pluggy.PluginManager("mflux")
    manager.add_hookspecs(specs)
    manager.register(plugin)
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    manager.hook.mflux_add_options(parser=parser, pipelines=[], rejected={})
    with _fixed_terminal():
        text = parser.format_help().strip()
    return _fenced(text.replace(version("mflux-teacache-plugin"), "X.Y.Z") + "\n")


def variants() -> str:
    """The table of the coefficient files that ship."""
    from mflux_teacache_plugin.variants import read_variant
    from mflux_teacache_plugin.variants.catalog import packaged_folder

    rows = ["| model | variant | threshold | numbers | also serves |", "|---|---|---|---|---|"]
    for path in sorted(packaged_folder().glob("*.toml")):
        variant = read_variant(path)
        fitted = "fitted on it" if variant.provenance.fitted else "borrowed"
        numbers = f"{fitted}; *distilled*" if variant.distilled else fitted
        related = ", ".join(name.removeprefix("black-forest-labs/") for name in variant.related) or "–"
        models = ", ".join(variant.models)
        threshold = "–" if variant.threshold is None else f"{variant.threshold:g}"
        rows.append(f"| {models} | `{variant.id}` | {threshold} | {numbers} | {related} |")
    return "\n".join(rows) + "\n"


def commands() -> str:
    """mflux's image commands, and what of `--teacache` each of them takes."""
    from mflux_teacache_plugin.adapters import BUILT_IN, REFUSED, Registry

    registry = Registry(BUILT_IN, REFUSED)
    packages = tuple({".".join(name.split(".")[:3]) + "." for name in (*registry.pipelines(), *REFUSED)})
    rows: dict[tuple[str, str], list[list[str]]] = {}  # what serves and what it takes → commands, pipelines
    for script in sorted(entry_points(group="console_scripts"), key=lambda script: script.name):
        if not script.value.startswith(packages):
            continue
        for value in vars(sys.modules[script.load().__module__]).values():
            if not (isinstance(value, type) and hasattr(value, "generate_image")):
                continue
            serving = registry.serving(value)
            if (reason := registry.refusal(value)) is not None:
                takes = f"nothing: {reason}"
            else:
                takes = "speed-ups" if all(adapter.taps is None for adapter in serving.values()) else "every method"
            row = rows.setdefault((", ".join(f"`{id}`" for id in serving) or "–", takes), [[], []])
            for cell, name in zip(row, (script.name, value.__name__), strict=True):
                if f"`{name}`" not in cell:
                    cell.append(f"`{name}`")
    table = ["| takes | commands | pipelines in Python | adapters |", "|---|---|---|---|"]
    order = ("every method", "speed-ups")
    for (adapters, takes), (names, pipelines) in sorted(
        rows.items(), key=lambda row: [row[0][1] != it for it in order]
    ):
        table.append(f"| {takes} | {', '.join(names)} | {', '.join(pipelines)} | {adapters} |")
    return "\n".join(table) + "\n"


def summary_lines() -> str:
    """What is printed after a picture, in each case."""
    from mflux_teacache_plugin.caching.stats import Decision, Generation
    from mflux_teacache_plugin.methods import parse
    from mflux_teacache_plugin.summary import summary
    from mflux_teacache_plugin.variants import read_variant
    from mflux_teacache_plugin.variants.catalog import packaged_folder

    def steps(count: int, skipped: int = 0, reason: str = "", change: float = 0.0, estimate: float = 0.0) -> Generation:
        decisions = [Decision(step, step <= skipped, reason, change, estimate) for step in range(1, count - 1)]
        return Generation(
            count, [Decision(0, False, "first step"), *decisions, Decision(count - 1, False, "last step")]
        )

    ids = ("flux1-dev", "flux2-klein-base-4b", "flux1-schnell")
    dev, base, schnell = (read_variant(packaged_folder() / f"{id}.toml") for id in ids)
    fault = steps(25, skipped=2)
    del fault.decisions[8:]
    fault.fault = "ValueError: an example"
    blocks = [
        Decision(step, step > 8, "", step / 200, blocks=name, share=share)
        for step in range(25)
        for name, share in (("transformer_blocks", 18 / 57), ("single_transformer_blocks", 37 / 57))
    ]
    few = Generation(2, [Decision(step, False, "first step") for step in range(2)])
    lines = [
        summary(generation, parse(method), variant)
        for generation, method, variant in (
            (steps(25, skipped=6), "0.2", dev),
            (steps(25, skipped=9), "1.5x", None),
            (Generation(25, blocks), "dualcache:aggressive", dev),
            (steps(25, estimate=0.18), "0.1", dev),
            (steps(8, reason="above the fitted range", change=0.251), "0.17", base),
            (steps(4, estimate=0.35), "0.2", schnell),
            (few, "0.2", dev),
            (fault, "0.2", dev),
        )
    ]
    return _fenced("".join(f"TeaCache: {line}\n" for line in lines))


def trace_errors() -> str:
    """How well polynomials and profiles predict the real traces."""
    from mflux_teacache_plugin import choose

    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import fit_traces
    finally:
        sys.path.remove(str(folder))
    files = choose.catalog(folder / "published")
    return fit_traces.table(fit_traces.fit(path, files) for path in sorted((folder / "traces").glob("*.json")))


def shipped() -> str:
    """The numbers of the coefficient files that ship."""
    from mflux_teacache_plugin.variants import read_variant
    from mflux_teacache_plugin.variants.catalog import packaged_folder

    columns = ("id", "adapter", "threshold", "range", "guard", "recommended", "profile", "R²", "licence of the weights")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for path in sorted(packaged_folder().glob("*.toml")):
        variant = read_variant(path)
        cells = (
            f"`{variant.id}`",
            variant.adapter,
            "–" if variant.threshold is None else f"{variant.threshold:g}",
            "–" if variant.range is None else f"{variant.range[0]:.3f} to {variant.range[1]:.3f}",
            f"{variant.guard.first}/{variant.guard.last}",
            "–" if variant.recommended is None else f"`{variant.recommended}`",
            "–" if variant.profile is None else "yes",
            "–" if variant.provenance.r2 is None else f"{round(variant.provenance.r2, 3):g}",
            variant.weights_licence,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def start_up_file() -> str:
    """What Python runs at every start."""
    return _fenced((ROOT / "build_support" / "mflux_teacache_plugin_startup.pth").read_text(encoding="utf-8"))


def signature() -> str:
    """The first lines of `apply_teacache`."""
    from mflux_teacache_plugin import apply_teacache

    source = inspect.getsource(apply_teacache)
    return _fenced(source[: source.index('    """')].rstrip(":\n") + ": ...\n", "python")


def modules() -> str:
    """Every module of the package, room by room, with the first sentence of its docstring."""
    package = ROOT / "mflux_teacache_plugin"
    paths = sorted(package.rglob("*.py"), key=lambda path: (path.parent != package, str(path.parent), path.name))
    rows = ["| module | what it is for |", "|---|---|"]
    for path in paths:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text is None:
            raise SystemExit(f"{path} has no docstring")
        sentence = re.split(r"(?<=[.?])(?= [A-Z])", " ".join(text.split("\n\n")[0].split()))[0]
        name = str(path.relative_to(package))
        room = path.name == "__init__.py" and path.parent != package
        cell = f"**`{path.parent.relative_to(package)}/`**" if room else f"`{name}`"
        rows.append(f"| {cell} | {sentence.removesuffix('.')} |")
    return "\n".join(rows) + "\n"


def example(part: str) -> str:
    """A part of the example plugin, from the line that names it to the next such line; the option with all imports."""
    source = (ROOT / "examples" / "plugin" / "mflux_teacache_example.py").read_text(encoding="utf-8")
    imports, *parts = re.split(r"^# -+ (.+?) -+$", source, flags=re.MULTILINE)
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    above = imports.split('"""\n', 1)[1].strip() + "\n\n\n" if part == "an option" else ""
    return _fenced(above + named[part].strip() + "\n", "python")


def example_pyproject() -> str:
    return _fenced((ROOT / "examples" / "plugin" / "pyproject.toml").read_text(encoding="utf-8"), "toml")


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}```\n"


@contextlib.contextmanager
def _fixed_terminal():
    with mock.patch.dict(os.environ, COLUMNS=str(COLUMNS), NO_COLOR="1"), mock.patch.object(sys, "argv", ["mflux"]):
        os.environ.pop("FORCE_COLOR", None)
        yield


#: File → name of a block in it → what makes the block.
BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/models.md": {"variants": variants, "commands": commands},
    "docs/options.md": {"option-help": option_help, "help": help_texts},
    "docs/coefficient-files.md": {"shipped": shipped},
    "docs/calibration.md": {"trace-errors": trace_errors},
    "docs/tutorial.md": {"summary-lines": summary_lines},
    "docs/startup.md": {"start-up-file": start_up_file},
    "docs/python.md": {"apply-teacache": signature},
    "docs/architecture.md": {"modules": modules},
    "docs/hooks.md": {
        "example-pyproject": example_pyproject,
        "example-method": lambda: example("a method"),
        "example-option": lambda: example("an option"),
    },
    "docs/add-a-family.md": {"example-family": lambda: example("a family")},
}

if __name__ == "__main__":
    main()
