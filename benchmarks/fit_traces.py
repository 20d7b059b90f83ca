"""How well polynomials and profiles predict the traces of real models, as a table; and the numbers that follow from them.

python benchmarks/fit_traces.py benchmarks/traces/*.json --against benchmarks/published --output numbers

The traces were recorded by others and hold no σ (traces/README.md); σ is that of the installed mflux's scheduler. A file is for
the coefficient file of the id that it names: its polynomial competes, and --output writes it with the new numbers.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.calibration import coefficient_file
from mflux_teacache_plugin.calibration import fit as fits
from mflux_teacache_plugin.calibration.fit import OWN, PROFILE, PUBLISHED, Score
from mflux_teacache_plugin.calibration.traces import Trace
from mflux_teacache_plugin.variants import Catalog, Variant

#: Adapter to the scheduler that mflux's command of that family asks for; the others ask for "linear".
SCHEDULERS = dict.fromkeys(("klein", "klein-base", "z-image"), "flow_match_euler_discrete")

#: The signal that this package's gates read. A polynomial that was fitted to another one says nothing to them.
SIGNAL = "modulated image input of block 0"


def sigmas(model: str, adapter: str, steps: int, width: int, height: int) -> list[float]:
    """σ at which each step of mflux's `model` is computed, as the installed mflux schedules it."""
    from mflux.models.common.config.config import Config
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig

    named = [config for config in AVAILABLE_MODELS.values() if model in (config.model_name, *config.aliases)]
    scheduler = SCHEDULERS.get(adapter, "linear")
    config = named[0] if named else ModelConfig.from_name(model)
    run = Config(config, num_inference_steps=steps, width=width, height=height, scheduler=scheduler)
    return [float(sigma) for sigma in run.scheduler.sigmas][:steps]


def read(recipe: dict[str, Any], variant: Variant) -> list[Trace]:
    """The generations of a trace file's JSON: `output_change` and `signal_change` have a row for each."""
    steps = len(recipe["output_change"][0]) + 1
    sigma = sigmas(variant.models[0], variant.adapter, steps, recipe["width"], recipe["height"])
    told = {
        "command": "",
        "mflux": "",
        "recipe": "",
        "guidance": recipe["guidance"],
        "steps": steps,
        "sigma": tuple(sigma),
    }
    rows = zip(recipe["output_change"], recipe["signal_change"], strict=True)
    return [
        Trace(prompt=f"row {number}", output=tuple(output), signal=tuple(signal), **told)
        for number, (output, signal) in enumerate(rows, start=1)
    ]


def fit(path: Path, files: Catalog) -> tuple[Variant, int, dict[str, Score]]:
    """A trace file's numbers, in the variant that it names; how many prompts they rest on, and how well each predicts."""
    recipe = json.loads(path.read_text(encoding="utf-8"))
    variant = files.variants[recipe["variant"]].variant
    recorded = read(recipe, variant)
    numbers, scores = fits.numbers(recorded, variant)
    if recipe["signal"] != SIGNAL:  # no gate here reads it
        numbers = {"profile": numbers["profile"], "polynomial": None, "range": None, "threshold": None}
    return variant.replace(**numbers), len(recorded), scores


def table(found: Iterable[tuple[Variant, int, dict[str, Score]]]) -> str:
    """R² and root mean square error of each way to predict the output's change, in Markdown."""
    ways = (PUBLISHED, OWN, PROFILE)
    lines = [f"| variant | prompts | {' | '.join(ways)} |", "|---" * (2 + len(ways)) + "|"]
    for variant, prompts, scores in found:
        cells = {way: f"{score.r2:.3f} ({score.rmse:.4f})" for way, score in scores.items()}
        best = min(scores, key=lambda way: scores[way].rmse)
        cells[best] = f"**{cells[best]}**"
        lines.append(f"| `{variant.id}` | {prompts} | {' | '.join(cells.get(way, '–') for way in ways)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "traces", type=Path, nargs="*", default=sorted((Path(__file__).parent / "traces").glob("*.json"))
    )
    parser.add_argument("--against", type=Path, help="a coefficient file or folder that goes before others")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for coefficient files with the new numbers")
    args = parser.parse_args()
    found = [fit(path, choose.catalog(args.against)) for path in args.traces]
    print(table(found), end="")
    for variant, _, _ in found if args.output else []:
        file = args.output / f"{variant.id}.toml"
        coefficient_file.write(variant, file, "The numbers of benchmarks/fit_traces.py.")
        print("wrote", file)


if __name__ == "__main__":
    main()
