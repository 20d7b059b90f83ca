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
from mflux_teacache_plugin.measure import files, metrics, report, runs, series, shards, suite
from mflux_teacache_plugin.measure.ledger import Ledger
from mflux_teacache_plugin.measure.series import Case, Series
from mflux_teacache_plugin.measure.suite import Suite
from mflux_teacache_plugin.methods import OFF


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", type=Path, metavar="SUITE.toml", help="what to measure; benchmarks/suites has some")
    told = "where results go, and are found again; default: bench/ and its name"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=told)
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--fresh` and `--format`."""
    parser.add_argument("--fresh", action="store_true", help="make again what the folder holds already")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    metrics.require()
    return bench(args, suite.read(args.suite), args.out or Path("bench") / args.suite.stem)


def bench(args: argparse.Namespace, wanted: Suite, out: Path) -> int:
    """Measure a suite; of `args`, `fresh` and `format` count."""
    files.check_writable(out)
    ledger = Ledger(out, args.fresh)
    shards.wait()  # nobody begins before all are cleared
    cases = wanted.cases()

    def repeated(cases: Sequence[Case]) -> list[tuple[int, Case]]:
        return [(repetition, case) for repetition in range(wanted.repetitions) for case in cases]

    items = repeated(cases)
    _measure(wanted, repeated(shards.mine(cases)), ledger)  # a case is one rank's: only its first time leaves a picture
    found = ledger.found
    shards.gather_files(sorted(ledger.files), out)
    if not shards.leads():
        return 0
    shots = [shot for repetition, case in items for shot in series.one_round(case, repetition, ledger.make)]
    about = f"{wanted.source} Medians of {wanted.repetitions} repetitions, means over {len(cases)} pictures.".strip()
    facts = {"suite": asdict(wanted)}
    rows, table = report.conclude(wanted.title, about, facts, Series(cases, shots, ledger.pictures), out)
    output.print_findings(rows, table, args.format)
    if found:
        print(f"{found} of {len(shots)} runs were there already; --fresh measures them again", file=sys.stderr)
    print(f"report: {out / 'report.html'}; figures: {out / 'results.json'}", file=sys.stderr)
    return 0


def _measure(wanted: Suite, items: Sequence[tuple[int, Case]], ledger: Ledger) -> None:
    """A round of shots for each item of this rank. What can be known to be wrong is told before the first of them."""
    first: dict[str, Case] = {}  # of each group, one that is to be made
    for n, case in items:
        if not all(ledger.find(case, each, case.steps, n) for each in (OFF, *case.settings)):
            first.setdefault(case.group, case)
    for case in first.values():
        runs.check(case.command.with_options(steps=case.steps), case.settings)
    warm_ups = wanted.warm_up * sum(1 + len(case.settings) for case in first.values())
    with series.progress(warm_ups + sum(case.most_shots for _, case in items), show=shards.leads()) as counted:
        with TemporaryDirectory(dir=ledger.pictures, prefix=".warm-up-") as folder:
            warm = counted(series.maker(Path(folder)))
            for case in [*first.values()] * wanted.warm_up:
                for setting in (OFF, *case.settings):
                    warm(case, setting, case.steps, 0)
        for repetition, case in items:
            series.one_round(case, repetition, counted(ledger.make))
