"""What a cache costs and saves at a model's real size, on this machine: mflux's own pipeline and loop with random weights.
Nothing is downloaded or written, and no picture is made: it would mean nothing, and nor does how often a threshold skips here.
What a speed-up such as 2x gives, and what a method costs that skips nothing, does not depend on the weights.
"""

import argparse
import re
import time
from contextlib import nullcontext

from tqdm import tqdm

from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.demo_model import float32
from mflux_teacache_plugin.measure import machine, real_size, runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", choices=real_size.MODELS, metavar="MODEL", help=", ".join(real_size.MODELS))
    add("settings", nargs="*", type=runs.setting, metavar="SETTING", help="what --teacache takes; default: 2x")
    add("-q", "--quantize", type=int, choices=(3, 4, 5, 6, 8), help="to so many bits, as mflux does it")
    add("--size", type=pair, default=(1024, 1024), metavar="WxH", help="default: 1024x1024")
    add("--steps", type=number, default=20, help="default: 20")
    add("--guidance", type=float, default=4.0, help="default: 4; 1 for none")
    add("--repetitions", type=number, default=3, help="rounds, in which all take turns; default: 3")
    add("--layers", type=numbers, default=(), metavar="N[,N]", help="leave so many blocks of each list; default: all")
    add("--tokens", type=number, metavar="N", help="of the prompt; default: as many as mflux pads it to, or 64")
    add("--float32", action="store_true", help="in place of mflux's bfloat16; faster on a CPU")
    add("--cpu-seconds", action="store_true", help="count this process's own, on a CPU that others use too")
    output.add_format(parser)


def numbers(text: str) -> tuple[int, ...]:
    """`256x256`, or `1,2`: whole numbers from 1 on. ValueError for anything else."""
    found = tuple(int(each) for each in re.split("[x,]", text))
    if min(found) < 1:
        raise ValueError(text)
    return found


def pair(text: str) -> tuple[int, ...]:
    width, height = numbers(text)
    return width, height


def number(text: str) -> int:
    (found,) = numbers(text)
    return found


def run(args: argparse.Namespace) -> int:
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    settings = tuple(dict.fromkeys(args.settings)) or ("2x",)
    width, height = args.size
    options = {"width": width, "height": height, "num_inference_steps": args.steps, "guidance": args.guidance}
    with float32() if args.float32 else nullcontext():
        subject = real_size.build(args.model, args.quantize, args.layers, args.tokens)
        wanted = real_size.candidates(subject.model, settings, args.steps)
        real_size.require_memory(subject, width * height)
        with tqdm(total=len(wanted) * (1 + args.repetitions), unit="loop") as bar:
            rows = real_size.measure(subject, wanted, args.repetitions, clock, bar.update, **options)
    bits = f"{args.quantize} bits" if args.quantize else "float32" if args.float32 else "bfloat16"
    model = ", ".join((args.model, bits, *(f"{left} {name}" for name, left in subject.blocks.items())))
    how = f"{width}x{height}, {args.steps} steps, guidance {args.guidance:g}"
    gigabytes, plain = f"{rows[0]['peak_gb']:.1f} GB", f"{rows[0]['seconds']:.1f} s"
    gains = ", ".join(f"{row['setting']} {row['speedup']:.2f}×" for row in rows if row["setting"] in settings)
    facts = machine.describe()
    line = (machine.line(), gigabytes, facts["mflux"], model, how, plain, gains)
    markdown = f"| {' | '.join(line)} |"
    if args.format == "json":
        output.print_json({"machine": facts, "model": model, "run": how, "rows": rows, "markdown": markdown})
        return 0
    print(f"{machine.line()}\n{model}: at most {gigabytes} in use; {how}, {args.repetitions} rounds in turn")
    print("The weights are random: no picture is made, and how often a threshold skips means nothing.\n")
    output.print_table([key.upper() for key in rows[0]], [list(row.values()) for row in rows])
    print(f"\nfor docs/speeds.md:\n{markdown}")
    return 0
