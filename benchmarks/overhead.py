"""What the plugin costs when it skips nothing, and what a skipped step costs, on the demo model.

Plain mflux and the plugin take turns in one process, compiled and eager; medians, and ratios of medians.

    python benchmarks/overhead.py --repetitions 9
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
from _demo import generate

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.demo_model import load, prompts
from mflux_teacache_plugin.measure import machine

NEVER, ALWAYS = 1e-9, 2.0


class StepTimes:
    """Seconds of each step: mflux evaluates a step after its callbacks, so a step ends where the next callback begins."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        mx.eval(latents)
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    model, prompt = load(), prompts("benchmark")[0]
    rows = []
    for mode, guidance in (("compiled", 1.0), ("compiled", 4.0), ("eager", 1.0), ("eager", 4.0)):
        (mx.enable_compile if mode == "compiled" else mx.disable_compile)()
        seconds: dict[str, list[float]] = {"plain": [], "never skipping": []}
        skipped: list[float] = []
        computed: list[float] = []
        for repetition in range(args.repetitions + 1):
            for name, times in seconds.items():
                with nullcontext() if name == "plain" else apply_teacache(model, threshold=NEVER):
                    loop = generate(model, prompt, args.steps, guidance)[1]
                if repetition:  # the first one compiles
                    times.append(loop)
            timer = StepTimes()
            model.callbacks.register(timer)
            with apply_teacache(model, threshold=ALWAYS, coefficients=[0, 0, 0, 0, 0.1]) as handle:
                generate(model, prompt, args.steps, guidance)
            model.callbacks.in_loop.remove(timer)
            if repetition:
                for decision, step in zip(handle.stats.last.decisions[1:], timer.seconds(), strict=True):
                    (skipped if decision.skipped else computed).append(step)
        plain, never = (statistics.median(times) for times in seconds.values())
        step = statistics.median(skipped) / statistics.median(computed)
        rows.append((mode, guidance, plain, never, never / plain, statistics.median(skipped) * 1000, step))
    mx.enable_compile()
    print(f"{machine.line()}; {args.steps} steps, {args.repetitions} repetitions, alternating")
    head = ("MODE", "GUIDANCE", "PLAIN s", "NEVER SKIPPING s", "RATIO", "SKIPPED STEP ms", "OF A COMPUTED ONE")
    print_table(head, rows)


if __name__ == "__main__":
    main()
