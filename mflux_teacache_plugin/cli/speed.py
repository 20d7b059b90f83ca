"""What a cache costs and saves at a model's real size, on this machine: mflux's own pipeline and loop with random weights.
Nothing is downloaded or written, and no picture is made: it would mean nothing, and nor does how often a threshold skips here.
What a speed-up such as 2x gives, and what a method costs that skips nothing, does not depend on the weights.
"""

import argparse
import time
from collections import Counter
from contextlib import nullcontext

from tqdm import tqdm

from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.demo_model import float32
from mflux_teacache_plugin.measure import machine, real_size, runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=real_size.MODELS, metavar="MODEL", help=", ".join(real_size.MODELS))
    parser.add_argument(
        "settings", nargs="*", type=runs.setting, metavar="SETTING", help="as --teacache takes it; default: 2x"
    )
    parser.add_argument("-q", "--quantize", type=int, choices=(3, 4, 5, 6, 8), help="as mflux does it")
    parser.add_argument("--size", type=_size, default=(1024, 1024), metavar="WxH", help="default: 1024x1024")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--guidance", type=float, default=4.0, help="default: 4; 1 for none")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds of all settings in turn; default: 3")
    parser.add_argument("--layers", type=_whole, default=(), metavar="N[,N]", help="blocks that are left of each list")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="of the prompt; default: as many as mflux pads it to, or 64"
    )
    parser.add_argument("--float32", action="store_true", help="in place of mflux's bfloat16; faster on a CPU")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="count this process's own, on a CPU that others use too"
    )
    output.add_format(parser)


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def _size(text: str) -> tuple[int, int]:
    width, height = (int(each) for each in text.lower().split("x"))
    return width, height


def run(args: argparse.Namespace) -> int:
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    settings = tuple(dict.fromkeys(args.settings)) or ("2x",)
    plan = real_size.Plan(args.size, args.steps, args.guidance, settings, args.repetitions, clock)
    with float32() if args.float32 else nullcontext():
        subject = real_size.build(args.model, args.quantize, args.layers, args.tokens)
        wanted = real_size.candidates(subject, plan)
        real_size.require_memory(subject, plan)
        with tqdm(total=len(wanted) * (1 + args.repetitions), unit="loop") as bar:
            rows = real_size.measure(subject, plan, wanted, bar.update)
    weights = sum(array.nbytes for array in subject.weights)
    bits = f"{args.quantize} bits" if args.quantize else "float32" if args.float32 else "bfloat16"
    left = "".join(f", {count} {name}" for name, count in subject.blocks.items())
    what = f"{args.model}, {bits}{left}"
    how = f"{plan.size[0]}x{plan.size[1]}, {plan.steps} steps, guidance {plan.guidance:g}"
    facts = {"machine": machine.describe(), "model": what, "weights_bytes": weights, "run": how, "rows": rows}
    plain = rows[0]
    cells = [f"{row['setting']} {row['speedup']:.2f}×" for row in rows if row["setting"] in settings]
    memory = f"{plain['peak_bytes'] / 1e9:.1f} GB"
    row = (machine.line(), memory, facts["machine"]["mflux"], what, how, f"{plain['seconds']:.1f} s", ", ".join(cells))
    facts["markdown"] = f"| {' | '.join(row)} |"
    if args.format == "json":
        output.print_json(facts)
        return 0
    print(
        f"{machine.line()}\n{what}: {weights / 1e9:.2f} GB, {memory} at most; {how}, {plan.repetitions} rounds in turn"
    )
    print("The weights are random: no picture is made, and how many steps a threshold skips means nothing.\n")
    head = (
        "SETTING",
        "LOOP s",
        "OF PLAIN",
        "COMPUTED",
        "SPEED-UP",
        "OF STEPS/COMPUTED",
        "SKIPPED STEP",
        "KEEPS MB",
        "ARRAYS",
    )
    lines = []
    for row in rows:
        kept = ", ".join(f"{count} {array}" for array, count in Counter(row["kept"]).items())
        shares = [None if row[key] is None else f"{row[key]:.1%}" for key in ("share", "skipped_step")]
        figures = (row["seconds"], f"{row['of_plain']:.3f}", row["computed"], f"{row['speedup']:.2f}×", *shares)
        lines.append((row["setting"], *figures, row["kept_bytes"] / 1e6, kept))
    output.print_table(head, lines)
    missed = [f"missed: {row['setting']}, {goal}" for row in rows for goal in row["missed"]]
    print("", *missed, "for docs/speeds.md:", facts["markdown"], sep="\n")
    return 0
