"""The plugin manager: finds, blocks and loads plugins, and survives those that fail."""

import importlib.metadata
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pluggy
from pluggy import HookCaller

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
        distribution = "?" if entry_point.dist is None else f"{entry_point.dist.name} {entry_point.dist.version}"
        if loaded.manager.has_plugin(name):
            _leave_out(loaded, f"{name} ({distribution})", f"{loaded.distributions[name]} has a plugin of that name")
            continue
        try:
            _register(loaded.manager, entry_point)
        except (Exception, SystemExit) as exception:  # noqa: BLE001 - somebody else's plugin may fail in any way
            loaded.manager.unregister(name=name)
            _leave_out(loaded, name, f"{type(exception).__name__}: {exception}")
            continue
        loaded.distributions[name] = distribution
    return loaded


def _leave_out(loaded: Loaded, name: str, why: str) -> None:
    loaded.failed[name] = why
    print(f"mflux: the plugin '{name}' is left out: {why}", file=sys.stderr)


def _register(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    plugin: Any = entry_point.load()
    manager.register(plugin, name=entry_point.name)
    manager.check_pending()  # an unknown hook is refused here, while it is known whose it is
    for hook in manager.get_hookcallers(plugin) or []:
        if any(each.plugin is plugin and (each.wrapper or each.hookwrapper) for each in hook.get_hookimpls()):
            raise TypeError(f"{hook.name} is a hook wrapper; every plugin is called by itself here")


def tell(hook: HookCaller, **arguments: Any) -> list[Any]:
    """Call a hook of every plugin, the newest first, and give what they returned, without None.

    Each is called by itself: one that fails is reported by name, keeps no other from being called, and costs nobody the
    picture. One that exits means to.
    """
    results = []
    for implementation in reversed(hook.get_hookimpls()):
        try:
            result = implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception as exception:
            if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
                raise
            why = f"{type(exception).__name__}: {exception}"
            print(f"mflux: the plugin '{implementation.plugin_name}' failed in {hook.name}: {why}", file=sys.stderr)
            continue
        if result is not None:
            results.append(result)
    return results
