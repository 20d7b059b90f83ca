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
    shown: Any = [_as_dict(entry) for _, entry in sorted(files.variants.items())]
    if args.id is not None:
        files.by_id(args.id)
        shadows = [entry.place for entry in files.shadowed.get(args.id, [])]
        shown = {**_as_dict(files.variants[args.id]), "shadows": shadows}
    if args.format == "json":
        output.print_json(shown)
    elif args.id is None:
        keys = ("id", "adapter", "threshold", "distilled", "fitted", "origin", "models")
        told = [{**v, "fitted": v["provenance"]["fitted"], "models": ", ".join(v["models"])} for v in shown]
        head = ("VARIANT", "ADAPTER", "THRESHOLD", "DISTILLED", "FITTED", "FROM", "MODELS")
        output.print_table(head, [[each[key] for key in keys] for each in told])
    else:
        shown["provenance"] = shown.pop("provenance")  # last, and at length
        for key, value in _flat(shown):
            if value not in (None, [], ()):
                print(f"{key:20} {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return 0


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
