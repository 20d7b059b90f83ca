"""Bench the demo model: its pictures plain, with TeaCache, and plain in as many steps as TeaCache computed."""

import argparse
from pathlib import Path

from mflux_teacache_plugin import demo_model
from mflux_teacache_plugin.cli import bench
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import metrics, runs
from mflux_teacache_plugin.measure.suite import Recipe, Suite
from mflux_teacache_plugin.methods import AUTO

SIDE = 128  #: of the square pictures, in pixels; the model knows no other size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, told = parser.add_argument, "what --teacache takes; default: the coefficient file's own"
    add("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    add("--steps", type=int, default=50, help="default: 50")
    add("--guidance", type=float, default=4.0, help="default: 4")
    add("--setting", type=runs.setting, default=AUTO, help=told)
    bench.add_common(parser)


def run(args: argparse.Namespace) -> int:
    metrics.require()
    prompts = demo_model.prompts("demo")
    if not prompts:
        hint = f"set {demo_model.ENVIRONMENT} to a copy of it"
        raise SettingsError("the demo model is not installed with the package", hint=hint)
    command = runs.Command("mflux-generate-flux2")
    recipe = Recipe(command, (demo_model.NAME,), (args.steps,), (args.guidance,), size=(SIDE, SIDE))
    texts, seeds = (tuple(each[key] for each in prompts) for key in ("prompt", "seed"))
    wanted = Suite("The demo model", texts, seeds, (args.setting,), (recipe,), "", True, repetitions=1, warm_up=0)
    return bench.bench(args, wanted, args.out)
