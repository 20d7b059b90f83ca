"""Lower literals inside an installed package's functions for a while.

mflux writes FLUX.1's widths as literals (3072, 4096, ...), in constructors and in forwards, so no argument makes the
model smaller. `shrunk` reads the installed source, compiles it again with some literals replaced, and lends the new code
objects to the functions that are already there. Classes and functions keep their identity, so it does not matter who
imported them before, and afterwards everything is as it was.
"""

import ast
import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

#: What to replace in a module: an integer literal, or a whole expression where the same number means two things.
Table = Mapping[int | str, int | str]

#: Module or package name -> its table. The longest name that covers a module decides.
Rules = Mapping[str, Table]


class _Literals(ast.NodeTransformer):
    def __init__(self, table: Table) -> None:
        self.table = {self._parsed(old): self._parsed(new) for old, new in table.items()}

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Constant | ast.Tuple) and (text := ast.unparse(node)) in self.table:
            return ast.copy_location(ast.parse(self.table[text], mode="eval").body, node)
        return super().generic_visit(node)

    @staticmethod
    def _parsed(source: int | str) -> str:
        return ast.unparse(ast.parse(str(source), mode="eval"))


@contextlib.contextmanager
def shrunk(rules: Rules) -> Iterator[None]:
    """Make the replacements of `rules` in all functions, defaults and class constants of those modules."""
    with contextlib.ExitStack() as undo:
        for name in sorted({module for prefix in rules for module in _modules_under(prefix)}):
            prefix = max((p for p in rules if name == p or name.startswith(p + ".")), key=len)
            module = importlib.import_module(name)
            _lend(module, _recompiled(module, rules[prefix]), module, undo)
        yield


def _modules_under(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield name
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        yield info.name


def _recompiled(module: ModuleType, table: Table) -> dict[str, Any]:
    path = str(module.__file__)
    tree = ast.fix_missing_locations(_Literals(table).visit(ast.parse(Path(path).read_text(encoding="utf-8"), path)))
    namespace: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__, "__file__": path}
    exec(compile(tree, path, "exec"), namespace)
    return namespace


def _lend(owner: Any, twin: Mapping[str, Any], module: ModuleType, undo: contextlib.ExitStack) -> None:
    """Give `owner` (a module or class) the code, defaults and constants of its recompiled `twin`."""
    for name, new in twin.items():
        old = vars(owner).get(name)
        new, old = (value.__func__ if isinstance(value, staticmethod | classmethod) else value for value in (new, old))
        if isinstance(new, type) and isinstance(old, type) and new.__module__ == module.__name__:
            _lend(old, vars(new), module, undo)
        elif isinstance(new, FunctionType) and isinstance(old, FunctionType) and _written_in(module, new):
            old = inspect.unwrap(old)
            for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
                _set(old, attribute, getattr(new, attribute), getattr(old, attribute), undo)
        elif type(new) is int and type(old) is int:
            _set(owner, name, new, old, undo)


def _written_in(module: ModuleType, function: FunctionType) -> bool:
    """Neither imported from elsewhere nor generated, as a dataclass's methods are."""
    return function.__code__.co_filename == module.__file__


def _set(owner: Any, name: str, new: Any, old: Any, undo: contextlib.ExitStack) -> None:
    if new != old:
        setattr(owner, name, new)
        undo.callback(setattr, owner, name, old)
