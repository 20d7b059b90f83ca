"""List the coefficient files in use, a line for each variant: the model it is for, and where its numbers come from. With an
ID, show everything about that variant: its numbers, the models it is for, its provenance, and what it shadows.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.variants.catalog import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", metavar="ID", help="of the variant to show")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    files = choose.catalog()
    if args.id is not None:
        files.by_id(args.id)
        shadows = [entry.place for entry in files.shadowed.get(args.id, [])]
        _show({**_as_dict(files.variants[args.id]), "shadows": shadows}, args.format)
        return 0
    entries = [entry for _, entry in sorted(files.variants.items())]
    if args.format == "json":
        output.print_json([_as_dict(entry) for entry in entries])
        return 0
    rows = [
        (v.id, v.adapter, v.threshold, v.distilled, v.provenance.fitted, origin, ", ".join(v.models))
        for v, origin in [(entry.variant, entry.origin) for entry in entries]
    ]
    output.print_table(("VARIANT", "ADAPTER", "THRESHOLD", "DISTILLED", "FITTED", "FROM", "MODELS"), rows)
    return 0


def _show(shown: dict[str, Any], format: str) -> None:
    if format == "json":
        return output.print_json(shown)
    shown["provenance"] = shown.pop("provenance")  # last, and at length
    for key, value in _flat(shown):
        if value not in (None, [], ()):
            print(f"{key:20} {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")


def _as_dict(entry: Entry) -> dict[str, Any]:
    """Everything about a variant, ready for JSON."""
    return {**dataclasses.asdict(entry.variant), "digest": entry.variant.digest, "origin": entry.origin}


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
