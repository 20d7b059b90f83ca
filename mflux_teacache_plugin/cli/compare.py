"""Make one picture with each of several settings, each in a fresh process, and show how near they come to plain mflux,
beside plain mflux with as many steps as were computed. Writes pictures, comparison.png, report.html and results.json.
"""

import argparse
import json
import sys
from pathlib import Path

from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import files, metrics, report, runs, series, shards
from mflux_teacache_plugin.measure.series import Case, Series
from mflux_teacache_plugin.methods import OFF

#: The seed where the command gives none: mflux's own would be another one in each process.
SEED = 42

_SEEDED = ("--seed", "-C", "--config-from-conf", "--config-from-metadata")  # options that give one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache compare --settings SETTING ... [--out FOLDER] [--format {text,json}] -- COMMAND ..."
    told = "what --teacache takes, such as: 0.1 0.2 2x dualcache:aggressive; plain mflux is made in any case"
    parser.add_argument("--settings", nargs="+", type=runs.setting, required=True, metavar="SETTING", help=told)
    parser.add_argument("--out", type=Path, default=Path("comparison"), metavar="FOLDER", help="default: comparison")
    output.add_format(parser)
    told = "an image command of mflux with its options, such as `-- mflux-generate --model dev --prompt ...`"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=told)


def run(args: argparse.Namespace) -> int:
    if not shards.leads():
        return 0  # one picture is not shared out
    metrics.require()
    command = runs.Command.of(args.command)
    settings = tuple(setting for setting in dict.fromkeys(args.settings) if setting != OFF)
    if not settings:
        raise SettingsError("plain mflux has nothing to be compared with", hint="add a setting, such as 2x")
    former = _pictures(args.out)
    with files.staged(args.out) as stage:  # an unwritable folder is told before the first run
        case = one_picture(command, settings, SEED)
        with series.progress(case.most_shots) as counted:
            shots = series.one_round(case, 0, counted(series.maker(stage)))
        about, facts = f"One picture of {command.name}, seed {case.seed}.", {"command": str(command)}
        rows, table = report.conclude(case.prompt, about, facts, Series([case], shots, stage), stage)
    for name in former - _pictures(args.out):  # of settings or a seed that are not in this report
        (args.out / name).unlink(missing_ok=True)
    output.print_findings(rows, table, args.format)
    print(f"report: {args.out / 'report.html'}; pictures: {args.out / 'comparison.png'}", file=sys.stderr)
    return 0


def _pictures(folder: Path) -> set[str]:
    """The pictures that a comparison in this folder has made, as its results say; none where that cannot be read."""
    try:
        made = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]
        return {Path(run["file"]).name for run in made}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def one_picture(command: runs.Command, settings: tuple[str, ...], seed: int) -> Case:
    """What the command is about to make, with its own seed or this one. Whatever is wrong with it is told here, before the
    first picture.
    """
    facts = runs.check(command, settings)
    seeds: list[int] = facts["seed"] if any(word.split("=")[0] in _SEEDED for word in command.options) else [seed]
    if len(seeds) > 1:
        raise SettingsError("the command has several seeds", hint="give one --seed; `mflux-teacache bench` takes many")
    if not 0 <= seeds[0] < 2**64:
        raise SettingsError(f"--seed {seeds[0]} is none that MLX takes", hint="give a whole number from 0 on")
    prompt, file = facts["prompt"], facts["prompt_file"]
    if not prompt and file:  # mflux reads it when the model is loaded; some commands need no prompt
        prompt = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    group, command = runs.described(facts), command.with_options(seed=seeds[0])
    return Case(str(seeds[0]), group, prompt or "no prompt", seeds[0], facts["steps"], settings, command)
