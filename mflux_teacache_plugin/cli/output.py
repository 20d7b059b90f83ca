"""Tables and JSON on stdout."""

import argparse
from collections.abc import Sequence
from typing import Any

from mflux_teacache_plugin.measure import results
from mflux_teacache_plugin.measure.files import as_json


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format text|json`."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def print_json(value: Any) -> None:
    """On stdout."""
    print(as_json(value))


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; numbers are short."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def print_findings(rows: Sequence[results.Row], table: dict[str, Any], format: str) -> None:
    """What was measured: `table` as JSON, or a table and a verdict for each group."""
    if format == "json":
        print_json(table)
        return
    print_groups(rows)
    verdicts = {group: results.verdict(of_group) for group, of_group in results.by_group(rows).items()}
    print("", *(f"{group}: {verdict}" for group, verdict in verdicts.items()), sep="\n")


def print_groups(rows: Sequence[results.Row]) -> None:
    """A table for each group."""
    for group, of_group in results.by_group(rows).items():
        print(f"\n{group}")
        print_table(results.HEAD, [line for row in of_group for line in results.cells(row)])


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "-" if value is None else "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
