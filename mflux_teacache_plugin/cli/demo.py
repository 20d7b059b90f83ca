"""Make pictures with the demo model through mflux's own command, three ways: plain, with TeaCache, and plain with as many
steps as TeaCache computed. Prints a table, and writes comparison.png and quality.png beside the pictures.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mflux_teacache_plugin import demo_model, settings
from mflux_teacache_plugin.cli import output
from mflux_teacache_plugin.errors import SettingsError, TeaCacheError

SIDE = 128  #: of the square pictures, in pixels; the model knows no other size
PLAIN, CACHED, FEWER = "plain", "TeaCache", "plain, fewer steps"


@dataclass(frozen=True)
class Run:
    """One picture: `computed` steps of the transformer, `seconds` of mflux's denoising loop, and how near it comes to the
    plain picture of the same prompt and seed: `ssim` (1 is the same) and `psnr` in dB (infinite is the same).
    """

    way: str
    prompt: str
    file: Path
    computed: int
    seconds: float
    ssim: float
    psnr: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    parser.add_argument("--steps", type=int, default=50, help="default: 50")
    parser.add_argument("--guidance", type=float, default=4.0, help="default: 4")
    parser.add_argument(
        "--threshold", type=settings.threshold, default=settings.AUTO, help="default: the one of the coefficient file"
    )
    parser.add_argument("--seeds", type=int, default=1, help="pictures per prompt for the table; default: 1")
    parser.add_argument("--jobs", type=int, default=1, help="prompts at a time; seconds suffer; default: 1")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    missing = [name for name in ("matplotlib", "skimage") if find_spec(name) is None]
    if missing:
        hint = 'pip install "mflux-teacache-plugin[pictures]"'
        raise SettingsError(f"the demo needs {' and '.join(missing)} for its figures", hint=hint)
    prompts = demo_model.prompts("demo")
    if not prompts:
        raise SettingsError(
            "the demo model is not installed with the package", hint=f"set {demo_model.ENVIRONMENT} to a copy of it"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(p["prompt"], p["seed"] + extra) for extra in range(args.seeds) for p in prompts]
    with tqdm(total=3 * len(wanted), unit="picture") as bar, ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            run for three in pool.map(lambda what: _three_ways(args, what[0], what[1], bar), wanted) for run in three
        ]
    from mflux_teacache_plugin.cli import figures

    figures.comparison(runs[: 3 * len(prompts)], args.out / "comparison.png")
    figures.quality(runs, args.out / "quality.png")
    _print(runs, args.format)
    print(f"pictures: {args.out / 'comparison.png'}, {args.out / 'quality.png'}", file=sys.stderr)
    return 0


def _three_ways(args: argparse.Namespace, prompt: str, seed: int, bar: tqdm) -> list[Run]:
    """The plain picture first: the other two are measured against it."""
    cached_option = ["--teacache", str(args.threshold)]
    plain = _picture(args, PLAIN, prompt, seed, args.steps, ["--teacache", "off"], bar)
    cached = _picture(args, CACHED, prompt, seed, args.steps, cached_option, bar, plain.file)
    fewer = _picture(args, FEWER, prompt, seed, cached.computed, ["--teacache", "off"], bar, plain.file)
    return [plain, cached, fewer]


def _picture(
    args: argparse.Namespace,
    way: str,
    prompt: str,
    seed: int,
    steps: int,
    option: list[str],
    bar: tqdm,
    reference: Path | None = None,
) -> Run:
    file = args.out / f"{seed}-{way.replace(', ', '-').replace(' ', '-').lower()}.png"
    sidecar = file.with_suffix(".metadata.json")
    for old in (file, sidecar):  # mflux would number the new one
        old.unlink(missing_ok=True)
    command = [*_command(), "--model", demo_model.NAME, "--prompt", prompt, "--seed", seed, "--steps", steps]
    command += ["--guidance", args.guidance, "--width", SIDE, "--height", SIDE, "--output", file, "--metadata", *option]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0 or not sidecar.exists():
        raise TeaCacheError(f"`{' '.join(map(str, command))}` failed", cause=done.stderr.strip()[-2000:])
    bar.update()
    recorded = json.loads(sidecar.read_text())
    ssim, psnr = (1.0, float("inf")) if reference is None else similarity(file, reference)
    computed = recorded.get("teacache_computed", steps)
    return Run(way, prompt, file, computed, recorded["generation_time_seconds"], ssim, psnr)


def _command() -> list[str]:
    """mflux's command in this environment; as a module where the script lies elsewhere."""
    script = Path(sys.executable).with_name("mflux-generate-flux2")
    return [str(script)] if script.exists() else [sys.executable, "-m", "mflux.models.flux2.cli.flux2_generate"]


def similarity(file: Path, reference: Path) -> tuple[float, float]:
    """SSIM and PSNR in dB of two picture files of one size."""
    import numpy as np
    from PIL import Image
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    picture, other = (np.asarray(Image.open(path).convert("RGB")) for path in (file, reference))
    if np.array_equal(picture, other):
        return 1.0, float("inf")
    return structural_similarity(other, picture, channel_axis=2), peak_signal_noise_ratio(other, picture)


def _print(runs: list[Run], format: str) -> None:
    if format == "json":
        # JSON has no infinity
        output.print_json([{**vars(run), "psnr": run.psnr if math.isfinite(run.psnr) else None} for run in runs])
        return
    head = ("", "STEPS COMPUTED", "SECONDS", "SSIM", "WORST", "PSNR dB", "WORST")
    rows: list[tuple[Any, ...]] = []
    for way in (PLAIN, CACHED, FEWER):
        of_way = [run for run in runs if run.way == way]
        steps = statistics.mean(run.computed for run in of_way)
        seconds = statistics.median(run.seconds for run in of_way)
        ssims, psnrs = [run.ssim for run in of_way], [run.psnr for run in of_way]
        quality = (statistics.mean(ssims), min(ssims), statistics.mean(psnrs), min(psnrs))
        rows.append((way, steps, seconds, *(("reference", "", "", "") if way == PLAIN else quality)))
    output.print_table(head, rows)
