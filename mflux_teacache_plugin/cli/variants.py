"""List the coefficient files in use, one line per variant: the model it is for, and where its numbers come from."""

import argparse
import dataclasses
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.variants.catalog import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    entries = [entry for _, entry in sorted(choose.catalog().variants.items())]
    if args.format == "json":
        output.print_json([as_dict(entry) for entry in entries])
        return 0
    rows = [
        (v.id, v.adapter, v.threshold, v.distilled, v.provenance.fitted, entry.origin, ", ".join(v.models))
        for entry in entries
        for v in [entry.variant]
    ]
    output.print_table(("VARIANT", "ADAPTER", "THRESHOLD", "DISTILLED", "FITTED", "FROM", "MODELS"), rows)
    return 0


def as_dict(entry: Entry) -> dict[str, Any]:
    """Everything about a variant, ready for JSON."""
    return {**dataclasses.asdict(entry.variant), "digest": entry.variant.digest, "origin": entry.origin}
