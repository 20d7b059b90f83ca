"""What `1.5x`, `2x` and `3x` give: steps computed and seconds of the loop against plain mflux, on the demo model.

Plain mflux and the speed-ups take turns in one process; medians, and ratios of medians.

    python benchmarks/speedups.py --repetitions 9
"""

import argparse
import statistics

from _demo import generate

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.demo_model import load, prompts
from mflux_teacache_plugin.measure import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--targets", nargs="+", default=["1.5x", "2x", "3x"])
    args = parser.parse_args()
    model, prompt = load(), prompts("benchmark")[0]
    rows = []
    for guidance in (1.0, 4.0):
        plain: list[float] = []
        loops: dict[str, list[float]] = {target: [] for target in args.targets}
        computed = {}
        for repetition in range(args.repetitions + 1):
            seconds = generate(model, prompt, args.steps, guidance)[1]
            plain += [seconds] if repetition else []  # the first one compiles
            for target, times in loops.items():
                with apply_teacache(model, target) as handle:
                    seconds = generate(model, prompt, args.steps, guidance)[1]
                times += [seconds] if repetition else []
                computed[target] = handle.stats.last.computed
        for target, times in loops.items():
            of_steps, of_seconds = args.steps / computed[target], statistics.median(plain) / statistics.median(times)
            rows.append((guidance, target, computed[target], of_steps, statistics.median(plain), of_seconds))
    print(f"{machine.line()}; {args.steps} steps, {args.repetitions} repetitions, alternating")
    print_table(("GUIDANCE", "TARGET", "COMPUTED", "STEPS / COMPUTED", "PLAIN s", "SPEED-UP OF THE LOOP"), rows)


if __name__ == "__main__":
    main()
