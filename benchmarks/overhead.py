"""What each method costs when it skips nothing, and what a skipped step costs, on the demo model.

Plain mflux and the methods take turns in one process, compiled and eager; medians, and ratios of medians.

    python benchmarks/overhead.py --repetitions 9
"""

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
from _demo import generate
from mflux_demo_model import load, prompts

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.caching.gate import Facts
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import machine
from mflux_teacache_plugin.methods.method import Method
from mflux_teacache_plugin.methods.speedup import Speedup


class Everywhere(Speedup):
    """A schedule of all steps."""

    def schedule(self, variant: Any, facts: Facts) -> tuple[int, ...]:
        return tuple(range(facts.steps))


#: What skips nothing, and what skips as often as it may.
METHODS: dict[str, tuple[Method | str, str]] = {
    "TeaCache": ("1e-9", "2"),
    "SeaCache": ("seacache:1e-9", "seacache:2"),
    "schedule": (Everywhere(1.5), "4x"),
    "EasyCache": ("easycache:1e-9", "easycache:2,ret_steps=2"),
    "MagCache": ("magcache:0.06,retention=1", "magcache:2,K=99,retention=0"),
    "DualCache": ("dualcache:F=1,B=0,rdt=1e-9", "dualcache:F=1,B=0,rdt=0.99,warmup=1"),
}
PLAIN = "plain"


class StepTimes:
    """Seconds of each step: mflux evaluates a step after its callbacks, so a step ends where the next callback begins."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        mx.eval(latents)
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def possible(model: Any) -> dict[str, tuple[Method | str, str]]:
    """The methods that the model's variant has numbers for."""
    found = dict(METHODS)
    for name, (never, _) in METHODS.items():
        try:
            apply_teacache(model, never).restore()
        except SettingsError as error:
            print(f"{name} is left out: {error.error}")
            del found[name]
    return found


def applied(model: Any, method: Method | str | None) -> AbstractContextManager[Any]:
    return nullcontext() if method is None else apply_teacache(model, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    model, prompt = load(), prompts("benchmark")[0]
    rows, methods = [], possible(model)
    for mode, guidance in (("compiled", 1.0), ("compiled", 4.0), ("eager", 1.0), ("eager", 4.0)):
        (mx.enable_compile if mode == "compiled" else mx.disable_compile)()
        loops: dict[str, list[float]] = {name: [] for name in (PLAIN, *methods)}
        skipped: dict[str, list[float]] = {name: [] for name in methods}
        for repetition in range(args.repetitions + 1):
            for name, times in loops.items():
                with applied(model, methods[name][0] if name in methods else None):
                    loop = generate(model, prompt, args.steps, guidance)[1]
                if repetition:  # the first one compiles
                    times.append(loop)
            for name, (_, always) in methods.items():
                timer = StepTimes()
                model.callbacks.register(timer)
                with apply_teacache(model, always) as handle:
                    generate(model, prompt, args.steps, guidance)
                model.callbacks.in_loop.remove(timer)
                if handle.stats.last.fault is not None:
                    raise SystemExit(f"{name}: {handle.stats.last.fault}")
                computing = {d.step for d in handle.stats.last.decisions if not d.skipped}
                if repetition:
                    steps = enumerate(timer.seconds(), start=1)
                    skipped[name] += [seconds for step, seconds in steps if step not in computing]
        plain = statistics.median(loops[PLAIN])
        for name in methods:
            never, step = statistics.median(loops[name]), statistics.median(skipped[name])
            share = f"{100 * step * args.steps / plain:.1f} %"
            rows.append((mode, guidance, name, plain, never, never / plain, step * 1000, share))
    mx.enable_compile()
    print(f"{machine.line()}; {args.steps} steps, {args.repetitions} repetitions, alternating")
    head = ("MODE", "GUIDANCE", "METHOD", "PLAIN s", "SKIPPING NOTHING s", "RATIO", "SKIPPED STEP ms", "OF A PLAIN ONE")
    print_table(head, rows)


if __name__ == "__main__":
    main()
