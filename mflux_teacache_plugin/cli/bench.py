"""Measure settings over a suite of models, prompts and seeds: speed, memory, and how near the pictures come to plain mflux,
always beside plain mflux with as many steps. Each run is a fresh process. An interrupted bench goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.measure import files, metrics, results, runs, series, shards, suite
from mflux_teacache_plugin.measure.ledger import Ledger
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.measure.suite import Suite
from mflux_teacache_plugin.methods import OFF


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", type=Path, metavar="SUITE.toml", help="what to measure; benchmarks/suites has some")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where results go, and are found again; default: bench/ and its name"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what the folder holds already")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    metrics.require()
    wanted = suite.read(args.suite)
    out = args.out or Path("bench") / args.suite.stem
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out, pictures, shards.world().rank)
    if args.fresh:
        ledger.forget()
        shards.wait()
    cases = wanted.cases()
    items = [(repetition, case) for repetition in range(wanted.repetitions) for case in cases]
    with shards.stoppable():
        rounds = _measure(wanted, shards.mine(items), ledger, pictures)
        merged = shards.gather([[asdict(shot) for shot in shots] for shots in rounds])
        made = {pictures / shot.file for shots in rounds for shot in shots if shot.repetition == 0}
        shards.gather_files(sorted(made), out)
        if merged is not None:
            named = {case.name: case for case in cases}
            shots = [Shot.of(values) for of_round in merged for values in of_round]
            ledger.merge([(named[shot.case], shot) for shot in shots])
        shards.wait()  # until all is merged
        ledger.close()
    if merged is not None:
        _tell(args, wanted, cases, shots, out, ledger.found)
    return 0


def _measure(wanted: Suite, items: Sequence[tuple[int, Case]], ledger: Ledger, pictures: Path) -> list[list[Shot]]:
    """A round of shots for each item of this rank. What can be known to be wrong is told before the first of them."""
    missing = [case for repetition, case in items if _is_missing(ledger, case, repetition)]
    first = {case.group: case for case in reversed(missing)}  # of each group, one that is to be made
    for case in first.values():
        runs.check(case.command.with_options(steps=case.steps), case.settings)
    warm_ups = wanted.warm_up * sum(1 + len(case.settings) for case in first.values())
    with series.progress(warm_ups + sum(case.most_shots for _, case in items), show=shards.leads()) as bar:
        with TemporaryDirectory(dir=pictures, prefix=".warm-up-") as folder:
            warm = series.counted(series.maker(Path(folder)), bar)
            for case in [*first.values()] * wanted.warm_up:
                for setting in (OFF, *case.settings):
                    warm(case, setting, case.steps, 0)
        make = series.counted(ledger.keeping(series.maker(pictures)), bar)
        return [series.one_round(case, repetition, make) for repetition, case in items]


def _is_missing(ledger: Ledger, case: Case, repetition: int) -> bool:
    return any(ledger.find(case, setting, case.steps, repetition) is None for setting in (OFF, *case.settings))


def _tell(
    args: argparse.Namespace, wanted: Suite, cases: Sequence[Case], shots: Sequence[Shot], out: Path, found: int
) -> None:
    """Write and print everything."""
    pictures = out / "pictures"
    near = series.similarities(shots, cases, pictures)
    rows = results.rows(cases, shots, near, series.near_whole(shots, cases, pictures))
    table = {"suite": asdict(wanted), **results.as_table(cases, shots, near, rows)}
    files.write(out / "results.json", output.as_json(table))
    files.write(out / "results.csv", results.as_csv(rows))
    from mflux_teacache_plugin.measure import gallery  # matplotlib takes its time

    about = f"{wanted.source} Medians of {wanted.repetitions} repetitions, means over {len(cases)} pictures.".strip()
    gallery.write(wanted.title, about, cases, shots, near, rows, pictures, out)
    if args.format == "json":
        output.print_json(table)
    else:
        for group in dict.fromkeys(row.group for row in rows):
            print(f"\n{group}")
            output.print_table(
                results.HEAD, [line for row in rows if row.group == group for line in results.cells(row)]
            )
        print(*results.verdicts(rows), sep="\n")
    if found:
        print(f"{found} of {len(shots)} runs were there already; --fresh measures them again", file=sys.stderr)
    print(f"report: {out / 'report.html'}; figures: {out / 'results.json'}, {out / 'results.csv'}", file=sys.stderr)
