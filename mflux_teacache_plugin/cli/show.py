"""Show everything about one variant: its numbers, the models it is for, its provenance, and what it shadows."""

import argparse

from mflux_teacache_plugin import apply
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.cli.variants import as_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="a variant's id; `mflux-teacache variants` lists them")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    files = apply.catalog()
    apply.by_id(files, args.id)
    shown = as_dict(files.variants[args.id])
    shown["shadows"] = [entry.place for entry in files.shadowed.get(args.id, [])]
    if args.format == "json":
        output.print_json(shown)
        return 0
    provenance = shown.pop("provenance")
    for key, value in {**shown, **{f"provenance.{key}": value for key, value in provenance.items()}}.items():
        if value not in (None, [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{key:20} {text}")
    return 0
