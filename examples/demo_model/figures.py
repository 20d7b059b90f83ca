"""The model's own figures in mflux, float32: how far fewer steps and another seed are from 50 steps, and the seconds.

    python figures.py quality      PSNR and SSIM against 50 plain steps at guidance 4, over the benchmark prompts
    python figures.py seconds      of a 25-step picture at guidance 1 and 4; the median of three, after one to warm up

Needs mflux and the plugin; on Linux, preload OpenBLAS for the usual speed.
"""

import argparse
import statistics
import time

import mflux_demo_model as demo_model
import numpy as np
from check import generate

from mflux_teacache_plugin.measure.metrics import similarity, summarize

FULL_STEPS, FEWER_STEPS, GUIDANCE = 50, (12, 19, 25, 38), 4.0
OTHER_SEED = 1000  # added to the seed


def quality(model) -> None:
    """A line for each number of steps: mean and worst over the prompts."""
    entries = demo_model.prompts("benchmark")

    def pictures(steps: int, added: int = 0) -> list[np.ndarray]:
        return [generate(model, e["prompt"], e["seed"] + added, steps, GUIDANCE) for e in entries]

    full = pictures(FULL_STEPS)
    others = {f"{steps} steps": pictures(steps) for steps in FEWER_STEPS}
    others["50 steps, another seed"] = pictures(FULL_STEPS, OTHER_SEED)
    print(f"against {FULL_STEPS} steps, guidance {GUIDANCE:g}, {len(entries)} prompts")
    for name, made in others.items():
        near = summarize([similarity(b, a) for a, b in zip(full, made, strict=True)])
        print(
            f"{name:24} PSNR {near.psnr:5.2f} dB (worst {near.psnr_worst:5.2f})   SSIM {near.ssim:.4f} "
            f"(worst {near.ssim_worst:.4f})"
        )


def seconds(model) -> None:
    for guidance in (1.0, 4.0):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            generate(model, "a fox on a blue background", 1, 25, guidance)
            times.append(time.perf_counter() - start)
        print(f"25 steps, guidance {guidance:g}: {statistics.median(times[1:]):.2f} s (first {times[0]:.2f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("quality", "seconds"))
    options = parser.parse_args()
    {"quality": quality, "seconds": seconds}[options.what](demo_model.load())


if __name__ == "__main__":
    main()
