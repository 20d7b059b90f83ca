"""What stands in for a skipped step, on the demo model: the last value, a line through the last two, and that line until it
pointed the wrong way twice in a row (which is what speed-ups do), or once, beside plain mflux with as many steps. On lists of three
kinds.

python benchmarks/forecasts.py --pairs 16
"""

import argparse
from collections.abc import Callable
from unittest import mock

import mlx.core as mx
import numpy as np
from _demo import PAIRS, generate, pairs, score
from mflux_demo_model import NAME, load
from tqdm import tqdm

from mflux_teacache_plugin import apply_teacache
from mflux_teacache_plugin.caching import step_cache
from mflux_teacache_plugin.caching.forecast import LEFT_AFTER, Forecast
from mflux_teacache_plugin.measure import machine


class Unchecked(Forecast):
    """A line that is followed whether or not it pointed the right way."""

    def learn(self, sigma: float, value: mx.array) -> None:
        super().learn(sigma, value)
        self._wrong = None


class LeftAtOnce(Forecast):
    """A line that is left after one wrong sign."""

    def learn(self, sigma: float, value: mx.array) -> None:
        super().learn(sigma, value)
        if self._wrong is not None:
            self._wrong = self._wrong * LEFT_AFTER


#: Where the steps come from, each with the variant that has them.
LISTS = {"its own": NAME, "Klein base 9B's (LeMiCa)": "flux2-klein-base-9b", "what all lists share": ""}

#: Each way with its setting, and with what makes a forecast.
WAYS: dict[str, tuple[str, Callable[[int], Forecast]]] = {
    "reuse": ("2x+reuse", Forecast),
    "line, no check": ("2x+linear", Unchecked),
    "line, left after two wrong signs": ("2x+linear", Forecast),
    "after one": ("2x+linear", LeftAtOnce),
}

RUNS: dict[str, tuple[int, float, dict[str, str]]] = {
    f"{steps} steps, guidance {guidance}": (steps, guidance, {}) for steps in (50, 25) for guidance in (1, 4, 10)
}
RUNS["25 steps, guidance 4, `--scheduler linear`"] = (25, 4, {"scheduler": "linear"})
RUNS["8 steps, guidance 1"] = (8, 1, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="prompts with seeds, each a picture")
    wanted, model = pairs(parser.parse_args().pairs), load()

    def figures(pictures: list[np.ndarray]) -> str:
        near = [score(picture, full)[0] for picture, full in zip(pictures, references, strict=True)]
        return f"{np.mean(near):.1f} ({min(near):.1f})"

    lines = [f"| run | lists | computed | plain, as many steps | {' | '.join(WAYS)} |", "|---" * (4 + len(WAYS)) + "|"]
    with tqdm(total=len(RUNS) * len(wanted) * (2 + len(LISTS) * len(WAYS)), unit="picture") as bar:

        def pictures(steps: int, guidance: float, further: dict[str, str]) -> list[np.ndarray]:
            made = [generate(model, each, steps, guidance, **further)[0] for each in wanted]
            bar.update(len(made))
            return made

        for run, (steps, guidance, further) in RUNS.items():
            references = pictures(steps, guidance, further)
            plain = figures(pictures(steps // 2, guidance, further))
            for told, variant in LISTS.items():
                cells = []
                for setting, forecast in WAYS.values():
                    patched = mock.patch.object(step_cache, "Forecast", forecast)
                    with patched, apply_teacache(model, setting, variant=variant) as handle:
                        cells.append(figures(pictures(steps, guidance, further)))
                assert handle.stats.last.computed == steps // 2
                lines.append(f"| {run} | {told} | {steps // 2} | {plain} | {' | '.join(cells)} |")
    print(machine.line(), f"{len(wanted)} pairs. PSNR against all steps, dB: mean (worst).", *lines, sep="\n")


if __name__ == "__main__":
    main()
