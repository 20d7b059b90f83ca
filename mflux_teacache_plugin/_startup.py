"""What runs when the interpreter starts: a gate, and the plugin's one import hook.

`mflux_teacache_plugin_startup.pth` (`.start` from Python 3.15) calls `activate()` in every Python process of the
environment, twice in a venv. So this file imports `os` and `sys`, nothing else, and lets no exception out: an ordinary
one would print a traceback at every start, a SystemExit would end the interpreter.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_facts: "dict[str, Any]" = {"calls": 0, "activated": False, "why": "the start-up file did not run"}
_pending: "dict[str, list[Callable[[ModuleType], object]]]" = {}  # module name → what to call once it has run


def activate(why: str = "") -> None:
    """Wait for mflux if this process wants TeaCache; a non-empty `why` wants it whatever the command is."""
    try:
        _facts["calls"] += 1
        if not _facts["activated"]:
            _facts["activated"], _facts["why"] = _gate(why)
            if _facts["activated"]:
                when_imported("mflux", _install_bridge)
    except BaseException as fault:  # noqa: BLE001 - site.py would get it: see the module's docstring
        _report("start-up failed", fault)


def deactivate() -> None:
    """Forget every target and the gate's answer. What a callback has done already is its owner's to undo."""
    _facts.update(calls=0, activated=False, why="deactivated")
    for name, callbacks in list(_pending.items()):
        for callback in list(callbacks):
            forget(name, callback)


def state() -> "dict[str, Any]":
    """Facts for `mflux-teacache doctor`: calls, activated, why (or why not), and the modules still waited for."""
    return {**_facts, "pending": sorted(_pending)}


def when_imported(module_name: str, callback: "Callable[[ModuleType], object]") -> None:
    """Call `callback(module)` right after the module's code has run; at once if it is imported already."""
    module = sys.modules.get(module_name)
    if module is not None:
        return _call(callback, module)
    if callback not in _pending.setdefault(module_name, []):
        _pending[module_name].append(callback)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def forget(module_name: str, callback: "Callable[[ModuleType], object]") -> None:
    """Undo `when_imported`; a callback that was called already, or never registered, is no error."""
    if callback in _pending.get(module_name, []):
        _pending[module_name].remove(callback)
        _tidy()


def _gate(why: str) -> "tuple[bool, str]":
    if os.environ.get("MFLUX_TEACACHE_DISABLE", "") not in ("", "0"):
        return False, "MFLUX_TEACACHE_DISABLE is set"
    if why or os.environ.get("MFLUX_TEACACHE"):
        return True, why or "MFLUX_TEACACHE is set"
    argv = getattr(sys, "argv", None) or [""]
    command = os.path.basename(argv[0])
    if command == "-m":  # the module's name is not in argv yet; in orig_argv it stands just before the arguments
        module = "".join(sys.orig_argv[-len(argv) :][:1])
        module = module.partition("m")[2] if module.startswith("-") else module  # `-mNAME`, `-umNAME`
        return module.startswith("mflux."), f"python -m {module} is running"
    # mflux-teacache itself is not meant: its verbs ask for the hook where they need it
    return command.startswith("mflux-") and command != "mflux-teacache", f"{command or 'no command'} is running"


def _install_bridge(_mflux: "ModuleType") -> None:
    from mflux_teacache_plugin.host.bridge import install

    install()


class _Finder:
    """Finds nothing itself: has the finders behind it find a target, and waits for the target's code to run."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in _pending:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(name, path, target) for finder in behind if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        loader = spec and spec.loader
        # Built-in and frozen modules have a class for a loader, a namespace package has none: never shadowed.
        if not isinstance(loader, type) and hasattr(loader, "exec_module") and hasattr(loader, "__dict__"):
            _watch(loader, name)
        return spec


def _watch(loader: "Any", name: str) -> None:
    """Shadow `exec_module` on this one loader, for one call: its type, and everyone else's loaders, stay as they are."""
    run = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        vars(loader).pop("exec_module", None)
        run(module)
        if module.__name__ == name:  # one zip loader serves many modules
            for callback in _pending.pop(name, []):
                _call(callback, module)
            _tidy()

    loader.exec_module = exec_module


def _tidy() -> None:
    for name in [name for name, callbacks in _pending.items() if not callbacks]:
        del _pending[name]
    if not _pending and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


def _call(callback: "Callable[[ModuleType], object]", module: "ModuleType") -> None:
    try:
        callback(module)
    except (Exception, SystemExit) as fault:  # noqa: BLE001 - a fault of ours must not cost the user the import
        _report(f"the hook on {module.__name__} failed, mflux runs without it", fault)


def _report(what: str, fault: BaseException) -> None:
    try:
        text = " ".join(f"{what}: {type(fault).__name__}: {fault}".split())
        sys.stderr.write(f"mflux-teacache: {text} (MFLUX_TEACACHE_DEBUG=1 shows where)\n")
        if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
            sys.excepthook(type(fault), fault, fault.__traceback__)
    except Exception:  # noqa: BLE001 - no standard error to write to, or an exception that cannot be printed
        return


_FINDER = _Finder()
