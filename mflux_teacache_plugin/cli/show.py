"""Show everything about one variant: its numbers, the models it is for, its provenance, and what it shadows."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.cli.variants import as_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="a variant's id; `mflux-teacache variants` lists them")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    files = choose.catalog()
    files.by_id(args.id)
    shown = as_dict(files.variants[args.id])
    shown["shadows"] = [entry.place for entry in files.shadowed.get(args.id, [])]
    if args.format == "json":
        output.print_json(shown)
        return 0
    shown["provenance"] = shown.pop("provenance")  # last, and at length
    for key, value in _flat(shown):
        if value not in (None, [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{key:20} {text}")
    return 0


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a table and of the tables in it, as the problems of a file name them."""
    for key, value in table.items():
        inner = {key: value} if isinstance(value, dict) else {}
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            inner = {f"{key}[{index}]": each for index, each in enumerate(value)}
        if not inner:
            yield prefix + key, value
        for name, each in inner.items():
            yield from _flat(each, f"{prefix}{name}.")
