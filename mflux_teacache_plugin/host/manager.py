"""The plugin manager: finds, blocks and loads plugins, and survives those that fail."""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pluggy
from pluggy import HookCaller

from mflux_teacache_plugin.host import faults, specs

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
            loaded.manager.register(entry_point.load(), name=name)
            loaded.distributions[name] = distribution
        except (Exception, SystemExit) as exception:  # noqa: BLE001 - somebody else's plugin may fail in any way
            _leave_out(loaded, name, faults.in_words(exception))
    for further in tell(loaded.manager.hook.mflux_hookspecs):
        loaded.manager.add_hookspecs(further)
    for name, plugin in loaded.manager.list_name_plugin():
        if plugin is not None and (why := _why_unusable(loaded.manager, plugin)):
            del loaded.distributions[name]
            _leave_out(loaded, name, why)
    return loaded


def contributions(name: str, kind: Callable[[Any], Any] | None = None) -> list[Any]:
    """What every plugin returns from a hook without arguments, `kind` as in `tell`; nothing from a hook nobody specified."""
    hook = getattr(load_plugins().manager.hook, name, None)
    return [] if hook is None or not hook.has_spec() else tell(hook, kind)


def _leave_out(loaded: Loaded, name: str, why: str) -> None:
    if loaded.manager.has_plugin(name) and name not in loaded.distributions:
        loaded.manager.unregister(name=name)
    loaded.failed[name] = why
    print(f"mflux: the plugin '{name}' is left out: {why}", file=sys.stderr)


def _why_unusable(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """What is wrong with a registered plugin's hooks, or None."""
    for hook in manager.get_hookcallers(plugin) or []:
        for each in hook.get_hookimpls():
            if each.plugin is not plugin:
                continue
            if not hook.has_spec() and not each.optionalhook:
                return f"unknown hook '{hook.name}'"
            if each.wrapper or each.hookwrapper:
                return f"{hook.name} is a hook wrapper; every plugin is called by itself here"
    return None


def tell(hook: HookCaller, kind: Callable[[Any], Any] | None = None, **arguments: Any) -> list[Any]:
    """Call a hook of every plugin, the newest first, and give what they returned, without None.

    `kind` makes of a result what is given, such as `list`. Each plugin is called by itself: one that fails, or whose result
    `kind` cannot take, is reported by name, keeps no other from being called, and costs nobody the picture. One that exits
    means to.
    """
    results = []
    for implementation in reversed(hook.get_hookimpls()):
        try:
            result = implementation.function(*(arguments[name] for name in implementation.argnames))
            if result is not None:
                results.append(result if kind is None else kind(result))
        except Exception as exception:  # noqa: BLE001 - see above
            faults.report(f"the plugin '{implementation.plugin_name}' failed in {hook.name}", exception)
    return results
