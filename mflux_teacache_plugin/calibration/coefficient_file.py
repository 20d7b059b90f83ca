"""From a variant to its coefficient file, written as one would write it by hand."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import files
from mflux_teacache_plugin.methods.steps import as_text
from mflux_teacache_plugin.variants.variant import BESIDE_MODEL, SCHEMA, Guard, Variant

#: Long arrays of numbers are folded at this width.
WIDTH = 110


def write(variant: Variant, path: Path, comment: str, force: bool = False) -> None:
    """Write a variant's file; its folder is made. Raises as `check_free`."""
    check_free(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, render(variant, comment))


def check_free(path: Path, force: bool) -> None:
    """Raise SettingsError if a file is there and `force` was not given."""
    if path.exists() and not force:
        others = "" if path.name == BESIDE_MODEL else ", --output FOLDER or --id NAME writes another"
        hint = f"--force overwrites it{others}"
        raise SettingsError(f"{path} is there already", hint=hint)


def render(variant: Variant, comment: str) -> str:
    """A coefficient file's text; `comment` goes on top."""
    table = as_table(variant)
    sections = [(f"[{key}]", table.pop(key)) for key in ("profile", "provenance") if table.get(key) is not None]
    sections += [("[[step_lists]]", published) for published in table.pop("step_lists", ())]
    plain = {key: value for key, value in table.items() if value not in ((), False, Guard())}
    text = [*(f"# {line}".rstrip() for line in comment.splitlines()), "", f"schema = {SCHEMA}", *lines(plain)]
    for heading, section in sections:
        told = as_table(section)
        if heading == "[[step_lists]]":
            told = {key: value for key, value in told.items() if value is not False}
            told["computed"] = as_text(told["computed"])
        text += ["", heading, *lines(told)]
    return "\n".join(text) + "\n"


def lines(table: Mapping[str, Any]) -> list[str]:
    """A table in TOML, a key a line."""
    return [f"{key} = {_toml(value)}" for key, value in table.items()]


def _toml(value: Any) -> str:
    """A value in TOML. Strings are JSON's, which TOML reads, but for a text of several lines."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return '"""\n' + quoted[1:-1].replace("\\n", "\n") + '"""' if "\n" in value and '\\"' not in quoted else quoted
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_toml(each) for each in value)
        if len(inside) > WIDTH and all(isinstance(each, (int, float)) for each in value):
            return f"[\n{textwrap.indent(textwrap.fill(inside, WIDTH), '    ')},\n]"
        return f"[{inside}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return f"{{ {', '.join(lines(value if isinstance(value, Mapping) else as_table(value)))} }}"
