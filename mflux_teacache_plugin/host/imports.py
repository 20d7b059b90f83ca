"""Call something right after a module was imported: what the bridge needs to patch mflux without importing it early.

Imports `sys` alone. A callback that fails is one line on stderr; the import goes on.
"""

import sys

TYPE_CHECKING = False  # typing's own, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_pending: "dict[str, list[Callable[[ModuleType], object]]]" = {}  # module name → what to call once it has run


def when_imported(module_name: str, callback: "Callable[[ModuleType], object]") -> None:
    """Call `callback(module)` right after the module's code has run; at once if it is imported already."""
    module = sys.modules.get(module_name)
    if module is not None:
        return _call(callback, module)
    if callback not in _pending.setdefault(module_name, []):
        _pending[module_name].append(callback)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def forget_all() -> None:
    """Undo every `when_imported`. What a callback has done already is its owner's to undo."""
    _pending.clear()
    _tidy()


def pending() -> "list[str]":
    """The modules that are still waited for."""
    return sorted(_pending)


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
    if not _pending and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


def _call(callback: "Callable[[ModuleType], object]", module: "ModuleType") -> None:
    try:
        callback(module)
    except (Exception, SystemExit) as fault:  # noqa: BLE001 - a fault of ours must not cost the user the import
        from mflux_teacache_plugin.host.faults import report

        report(f"the hook on {module.__name__} failed, mflux runs without it", fault)


_FINDER = _Finder()
