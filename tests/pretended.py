"""`mflux-teacache` with a pretended mflux: pictures in microseconds, the same ones for the same command.

    python -m tests.pretended bench SUITE.toml …

What is tested here is what surrounds the runs; `test_measure` has a real one too. Environment, for runs that fail:
PRETENDED_FAILS and PRETENDED_DIES name a prompt whose picture fails with an error, or kills the process.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mflux_teacache_plugin.measure import runs
from mflux_teacache_plugin.measure.runs import Command, Run, RunError

#: (command with steps, setting) of every run of this process.
made: list[tuple[Command, str]] = []

SIDE = 16


def option(command: Command, name: str, default: str = "") -> str:
    """The last value of an option."""
    found = [value for word, value in zip(command.options, command.options[1:], strict=False) if word == f"--{name}"]
    return found[-1] if found else default


def picture(command: Command, wanted: str, file: Path) -> Run:
    """Noise of the seed, less of it the more steps were computed. 0.1 skips two steps, 0.3 half, all else a fraction."""
    prompt, steps = option(command, "prompt"), int(option(command, "steps", "10"))
    if prompt == os.environ.get("PRETENDED_FAILS"):
        raise RunError(f"`{command}` failed with exit code 1", cause="out of memory")
    if prompt == os.environ.get("PRETENDED_DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    made.append((command, wanted))
    computed = {"off": steps, "0.1": steps - 2, "0.3": steps // 2}.get(wanted, steps * 0.55)
    noise, pattern = np.random.default_rng(int(option(command, "seed"))).integers(0, 150, (2, SIDE, SIDE, 3))
    pixels = noise + pattern * (1 if wanted == "off" else 2) / computed
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    method = None if wanted == "off" else wanted
    return Run(steps, computed, 0, computed / 10, computed / 10 + 1, 2 * 10**9, 10**9, method)


def check(command: Command, wanted: object) -> dict:
    seeds = [int(seed) for seed in option(command, "seed", "1").split()]
    texts = {name: option(command, name.replace("_", "-")) or None for name in ("model", "prompt", "prompt_file")}
    facts = {**texts, "seed": seeds, "guidance": 4.0}
    return {**facts, "steps": int(option(command, "steps", "10")), "width": 16, "height": 16, "quantize": None}


if __name__ == "__main__":
    runs.picture, runs.check = picture, check
    from mflux_teacache_plugin.cli import main

    sys.exit(main())
