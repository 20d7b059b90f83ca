"""Run an mflux command, or a Python script that uses mflux, with the plugin, where the start-up file is not installed."""

import argparse
import runpy
import sys
from importlib.metadata import entry_points
from pathlib import Path

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache exec [--] COMMAND ..."
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="such as `mflux-generate --model dev --prompt ... --teacache`, or a script, `make_pictures.py ...`",
    )


def run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise SettingsError("there is no command to run", hint="mflux-teacache exec -- mflux-generate --prompt ...")
    script = Path(command[0])
    name = script.name
    found = entry_points(group="console_scripts", name=name)
    _startup.activate(f"mflux-teacache exec {name}")
    if found and name.startswith("mflux-"):
        sys.argv = list(command)
        return next(iter(found)).load()() or 0
    if name.endswith(".py") and script.is_file():
        sys.argv = list(command)
        sys.path.insert(0, str(script.parent.resolve()))
        runpy.run_path(command[0], run_name="__main__")
        return 0
    raise SettingsError(
        f"{command[0]} is neither an mflux command nor a Python script", hint="check the name; options come after it"
    )
