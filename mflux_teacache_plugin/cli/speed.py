"""Measure what settings cost and save on a built-in model of mflux at its real size: its pipeline with random weights, so that
nothing is downloaded. There is no picture: none would mean anything, nor does it mean anything how often a threshold skips.
"""

import argparse
import contextlib
import os
from argparse import ArgumentTypeError

from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.demo_model import float32
from mflux_teacache_plugin.measure import machine, real_size, runs
from mflux_teacache_plugin.measure.suite import BITS
from mflux_teacache_plugin.settings import ENVIRONMENT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", choices=real_size.MODELS, metavar="MODEL", help=", ".join(real_size.MODELS))
    add("settings", nargs="*", type=runs.setting, metavar="SETTING", help="what --teacache takes; default: 2x")
    add("-q", "--quantize", type=int, choices=BITS, help="to so many bits, as mflux does it")
    add("--size", type=size, default=(1024, 1024), metavar="WxH", help="default: 1024x1024")
    add("--steps", type=whole, default=20, metavar="N", help="default: 20")
    add("--guidance", type=float, default=4.0, help="default: 4; 1 for none")
    add("--rounds", type=whole, default=3, metavar="N", help="in each of which all take turns; default: 3")
    add("--layers", type=layers, default=(), metavar="N[,N]", help="leave so many blocks of each list; default: all")
    add("--tokens", type=whole, metavar="N", help="of the prompt; default: as many as mflux pads it to, or 64")
    add("--float32", action="store_true", help="in place of mflux's bfloat16; faster on a CPU")
    output.add_format(parser)


def whole(text: str) -> int:
    """A whole number from 1 on. ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """`1024x768`: width and height in pixels."""
    width, height = map(whole, text.split("x"))
    return width, height


def layers(text: str) -> tuple[int, ...]:
    """`2`, or `1,2`: one number for each list of blocks, or one for all."""
    return tuple(map(whole, text.split(",")))


def run(args: argparse.Namespace) -> int:
    os.environ.pop(ENVIRONMENT, None)  # plain is plain, whatever it asks for
    settings = tuple(dict.fromkeys(args.settings)) or ("2x",)
    width, height = args.size
    with float32() if args.float32 else contextlib.nullcontext():
        model, blocks = real_size.build(args.model, args.quantize, args.layers, args.tokens)
        wanted = real_size.candidates(model, settings, args.steps)
        real_size.require_memory(model, width * height)
        options = {"width": width, "height": height, "guidance": args.guidance}
        rows = real_size.measure(model, wanted, args.rounds, args.steps, **options)
    bits = f"{args.quantize} bits" if args.quantize else "float32" if args.float32 else "bfloat16"
    what = ", ".join((args.model, bits, *(f"{left} {name}" for name, left in blocks.items())))
    how = f"{width}x{height}, {args.steps} steps, guidance {args.guidance:g}"
    gigabytes, plain = f"{rows[0]['peak_gb']:.1f} GB", f"{rows[0]['seconds']:.1f} s"
    gains = ", ".join(f"{row['setting']} {row['speedup']:.2f}×" for row in rows if row["setting"] in settings)
    facts = machine.describe()
    line = (machine.line(), gigabytes, facts["mflux"], what, how, plain, gains)
    markdown = f"| {' | '.join(line)} |"
    if args.format == "json":
        output.print_json({"machine": facts, "model": what, "run": how, "rows": rows, "markdown": markdown})
        return 0
    print(f"{machine.line()}\n{what}: at most {gigabytes} in use; {how}, {args.rounds} rounds in turn")
    print("The weights are random: no picture is made, and how often a threshold skips means nothing.\n")
    output.print_table([key.upper() for key in rows[0]], [list(row.values()) for row in rows])
    print(f"\nfor docs/speeds.md:\n{markdown}")
    return 0
