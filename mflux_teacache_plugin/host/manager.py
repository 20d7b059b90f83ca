"""The plugin manager: finds, blocks and loads plugins, and survives those that fail."""

import importlib.metadata
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pluggy

from mflux_teacache_plugin.host import specs

GROUP = "mflux"

#: Comma-separated names of the only plugins to load; empty for none. Unset: all.
LOAD_PLUGINS = "MFLUX_LOAD_PLUGINS"


@dataclass
class Loaded:
    """The manager, and what became of each entry point."""

    manager: pluggy.PluginManager
    distributions: dict[str, str] = field(default_factory=dict)  #: plugin to "distribution version"
    blocked: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: plugin to why


@cache
def load_plugins() -> Loaded:
    """Load every plugin of the group once per process. One that fails is reported by name and left out."""
    loaded = Loaded(pluggy.PluginManager(GROUP))
    loaded.manager.add_hookspecs(specs)
    allowed = os.environ.get(LOAD_PLUGINS)
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        name = entry_point.name
        if names is not None and name not in names:
            loaded.manager.set_blocked(name)
            loaded.blocked.append(name)
            continue
        try:
            _register(loaded.manager, entry_point)
        except (Exception, SystemExit) as exception:  # noqa: BLE001 - somebody else's plugin may fail in any way
            loaded.manager.unregister(name=name)
            loaded.failed[name] = f"{type(exception).__name__}: {exception}"
            print(f"mflux: the plugin '{name}' is left out: {loaded.failed[name]}", file=sys.stderr)
            continue
        if entry_point.dist is not None:
            loaded.distributions[name] = f"{entry_point.dist.name} {entry_point.dist.version}"
    return loaded


def _register(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    plugin: Any = entry_point.load()
    if manager.get_plugin(entry_point.name) is None:
        manager.register(plugin, name=entry_point.name)
        manager.check_pending()  # an unknown hook is refused here, while it is known whose it is
