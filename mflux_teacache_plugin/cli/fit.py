"""Fit a coefficient file to traces that are there already, and say how well it foretells prompts that it did not see.

One file is written for each variant that the traces name; the existing file of that id, if there is one, competes.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.calibration import files, traces
from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, PUBLISHED
from mflux_teacache_plugin.calibration.result import Result, conclude
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACE.json", help="trace files, as calibrate writes them"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: the folder for your own files")
    parser.add_argument("--id", help="the variant's id; default: the one that the traces name")
    parser.add_argument("--adapter", metavar="ID", help="the model's adapter, where the traces do not name it")
    parser.add_argument("--model", action="append", metavar="NAME", help="a model that the numbers are for; repeatable")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="a coefficient file or folder whose polynomial competes before others",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the errors and write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite an existing coefficient file")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    groups = traces.by_variant(args.traces)
    if args.id is not None and len(groups) > 1:
        raise SettingsError(f"--id names one variant; the traces are of {', '.join(groups)}", hint="fit one at a time")
    catalog = choose.catalog(args.against)
    folder = args.output or catalog.user_folder
    facts = {"id": args.id, "adapter": args.adapter, "models": args.model}
    if not args.dry_run:
        for id in groups:
            files.check_free(folder, args.id or id, args.force)
    results = []
    for id, group in groups.items():
        entry = catalog.variants.get(args.id or id)
        results.append(conclude(group, None if entry is None else entry.variant, facts))
    written = [] if args.dry_run else [files.write(r.variant, folder, COMMENT, args.force) for r in results]
    if args.format == "json":
        output.print_json([as_dict(result, folder, bool(written)) for result in results])
        return 0
    print_errors(results)
    for path in written:
        print(f"wrote {path}")
    return 0


COMMENT = "Made by `mflux-teacache fit`. Every key: docs/coefficient-files.md."


def print_errors(results: list[Result]) -> None:
    """A row per variant: R² and root mean square error of each way to foretell the output's change."""
    ways = (PUBLISHED, OWN, PROFILE)
    rows: list[tuple[Any, ...]] = []
    for result in results:
        scores = [result.analysis.scores.get(way) for way in ways]
        cells = [None if each is None else f"{each.r2:.3f} ({each.rmse:.3f})" for each in scores]
        rows.append((result.variant.id, result.analysis.prompts, result.analysis.pairs, *cells, result.analysis.best))
    output.print_table(("VARIANT", "PROMPTS", "STEPS", *(way.upper() for way in ways), "BEST"), rows)


def as_dict(result: Result, folder: Path, written: bool) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    scores = {name: dataclasses.asdict(score) for name, score in result.analysis.scores.items()}
    file = str(folder / f"{result.variant.id}.toml") if written else None
    facts = {"prompts": result.analysis.prompts, "steps": result.analysis.pairs}
    return {"file": file, **facts, "best": result.analysis.best, "scores": scores, **dataclasses.asdict(result.variant)}
