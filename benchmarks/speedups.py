"""What `1.5x`, `2x` and `3x` give: steps computed and seconds of the loop against plain mflux, on the demo model.

Plain mflux and the speed-ups take turns in one process; medians, and ratios of medians. In the first step mflux traces what it
compiles, which here takes as long as ten steps; so there is the speed-up of the steps after it, too.

    python benchmarks/speedups.py --repetitions 9
"""

import argparse
import statistics
import time
from typing import Any

from _demo import generate
from mflux_demo_model import load, prompts

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.measure import machine


class Clock:
    """A callback of mflux's: when each step of the last loop was over."""

    def call_before_loop(self, **_: Any) -> None:
        self.ends: list[float] = []

    def call_in_loop(self, **_: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--targets", nargs="+", default=["1.5x", "2x", "3x"])
    args = parser.parse_args()
    model, prompt, clock = load(), prompts("benchmark")[0], Clock()
    model.callbacks.register(clock)

    def seconds(guidance: float) -> tuple[float, float]:
        """Of the loop, and of what comes after its first step."""
        loop = generate(model, prompt, args.steps, guidance)[1]
        return loop, clock.ends[-1] - clock.ends[0]

    rows = []
    for guidance in (1.0, 4.0):
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ("plain", *args.targets)}
        computed = {}
        for _ in range(args.repetitions + 1):
            measured["plain"].append(seconds(guidance))
            for target in args.targets:
                with apply_teacache(model, target) as handle:
                    measured[target].append(seconds(guidance))
                computed[target] = handle.stats.last.computed
        # the first repetition compiles
        medians = {
            name: [statistics.median(all_) for all_ in zip(*of[1:], strict=True)] for name, of in measured.items()
        }
        for target in args.targets:
            loop, later = (plain / cached for plain, cached in zip(medians["plain"], medians[target], strict=True))
            rows.append(
                (guidance, target, computed[target], args.steps / computed[target], medians["plain"][0], loop, later)
            )
    print(f"{machine.line()}; {args.steps} steps, {args.repetitions} repetitions, alternating")
    print_table(
        ("GUIDANCE", "TARGET", "COMPUTED", "STEPS / COMPUTED", "PLAIN s", "SPEED-UP OF THE LOOP", "AFTER STEP 1"), rows
    )


if __name__ == "__main__":
    main()
