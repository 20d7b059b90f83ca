"""From a variant to its coefficient file, written as one would write it by hand."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import files
from mflux_teacache_plugin.variants.variant import SCHEMA, Guard, Variant

#: Long arrays of numbers are folded at this width.
WIDTH = 110


def write(variant: Variant, folder: Path, comment: str, force: bool = False) -> Path:
    """Write `<id>.toml` into `folder`. Raises as `check_free`."""
    path = check_free(folder, variant.id, force)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(path, render(variant, comment))
    return path


def check_free(folder: Path, id: str, force: bool) -> Path:
    """Where a variant's file goes. Raises SettingsError if one is there and `force` was not given."""
    path = folder / f"{id}.toml"
    if path.exists() and not force:
        raise SettingsError(
            f"{path} is there already", hint="--force overwrites it, --output FOLDER or --id NAME writes another"
        )
    return path


def render(variant: Variant, comment: str) -> str:
    """A coefficient file's text; `comment` goes on top."""
    table = as_table(variant)
    tables = {key: table.pop(key) for key in ("profile", "provenance") if table.get(key) is not None}
    lists = table.pop("step_lists", ())
    lines = [*(f"# {line}".rstrip() for line in comment.splitlines()), "", f"schema = {SCHEMA}"]
    plain = {key: value for key, value in table.items() if value not in ((), False, Guard())}
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        lines += ["", f"[{key}]", *(f"{name} = {_toml(each)}" for name, each in as_table(value).items())]
    for published in lists:
        lines += ["", "[[step_lists]]", *(f"{name} = {_toml(each)}" for name, each in as_table(published).items())]
    return "\n".join(lines) + "\n"


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
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    return repr(value) if isinstance(value, (int, float)) else _toml(as_table(value))
