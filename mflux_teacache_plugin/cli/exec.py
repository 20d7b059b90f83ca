"""Run an mflux command, or a Python script that uses mflux, with the plugin, where the start-up file is not installed."""

import argparse
import runpy
import sys
from pathlib import Path

from mflux_teacache_plugin import _startup
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache exec [--] COMMAND ..."
    told = "such as `mflux-generate --model dev --prompt ... --teacache`, or a script, `make_pictures.py ...`"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=told)


def run(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise SettingsError("there is no command to run", hint="mflux-teacache exec -- mflux-generate --prompt ...")
    script = Path(words[0])
    _startup.activate(f"mflux-teacache exec {script.name}")
    if (found := command.find(words[0])) is not None:
        return command.run(found, words[1:]) or 0
    if script.suffix == ".py" and script.is_file():
        sys.argv = list(words)
        sys.path.insert(0, str(script.parent.resolve()))
        runpy.run_path(words[0], run_name="__main__")
        return 0
    error = f"{words[0]} is neither an mflux command nor a Python script"
    raise SettingsError(error, hint="check the name; options come after it")
