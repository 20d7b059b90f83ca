"""Make pictures with the demo model through mflux's own command, three ways: plain, with TeaCache, and plain with as many
steps as TeaCache computed. Prints a table, and writes comparison.png and quality.png beside the pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mflux_teacache_plugin import demo_model
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import files, metrics, results, runs, series
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.measure.series import Case
from mflux_teacache_plugin.methods import AUTO

SIDE = 128  #: of the square pictures, in pixels; the model knows no other size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    parser.add_argument("--steps", type=int, default=50, help="default: 50")
    parser.add_argument("--guidance", type=float, default=4.0, help="default: 4")
    parser.add_argument(
        "--setting", type=runs.setting, default=AUTO, help="what --teacache takes; default: the coefficient file's own"
    )
    parser.add_argument("--seeds", type=int, default=1, help="pictures per prompt for the table; default: 1")
    parser.add_argument("--jobs", type=int, default=1, help="prompts at a time; seconds suffer; default: 1")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    metrics.require()
    prompts = demo_model.prompts("demo")
    if not prompts:
        raise SettingsError(
            "the demo model is not installed with the package", hint=f"set {demo_model.ENVIRONMENT} to a copy of it"
        )
    cases = [_case(args, p["prompt"], p["seed"] + extra) for extra in range(args.seeds) for p in prompts]
    with files.staged(args.out) as stage:
        with series.progress(sum(case.most_shots for case in cases)) as bar:
            make = series.counted(series.maker(stage), bar)
            with ThreadPoolExecutor(args.jobs) as pool:
                rounds = pool.map(lambda case: series.one_round(case, 0, make), cases)
                shots = [shot for made in rounds for shot in made]
        near = series.similarities(shots, cases, stage)
        rows = results.rows(cases, shots, near)
        _draw(cases, shots, near, len(prompts), stage)
    if args.format == "json":
        output.print_json(results.as_table(cases, shots, near, rows))
    else:
        output.print_table(results.HEAD, [line for row in rows for line in results.cells(row)])
    print(f"pictures: {args.out / 'comparison.png'}, {args.out / 'quality.png'}", file=sys.stderr)
    return 0


def _case(args: argparse.Namespace, prompt: str, seed: int) -> Case:
    options = ("--model", demo_model.NAME, "--width", str(SIDE), "--height", str(SIDE))
    command = Command("mflux-generate-flux2", options).with_options(guidance=args.guidance, prompt=prompt, seed=seed)
    group = f"{demo_model.NAME}, {args.steps} steps, guidance {args.guidance:g}"
    return Case(str(seed), group, prompt, seed, args.steps, (args.setting,), command)


def _draw(cases: Sequence[Case], shots: Sequence[series.Shot], near: dict, shown: int, folder: Path) -> None:
    """The first pictures as a grid, and how near all of them come."""
    from mflux_teacache_plugin.measure import gallery, plots  # matplotlib takes its time

    lines = [(label.partition("\n")[0], tiles) for label, tiles in gallery.lines(cases, shots, near, folder)]
    plots.grid(lines[:shown], folder / "comparison.png")
    labels = [f"{prompt}\n{tiles[1].computed:.4g} computed" for prompt, tiles in lines]
    ways = [(way, [tiles[place].psnr for _, tiles in lines]) for way, place in (("TeaCache", 1), ("plain", 2))]
    plots.nearness(labels, ways, folder / "quality.png")
