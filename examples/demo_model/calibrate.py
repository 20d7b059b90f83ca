"""Fit the demo model's coefficient file: how far the signal's change foretells the change of the blocks' output.

    python examples/demo_model/calibrate.py --out coefficients/flux2-klein-base-demo.toml

Needs mflux and the plugin. Nothing is skipped while it records. Only the prompts marked `calibration` are used.
"""

import argparse
import datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mflux_teacache_plugin import demo_model
from mflux_teacache_plugin.adapters import KLEIN_BASE
from mflux_teacache_plugin.caching.step_cache import relative_change
from mflux_teacache_plugin.caching.taps import Taps, swap_call

SIDE = 128
DEGREES = (1, 2, 3, 4)
MARGIN = 0.005  # a higher degree must raise R² by as much


class Recorder:
    """The change of the signal and of the final norm's input between neighbouring steps, on the conditional branch."""

    def __init__(self, model: Any, branches: int) -> None:
        self.pairs: list[tuple[float, float]] = []
        self._branches = branches
        self._calls = 0
        self._before: tuple[mx.array, mx.array] | None = None
        taps = Taps(model.transformer, KLEIN_BASE.taps)
        restore = swap_call(model.transformer, lambda base_call, *a, **k: self._call(taps, base_call, *a, **k))
        self._undo = [restore, taps.remove]

    def restore(self) -> None:
        for undo in self._undo:
            undo()

    def _call(self, taps: Taps, base_call: Any, *args: Any, **kwargs: Any) -> mx.array:
        output, signals, finals = taps.full(base_call, *args, **kwargs)
        if self._calls % self._branches == 0:
            now = (signals[0], finals[0])
            if self._before is not None:
                self.pairs.append(tuple(relative_change(a, b) for a, b in zip(now, self._before, strict=True)))
            mx.eval(now)
            self._before = now
        self._calls += 1
        return output


def record(model: Any, prompts: list[dict[str, Any]], steps: int, guidance: float) -> np.ndarray:
    """Changes of signal and output, (pairs, 2). The last step is left out: it is always computed."""
    pairs: list[tuple[float, float]] = []
    for prompt in tqdm(prompts, desc=f"{steps} steps, guidance {guidance:g}"):
        recorder = Recorder(model, 2 if guidance > 1 else 1)
        try:
            model.generate_image(**prompt, num_inference_steps=steps, guidance=guidance, width=SIDE, height=SIDE)
        finally:
            recorder.restore()
        pairs += recorder.pairs[:-1]
    return np.array(pairs)


def fit(changes: np.ndarray) -> tuple[list[float], float]:
    """Five coefficients, highest power first, through the origin, and R². The lowest degree that is not clearly worse, and
    neither falls nor turns negative on the range that was seen.
    """
    x, y = changes.T
    grid = np.linspace(x.min(), x.max(), 200)
    best: tuple[list[float], float] | None = None
    for degree in DEGREES:
        powers = np.stack([x**power for power in range(degree, 0, -1)], axis=1)
        coefficients = np.linalg.lstsq(powers, y, rcond=None)[0]
        polynomial = [0.0] * (4 - degree) + [float(c) for c in coefficients] + [0.0]
        values = np.polyval(polynomial, grid)
        if (np.diff(values) < 0).any() or (values < 0).any():
            continue
        r2 = float(1 - ((y - np.polyval(polynomial, x)) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        if best is None or r2 > best[1] + MARGIN:
            best = (polynomial, r2)
    if best is None:
        raise SystemExit("no polynomial rises over the whole range; record more prompts")
    return best


def leave_one_out(groups: list[np.ndarray]) -> float:
    """R² on each prompt of the fit to the others: what the fit is worth on a prompt that it did not see."""
    errors, spread = 0.0, 0.0
    everything = np.concatenate(groups)[:, 1].mean()
    for index, group in enumerate(groups):
        polynomial, _ = fit(np.concatenate(groups[:index] + groups[index + 1 :]))
        errors += ((group[:, 1] - np.polyval(polynomial, group[:, 0])) ** 2).sum()
        spread += ((group[:, 1] - everything) ** 2).sum()
    return float(1 - errors / spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threshold", type=float, required=True, help="chosen with benchmarks/quality.py")
    args = parser.parse_args()
    mx.disable_compile()  # a compiled step would run around the taps
    model = demo_model.load()
    prompts = demo_model.prompts("calibration")
    groups = [record(model, [prompt], args.steps, args.guidance) for prompt in prompts]
    changes = np.concatenate(groups)
    polynomial, r2 = fit(changes)
    low, high = float(changes[:, 0].min()), float(changes[:, 0].max())
    args.out.write_text(
        TEMPLATE.format(
            name=demo_model.NAME,
            polynomial=", ".join(repr(c) for c in polynomial),
            low=low,
            high=high,
            threshold=args.threshold,
            recipe=f"{len(prompts)} prompts, {args.steps} steps, guidance {args.guidance:g}, {SIDE}x{SIDE}, float32, "
            f"conditional branch, {len(changes)} pairs, through the origin",
            date=datetime.date.today().isoformat(),
            r2=r2,
            others=leave_one_out(groups),
        )
    )
    print(f"{args.out}: R² {r2:.3f}, on prompts left out {leave_one_out(groups):.3f}, range {low:.4f} to {high:.4f}")


TEMPLATE = """\
# The demo model of this project (examples/demo_model), made by examples/demo_model/calibrate.py.
schema = 1
id = "{name}"
adapter = "klein-base"
models = ["{name}"]
polynomial = [{polynomial}]
range = [{low!r}, {high!r}]
threshold = {threshold}
weights_licence = "Apache-2.0"

[provenance]
source = "mflux-teacache-plugin, examples/demo_model/calibrate.py"
recipe = "{recipe}"
date = {date}
r2 = {r2:.4f}
fitted = true
notes = "R² on prompts left out of the fit: {others:.3f}. The demo model is for trying things out, not for claims about real checkpoints."
"""

if __name__ == "__main__":
    main()
