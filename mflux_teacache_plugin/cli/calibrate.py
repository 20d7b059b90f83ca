"""Measure a model's own numbers on this machine: run plain generations of an mflux command, fit, try settings on prompts that
were held out, and write a coefficient file with a report. The same command again goes on where it was interrupted.
"""

import argparse
import dataclasses
from argparse import ArgumentTypeError
from collections.abc import Callable
from importlib.resources import files as resources
from pathlib import Path

from mflux_teacache_plugin import choose, demo_model
from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, PUBLISHED
from mflux_teacache_plugin.calibration.stages import Calibration, Outcome, Plan
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import metrics, results
from mflux_teacache_plugin.measure.runs import Command

#: Prompts on which settings are tried, out of ten; at least one.
HELD_OUT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache calibrate [options] -- COMMAND ..."
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="an image command of mflux with its options, such as `mflux-generate --model dev --steps 25 -q 8`; its prompt, "
        "seed and output are replaced",
    )
    add = parser.add_argument
    add("--prompts", type=Path, metavar="FILE", help="one prompt a line; default: ten of its own")
    add("--seeds", type=_number(int, 100), default=1, metavar="N", help="generations of each prompt; default: 1")
    told = "prompts to try settings on, the last ones; default: 3 of 10; 0: none"
    add("--held-out", type=int, metavar="N", help=told)
    told = "what to try, as --teacache takes it; default: what suits the fit"
    add("--settings", nargs="+", metavar="VALUE", help=told)
    told = "what a recommended setting must reach; default: 0.97"
    add("--target-ssim", type=_number(float, 1), default=0.97, metavar="X", help=told)
    add("--output", type=Path, metavar="FOLDER", help="for the coefficient file; default: your own files'")
    told = "for traces, pictures and report; default: calibration-<id> here"
    add("--folder", type=Path, metavar="FOLDER", help=told)
    add("--id", help="the variant's id; default: the one that serves the model, or one made of its name")
    add("--force", action="store_true", help="overwrite an existing coefficient file")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    command = Command.of(args.command)
    metrics.require()
    prompts = read_prompts(args.prompts)
    if args.prompts is None and demo_model.NAME in command.options:  # it knows nothing of general prompts
        prompts = tuple(each["prompt"] for each in demo_model.prompts("calibration")) or prompts
    held_out = max(1, round(len(prompts) * HELD_OUT / 10)) if args.held_out is None else args.held_out
    if not 0 <= held_out <= len(prompts) - 2:
        raise SettingsError(
            f"{len(prompts)} prompts, {held_out} of them held out, leave too few for a fit",
            hint="two must remain; give more prompts, or --held-out 0",
        )
    for setting in args.settings or ():
        check_setting(setting)
    catalog = choose.catalog()
    plan = Plan(
        command=command,
        prompts=prompts[: len(prompts) - held_out],
        held_out=prompts[len(prompts) - held_out :],
        seeds=args.seeds,
        settings=tuple(dict.fromkeys(args.settings or ())),
        target=args.target_ssim,
        id=args.id,
        output=args.output or catalog.user_folder,
        folder=args.folder,
        force=args.force,
    )
    outcome = Calibration(plan, catalog).run()
    if outcome is not None:
        _print(outcome, args.format)
    return 0


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts of a file, one a line, without empty lines and those that begin with #; None for the built-in ones.

    Raises:
        SettingsError: the file cannot be read, or holds fewer than two prompts.
    """
    file = resources("mflux_teacache_plugin.calibration") / "prompts.txt" if path is None else path
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        hint = "name a text file, one prompt a line"
        raise SettingsError(f"{path} cannot be read", cause=cause, hint=hint) from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if len(prompts) < 2:
        told = "no prompt" if not prompts else "one prompt"
        raise SettingsError(f"{path} holds {told}", hint="write two or more, one a line; ten make a good set")
    return prompts


def check_setting(setting: str) -> None:
    """Raise SettingsError for what `--teacache` would not take."""
    try:
        if isinstance(choose.parse(setting), str):
            raise ArgumentTypeError(f"'{setting}' is no setting to try")
    except ArgumentTypeError as error:
        raise SettingsError(f"--settings: {error}", hint="try 0.2 1.5x 2x") from None


def _number(kind: type[int] | type[float], most: float) -> Callable[[str], float]:
    """What makes a number above 0 and at most `most` of an option's text."""
    what = "a whole number" if kind is int else "a number"

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value <= most:
            raise ArgumentTypeError(f"'{text}' is not {what} above 0 and at most {most:g}")
        return value

    return number


def _print(outcome: Outcome, format: str) -> None:
    analysis, choice, report = outcome.analysis, outcome.choice, outcome.folder / "report.html"
    if format == "json":
        output.print_json(
            {
                "file": str(outcome.coefficients),
                "prompts": analysis.prompts,
                "steps": analysis.pairs,
                "best": analysis.best,
                "scores": {name: dataclasses.asdict(score) for name, score in analysis.scores.items()},
                **dataclasses.asdict(outcome.variant),
                "tried": [results.flat(row) for row in outcome.rows if row.quality is not None],
                "recommended_because": None if choice is None else choice.why,
                "report": str(report),
                "traces": str(outcome.folder / "traces"),
            }
        )
        return
    ways = (PUBLISHED, OWN, PROFILE)
    scores = [analysis.scores.get(way) for way in ways]
    cells = [None if score is None else f"{score.r2:.3f} ({score.rmse:.3f})" for score in scores]
    line = (outcome.variant.id, analysis.prompts, analysis.pairs, *cells, analysis.best)
    output.print_table(("VARIANT", "PROMPTS", "STEPS", *(way.upper() for way in ways), "BEST"), [line])
    if choice is not None:
        print()
        output.print_table(results.HEAD, [line for row in outcome.rows for line in results.cells(row)])
        print(f"\n{choice.why}")
    print(f"\nwrote {outcome.coefficients}\nreport: {report}")
