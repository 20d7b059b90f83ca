"""Measure a model's own numbers on this machine: run plain generations of an mflux command, fit, try settings on prompts that
were held out, and write a coefficient file with a report. The same command again goes on where it was interrupted.
"""

import argparse
import dataclasses
from argparse import ArgumentTypeError
from functools import partial
from importlib.resources import files as resources
from pathlib import Path

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.calibration.stages import Calibration
from mflux_teacache_plugin.checks import Problems, identifier
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import metrics, results
from mflux_teacache_plugin.measure.runs import Command
from mflux_teacache_plugin.methods.method import to_float, whole

#: Prompts on which settings are tried, out of ten; at least one.
HELD_OUT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache calibrate [options] -- COMMAND ..."
    add = parser.add_argument
    told = "an image command of mflux, such as `mflux-generate --model dev -q 8`; prompt, seed and output are replaced"
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=told)
    add("--prompts", type=Path, metavar="FILE", help="one prompt a line; default: ten of its own")
    told = "prompts to try settings on, the last ones; default: 3 of 10; 0: none"
    add("--held-out", type=partial(whole, "--held-out", least=0), metavar="N", help=told)
    told = "methods to try, such as 0.2 or 2x; default: thresholds and schedules that suit what is recorded"
    add("--settings", nargs="+", type=setting, metavar="VALUE", default=(), help=told)
    told = "guidance scales to make pictures at, each with schedules of its own; default: the command's own"
    add("--guidances", nargs="+", type=positive, metavar="G", default=(), help=told)
    told = "that the pictures may take, about; more time tries more schedules; default: 60"
    add("--minutes", type=positive, metavar="M", default=60.0, help=told)
    where, told = parser.add_mutually_exclusive_group(), "for the coefficient file; default: the one of your own files"
    where.add_argument("--output", type=Path, metavar="FOLDER", help=told)
    told = "write the coefficient file into the model's folder, so that it goes with the model"
    where.add_argument("--into-model", action="store_true", help=told)
    told = "for traces, pictures and report; default: calibration-<id> here"
    add("--folder", type=Path, metavar="FOLDER", help=told)
    add(
        "--id",
        type=variant_id,
        help="the variant's id; default: the one that serves the model, or one made of its name",
    )
    add("--force", action="store_true", help="overwrite an existing coefficient file")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    command = Command.of(args.command)
    metrics.require()
    prompts = read_prompts(args.prompts)
    held_out = max(1, round(len(prompts) * HELD_OUT / 10)) if args.held_out is None else args.held_out
    fitted = len(prompts) - held_out
    if not 2 <= fitted <= len(prompts):
        hint = "two must remain; give more prompts, or --held-out 0"
        raise SettingsError(f"{len(prompts)} prompts, {held_out} of them held out, leave too few for a fit", hint=hint)
    calibration = Calibration(
        command=command,
        prompts=prompts[:fitted],
        held_out=prompts[fitted:],
        settings=tuple(dict.fromkeys(args.settings)),
        guidances=tuple(dict.fromkeys(args.guidances)),
        minutes=args.minutes,
        id=args.id,
        output=None if args.into_model else args.output or choose.catalog().user_folder,
        folder=args.folder,
        force=args.force,
    )
    calibration.run()
    if calibration.variant is not None:
        _print(calibration, args.format)
    return 0


def positive(text: str) -> float:
    """A finite number above 0. ArgumentTypeError for any other text."""
    value = to_float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def setting(text: str) -> str:
    """What `--teacache` takes, as a method writes itself. ArgumentTypeError for what it does not take, and what names no method."""
    if isinstance(found := choose.parse(text), str):
        raise ArgumentTypeError(f"'{text}' is no setting to try; 0.2, 1.5x and 2x are")
    return str(found)


def variant_id(text: str) -> str:
    """ArgumentTypeError, with the fix, for what is no id."""
    problems = Problems()
    if identifier(problems, "id", text) is None:
        raise ArgumentTypeError(problems[0])
    return text


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts of a file, one a line, without empty lines and those that begin with #; None for the built-in ones.
    SettingsError if it cannot be read or holds fewer than two.
    """
    file = resources("mflux_teacache_plugin.calibration") / "prompts.txt" if path is None else path
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        cause, hint = getattr(error, "strerror", None) or str(error), "name a text file, one prompt a line"
        raise SettingsError(f"{path} cannot be read", cause=cause, hint=hint) from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if len(prompts) < 2:
        told = "one prompt" if prompts else "no prompt"
        raise SettingsError(f"{path} holds {told}", hint="write two or more, one a line; ten make a good set")
    return prompts


def _print(found: Calibration, format: str) -> None:
    variant, report = found.variant, found.place / "report.html"
    assert variant is not None
    if format == "json":
        facts = {"file": found.file, **dataclasses.asdict(variant), "report": report, "traces": found.place / "traces"}
        tried = [results.flat(row) for row in found.rows if row.quality is not None]
        because = " ".join(map(results.verdict, results.by_group(found.judged).values())) or None
        output.print_json({**facts, "tried": tried, "recommended_because": because})
        return
    if found.rows:
        most = max(row.pictures for row in found.rows)
        shown = [row for row in found.rows if row.pictures == most]
        output.print_groups(shown)
    print(f"\n{variant.provenance.notes}\n\nwrote {found.file}\nreport: {report}")
