"""Run one of mflux's commands in this process, with one more plugin that listens, if wanted.

That mflux calls plugins at all is `bridge`'s: whoever runs a command has asked for it (`_startup.activate`).
"""

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.host.manager import load_plugins


class Leave(BaseException):
    """What a listener raises to leave the command. No Exception, so that nobody on the way takes it for a failure."""


def find(word: str) -> EntryPoint | None:
    """mflux's command of this name, or of this path's last part; None if there is none."""
    name = Path(word).name
    found = entry_points(group="console_scripts", name=name) if name.startswith("mflux-") else ()
    return next(iter(found), None)


def run(command: EntryPoint, options: Sequence[str], listener: object | None = None) -> Any:
    """Run a command, as `find` gives it, to its end; returns what it returns. `sys.argv` is what it was afterwards.

    `listener` is a plugin for this run, called before all others unless its hooks say otherwise; it may raise Leave.
    SystemExit: the command's parser refused the options, or it ended so.
    """
    before, sys.argv = sys.argv, [command.name, *options]
    if listener is not None:
        load_plugins().manager.register(listener)
    try:
        return command.load()()
    finally:
        if listener is not None:
            load_plugins().manager.unregister(listener)
        sys.argv = before
