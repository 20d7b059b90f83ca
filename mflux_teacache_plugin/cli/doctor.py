"""Check the installation: versions, start-up file, where mflux is patched, plugins, coefficient files, conflicts.

Exit code 0 if mflux will skip steps when asked to, 1 if something stands in the way.
"""

import argparse
import os
import platform
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from mflux_teacache_plugin import _startup, choose
from mflux_teacache_plugin.caching.taps import module_at
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.host import bridge, versions
from mflux_teacache_plugin.host.manager import LOAD_PLUGINS, load_plugins

START_UP_FILE = "mflux_teacache_plugin_startup.pth"

OK, NOTE, PROBLEM = "ok", "note", "problem"


class Finding(NamedTuple):
    """One thing that was checked. `fix` says what to do; empty where nothing need be done."""

    status: str
    what: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    findings = list(examine())
    if args.format == "json":
        output.print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.status:8} {finding.what}: {finding.detail}")
            if finding.fix:
                print(f"{'':8} -> {finding.fix}")
    return int(any(finding.status == PROBLEM for finding in findings))


def examine() -> Iterator[Finding]:
    """All findings, in the order of a run: versions, start-up, patch points, plugins, files, conflicts."""
    for part in (_versions, _start_up, _patch_points, _plugins, _coefficients, _conflicts):
        yield from part()


def _versions() -> Iterator[Finding]:
    yield Finding(OK, "python", platform.python_version())
    yield Finding(OK, "mflux-teacache-plugin", version("mflux-teacache-plugin"))
    yield Finding(OK, "mlx", versions.installed("mlx") or "not installed by name")
    found = versions.installed()
    if found is None:
        yield Finding(PROBLEM, "mflux", "not installed", "pip install mflux")
    elif versions.is_tested(found):
        yield Finding(OK, "mflux", f"{found} (tested: {versions.in_words()})")
    else:  # what does not fit it is a problem of its own, below
        yield Finding(NOTE, "mflux", f"{found} is not among the tested {versions.in_words()}", "report what fails")


def _start_up() -> Iterator[Finding]:
    if os.environ.get("MFLUX_TEACACHE_DISABLE", "") not in ("", "0"):
        yield Finding(PROBLEM, "MFLUX_TEACACHE_DISABLE", "switches the plugin off", "unset MFLUX_TEACACHE_DISABLE")
    path = Path(sysconfig.get_path("purelib"), START_UP_FILE)
    fix = "reinstall mflux-teacache-plugin, or run mflux's commands through `mflux-teacache exec --`"
    if not path.exists():
        yield Finding(PROBLEM, "start-up file", f"{path} is missing", fix)
    elif not _startup.state()["calls"]:
        yield Finding(PROBLEM, "start-up file", f"{path} is there, but did not run (python -S?)", fix)
    else:
        yield Finding(OK, "start-up file", f"{path} ran")


def _patch_points() -> Iterator[Finding]:
    if bridge.mflux_has_a_host():
        yield Finding(NOTE, "mflux", "has a plugin host of its own, so this one stands down")
    fix = "this version of the plugin does not fit this mflux; install a tested version of mflux"
    patched = [f"{module}:{name}" for module, name in bridge.PATCH_POINTS]
    for point in (*patched, *sorted(choose.registry().pipelines())):
        module, _, name = point.partition(":")
        try:
            module_at(import_module(module), name)
            yield Finding(OK, point, "found")
        except (ImportError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and point not in patched:  # it came with a later mflux
                yield Finding(NOTE, point, "not in this mflux")
            else:
                yield Finding(PROBLEM, point, f"not found: {error}", fix)


def _plugins() -> Iterator[Finding]:
    loaded = load_plugins()
    for name, distribution in loaded.distributions.items():
        yield Finding(OK, f"plugin {name}", f"loaded, from {distribution}")
    for name in loaded.blocked:
        status = PROBLEM if name == "teacache" else NOTE
        yield Finding(status, f"plugin {name}", f"blocked by {LOAD_PLUGINS}", f"add {name} to {LOAD_PLUGINS}")
    for name, why in loaded.failed.items():
        yield Finding(PROBLEM, f"plugin {name}", f"left out: {why}", f"fix or uninstall the package that brings {name}")


def _coefficients() -> Iterator[Finding]:
    files = choose.catalog(strict=False)
    for id, entry in sorted(files.variants.items()):
        shadowed = files.shadowed.get(id, [])
        behind = f"; shadows {', '.join(other.place for other in shadowed)}" if shadowed else ""
        yield Finding(OK, f"variant {id}", f"{entry.place} ({entry.origin}){behind}")
    for problem in files.problems:
        detail = " / ".join(filter(None, (problem.error, *(problem.cause or "").splitlines())))
        yield Finding(PROBLEM, "coefficient file", detail, problem.hint or "fix or remove the file")


def _conflicts() -> Iterator[Finding]:
    for name in ("mlx-teacache", "mflux-teacache"):
        if (found := versions.installed(name)) is not None:
            fix = "do not apply both to one model; a model that it patched is refused here"
            yield Finding(NOTE, name, f"{found} is installed beside this plugin", fix)
