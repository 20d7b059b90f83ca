"""The rules of the house that no import contract can hold."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import mflux_teacache_plugin
from mflux_teacache_plugin import api, methods
from mflux_teacache_plugin.methods.method import Method

PACKAGE = Path(mflux_teacache_plugin.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
MOST_LINES = 9_000


def kinds(cls: type = Method) -> set[str]:
    """The names of every method of this package."""
    found = {each for each in cls.__subclasses__() if each.__module__.startswith("mflux_teacache_plugin.")}
    return {each.__name__ for each in found}.union(*(kinds(each) for each in found))


def test_nothing_outside_methods_asks_which_method_it_has() -> None:
    assert {"TeaCache", "Speedup", "DualCache", "SeaCache"} <= kinds()
    for name, tree in TREES.items():
        if name.startswith("methods/"):
            continue
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & kinds(), f"{name} names {used & kinds()}"
        compared = {
            each.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare)
            for each in (node.left, *node.comparators)
            if isinstance(each, ast.Constant)
        }
        names = set(methods.BUILT_IN) - {"teacache"}  # which is the name of this plugin too
        assert not compared & names, f"{name} compares with the name of a method"


def test_no_two_modules_and_no_two_classes_have_one_name() -> None:
    stems = Counter(path.stem for path in MODULES.values() if path.stem != "__init__")
    assert [stem for stem, count in stems.items() if count > 1] == []
    packages = {path.parent.name for path in MODULES.values() if path.name == "__init__.py"}
    assert not packages & set(stems), "nor a module and a package"
    classes = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1] == []


def test_there_is_one_way_to_stand_before_a_call() -> None:
    """Who swaps a class or puts a function in a method's place does it through `host.layers`, but for the bridge's patches."""
    for name, path in MODULES.items():
        if name not in ("host/layers.py", "host/bridge.py"):
            assert '"__class__"' not in path.read_text(), f"{name} swaps a class by itself"


def test_the_public_face_is_what_it_says() -> None:
    assert sorted(api.__all__) == sorted(name for name in vars(api) if not name.startswith("_"))
    assert all(getattr(api, name).__doc__ for name in api.__all__ if isinstance(getattr(api, name), type))


def test_everything_public_says_what_it_is() -> None:
    for name, tree in TREES.items():
        assert ast.get_docstring(tree) or name.endswith("__main__.py"), f"{name} has no docstring"
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                hook = any("hookimpl" in ast.unparse(each) for each in node.decorator_list)
                command = name.startswith("cli/") and node.name in ("add_arguments", "run")
                main = node.name == "main"
                assert hook or command or main or ast.get_docstring(node), f"{name}: {node.name} has no docstring"


ODD = r"\b(stood aside|stands aside|mends?|mended|foretells?|whither|amongst|betwixt|unasked|thrice|henceforth|hitherto|keen)\b"


@pytest.mark.parametrize("name", MODULES)
def test_the_words_are_plain(name: str) -> None:
    assert re.findall(ODD, MODULES[name].read_text(), re.I) == []


def test_the_package_stays_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in MODULES.values()) <= MOST_LINES
