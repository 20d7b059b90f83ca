"""Measure a model's own numbers on this machine: run plain generations of an mflux command, fit, try settings on prompts that
were held out, and write a coefficient file with a report. The same command again goes on where it was interrupted.
"""

import argparse
import dataclasses
from argparse import ArgumentTypeError
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import choose, demo_model
from mflux_teacache_plugin.calibration import sweep
from mflux_teacache_plugin.calibration.job import Calibration, Outcome, Plan
from mflux_teacache_plugin.cli import fit, output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import metrics

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
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line; default: ten of its own")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="generations of each prompt; default: 1")
    parser.add_argument(
        "--held-out", type=int, metavar="N", help="prompts to try settings on, the last ones; default: 3 of 10; 0: none"
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        metavar="VALUE",
        help="what to try, as --teacache takes it; default: what suits the fit",
    )
    parser.add_argument(
        "--target-ssim",
        type=_share,
        default=0.97,
        metavar="X",
        help="what a recommended setting must reach; default: 0.97",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for the coefficient file; default: your own files'"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="for traces, pictures and report; default: calibration-<id> here"
    )
    parser.add_argument(
        "--id", help="the variant's id; default: the one that serves the model, or one made of its name"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing coefficient file")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    metrics.require()
    prompts = read_prompts(args.prompts)
    if args.prompts is None and demo_model.NAME in words:  # it knows nothing of general prompts
        prompts = tuple(each["prompt"] for each in demo_model.prompts("calibration")) or prompts
    held_out = max(1, round(len(prompts) * HELD_OUT / 10)) if args.held_out is None else args.held_out
    if not 0 <= held_out <= len(prompts) - 2:
        raise SettingsError(
            f"{len(prompts)} prompts, {held_out} of them held out, leave too few for a fit",
            hint="two must remain; give more prompts, or --held-out 0",
        )
    for setting in args.settings or ():
        check_setting(setting)
    plan = Plan(
        command=tuple(words),
        prompts=prompts[: len(prompts) - held_out],
        held_out=prompts[len(prompts) - held_out :],
        seeds=args.seeds,
        settings=None if args.settings is None else tuple(dict.fromkeys(args.settings)),
        target=args.target_ssim,
        id=args.id,
        output=args.output,
        folder=args.folder,
        force=args.force,
    )
    outcome = Calibration(plan, choose.catalog()).run()
    if outcome is not None:
        _print(outcome, args.format)
    return 0


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts of a file, one a line, without empty lines and those that begin with #; None for the built-in ones.

    Raises:
        SettingsError: the file cannot be read, or holds fewer than two prompts.
    """
    try:
        text = (resources("mflux_teacache_plugin.calibration") / "prompts.txt" if path is None else path).read_text(
            "utf-8"
        )
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"{path} cannot be read", cause=cause, hint="name a text file, one prompt a line"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"'{text}' is not above 0 and at most 1; try 0.97")
    return value


def _print(outcome: Outcome, format: str) -> None:
    choice = outcome.choice
    if format == "json":
        found: dict[str, Any] = fit.as_dict(outcome.result, outcome.coefficients.parent, True)
        found["tried"] = [dataclasses.asdict(summary) for summary in outcome.summaries]
        found["recommended_because"] = None if choice is None else choice.why
        output.print_json({**found, "report": str(outcome.report), "traces": str(outcome.folder / "traces")})
        return
    fit.print_errors([outcome.result])
    if outcome.summaries:
        print()
        print_tried(outcome.summaries)
    if choice is not None:
        print(f"\n{choice.why}")
    print(f"\nwrote {outcome.coefficients}\nreport: {outcome.report}")


def print_tried(summaries: list[sweep.Summary]) -> None:
    """A row per setting, beside plain mflux with as many steps."""
    head = ("SETTING", "COMPUTED", "SSIM", "WORST", "PSNR dB", "WORST", "PLAIN: SSIM", "WORST", "PSNR dB", "WORST")
    own, plain = (
        ("ssim", "ssim_worst", "psnr", "psnr_worst"),
        ("fewer_ssim", "fewer_ssim_worst", "fewer_psnr", "fewer_psnr_worst"),
    )
    rows = [[getattr(summary, name) for name in ("setting", "computed", *own, *plain)] for summary in summaries]
    output.print_table(head, rows)
