"""Quality against steps on the demo model: thresholds, and plain mflux with as many steps, both against all steps.

python benchmarks/quality.py --steps 50 --guidance 4 --plot quality.png
"""

import argparse
from pathlib import Path

import numpy as np
from _demo import generate
from tqdm import tqdm

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.cli.output import print_table
from mflux_teacache_plugin.demo_model import load, prompts
from mflux_teacache_plugin.measure import machine
from mflux_teacache_plugin.measure.metrics import similarity, summarize


def figures(pictures: list[np.ndarray], references: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Mean and worst SSIM, mean and worst PSNR in dB."""
    found = summarize([similarity(a, b) for a, b in zip(pictures, references, strict=True)])
    return found.ssim, found.ssim_worst, found.psnr, found.psnr_worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--thresholds", type=float, nargs="+", default=None, help="default: around the variant's own")
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    model, wanted = load(), prompts("benchmark")
    with apply_teacache(model) as handle:
        own = handle.variant.threshold
    thresholds = args.thresholds or [round(own * factor, 4) for factor in (0.5, 0.75, 1, 1.5, 2)]
    rows: list[tuple] = []
    points: dict[str, list[tuple[float, float]]] = {"TeaCache": [], "plain, fewer steps": []}
    with tqdm(total=len(wanted) * (2 + 2 * len(thresholds)), unit="picture") as bar:

        def pictures(steps: list[int], shift: int = 0) -> list[np.ndarray]:
            made = []
            for prompt, count in zip(wanted, steps, strict=True):
                made.append(generate(model, {**prompt, "seed": prompt["seed"] + shift}, count, args.guidance)[0])
                bar.update()
            return made

        every = [args.steps] * len(wanted)
        references = pictures(every)
        rows.append(("another seed", args.steps, *figures(pictures(every, shift=1000), references)))
        for threshold in thresholds:
            with apply_teacache(model, threshold=threshold) as handle:
                cached = figures(pictures(every), references)
            computed = [generation.computed for generation in handle.stats.generations]
            fewer = figures(pictures(computed), references)
            mean = float(np.mean(computed))
            star = " (its own)" if threshold == own else ""
            rows.append((f"TeaCache {threshold:g}{star}", mean, *cached))
            rows.append(("  plain, as many steps", mean, *fewer))
            points["TeaCache"].append((mean, cached[2]))
            points["plain, fewer steps"].append((mean, fewer[2]))
    print(f"{machine.line()}; {args.steps} steps, guidance {args.guidance:g}, {len(wanted)} prompts")
    print_table(("", "STEPS COMPUTED", "SSIM", "WORST", "PSNR dB", "WORST"), rows)
    if args.plot is not None:
        plot(points, args.plot)


def plot(points: dict[str, list[tuple[float, float]]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, values in points.items():
        steps, psnrs = zip(*sorted(values), strict=True)
        axis.plot(steps, psnrs, marker="o", label=label)
    axis.set(xlabel="steps computed", ylabel="PSNR against all steps, dB")
    axis.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
