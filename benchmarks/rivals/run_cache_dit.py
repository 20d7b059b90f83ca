"""cache-dit 1.5.3 on the demo model in diffusers: what it decides at every step, and how good its pictures are.

python benchmarks/rivals/run_cache_dit.py traces --torch PYTHON                    tests/data/cache-dit/*.json
python benchmarks/rivals/run_cache_dit.py frontier --torch PYTHON --rows FILE      rows for benchmarks/frontier.py

PYTHON is the interpreter of another environment with torch, diffusers, transformers and cache-dit 1.5.3; this one has
mflux and the plugin. mflux draws the noise, encodes the prompts and decodes the pictures; between the two stand the same
weights in float32, diffusers' transformer and diffusers' scheduler. cache-dit takes FLUX.2's two lists of blocks as two
contexts, each with its own decisions; F and B are taken for each list, as many as it has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import mflux_demo_model as demo_model
from _demo import SIDE, done, pairs, score

TARGET = Path(__file__).parents[2] / "tests" / "data" / "cache-dit"

#: What the traces are made with: each in a file of its own, with each of RUNS.
AGGRESSIVE = {"F": 1, "B": 0, "rdt": 0.2, "warmup": 8, "continuous": 10}
SETTINGS = {
    "aggressive": AGGRESSIVE,
    "conservative": {"F": 4, "B": 0, "rdt": 0.05, "warmup": 8, "continuous": 3},
    "conservative-one-block": {"F": 1, "B": 0, "rdt": 0.05, "warmup": 8, "continuous": 3},
    "shared-decision": {**AGGRESSIVE, "rdt": 0.1, "separate": False},
    "last-blocks": {**AGGRESSIVE, "B": 1},
    "max-cached": {**AGGRESSIVE, "cached": 4},
    "max-accumulated": {**AGGRESSIVE, "accumulated": 0.5},
    "warmup-interval": {**AGGRESSIVE, "interval": 2},
    "no-warmup": {"F": 1, "B": 0, "rdt": 0.08, "warmup": 0, "continuous": 2},
    "taylor-1": {**AGGRESSIVE, "taylor": 1},
    "taylor-2": {**AGGRESSIVE, "taylor": 2},
}
#: (pair, steps, guidance), and what of the settings is different: the short run is one that a test can repeat in mflux.
RUNS: list[tuple[int, int, float, dict[str, float]]] = [
    (0, 50, 4.0, {}),
    (1, 25, 4.0, {}),
    (0, 25, 1.0, {}),
    (2, 9, 4.0, {"warmup": 2, "rdt": 0.35}),
]

#: For the frontier: thresholds that together cover the shares of the table as far as F1 B0 can.
SWEEP = (0.05, 0.1, 0.2, 0.4, 0.8)


class Mflux:
    """The demo model in mflux: the ends of a run whose middle is diffusers' and cache-dit's."""

    def __init__(self) -> None:
        import mlx.core as mx
        from mflux.models.common.config.model_config import ModelConfig

        ModelConfig.precision = mx.float32
        self.model = demo_model.load()

    def inputs(self, prompt: str, seed: int) -> dict[str, np.ndarray]:
        """Noise (1, 64, 128), and the text with and without the prompt (1, 12, 192), float32."""
        import mlx.core as mx
        from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator

        noise, *_ = Flux2LatentCreator.prepare_packed_latents(seed, SIDE, SIDE, 1)
        positive, _, negative, _ = self.model._encode_prompt_pair(prompt=prompt, negative_prompt=" ", guidance=4.0)
        named = {"noise": noise, "positive": positive, "negative": negative}
        return {name: np.array(array.astype(mx.float32)) for name, array in named.items()}

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """The picture, (SIDE, SIDE, 3) bytes, of the last tokens."""
        import mlx.core as mx
        from mflux.utils.image_util import ImageUtil

        side = int(tokens.shape[1] ** 0.5)
        packed = mx.array(tokens).reshape(1, side, side, -1).transpose(0, 3, 1, 2)
        return np.asarray(ImageUtil.to_pil(self.model.vae.decode_packed_latents(packed)).convert("RGB"))


def work(python: str, mflux: Mflux, jobs: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict, np.ndarray]]:
    """Run the jobs in the other environment; yields each job, what cache-dit recorded, and the picture."""
    entries = pairs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used = sorted({job["pair"] for job in jobs})
        inputs = {index: mflux.inputs(**entries[index]) for index in used}
        arrays = {f"{key}{index}": array for index, each in inputs.items() for key, array in each.items()}
        np.savez(folder / "inputs.npz", **arrays)
        (folder / "jobs.json").write_text(json.dumps(jobs))
        worker = Path(__file__).with_name("cache_dit_worker.py")
        command = [python, str(worker), str(folder), str(demo_model.folder())]
        quiet = {**os.environ, "CACHE_DIT_LOG_LEVEL": "error"}  # it logs to stdout
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as process:
            for line in process.stdout or ():
                record = json.loads(line)
                file = folder / f"{record.pop('job')}.npz"
                yield jobs[int(file.stem)], record, mflux.decode(np.load(file)["tokens"])
                file.unlink()
        if process.returncode:
            raise SystemExit(process.returncode)


def traces(python: str) -> None:
    """Write one file for each setting: its runs, and for each run what every list and branch decided."""
    jobs: list[dict[str, Any]] = [
        {"name": name, "setting": name and {**setting, **other}, "pair": pair, "steps": steps, "guidance": guidance}
        for pair, steps, guidance, other in RUNS
        for name, setting in [(None, {}), *SETTINGS.items()]
    ]
    full, files = np.zeros(0), defaultdict(list)
    for job, record, picture in work(python, Mflux(), jobs):
        if job["setting"] is None:
            full = picture
            continue
        run = {**pairs()[job["pair"]], "steps": job["steps"], "guidance": job["guidance"], "setting": job["setting"]}
        files[job["name"]].append({**run, "psnr": round(score(picture, full)[0], 2), **record})
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, made in files.items():
        head = {"made_by": "benchmarks/rivals/run_cache_dit.py traces, cache-dit 1.5.3", "runs": made}
        (TARGET / f"{name}.json").write_text(json.dumps(head) + "\n")


def frontier(python: str, rows: Path, steps: list[int], guidances: list[float], count: int) -> None:
    """Append a row for each picture to the file, but for those that are there."""
    there = {(r["method"], r["setting"], r["steps"], r["guidance"], r["pair"]) for r in done(rows)}
    jobs: list[dict[str, Any]] = []
    for total in steps:
        for guidance in guidances:
            for pair in range(count):
                missing = [
                    {"method": method, "pair": pair, "steps": total, "guidance": guidance, "setting": setting}
                    for order, method in enumerate(("cache-dit", "cache-dit TaylorSeer"))
                    for rdt in SWEEP
                    if (method, f"rdt={rdt:g}", total, guidance, pair) not in there
                    for setting in [{"F": 1, "B": 0, "rdt": rdt, "warmup": 4, "taylor": order}]
                ]
                if missing:
                    jobs += [{"pair": pair, "steps": total, "guidance": guidance, "setting": None}, *missing]
    full = np.zeros(0)
    for job, record, picture in work(python, Mflux(), jobs):
        if job["setting"] is None:
            full = picture
            continue
        psnr, ssim = score(picture, full)
        row = {key: job[key] for key in ("method", "steps", "guidance", "pair")}
        row |= {"setting": f"rdt={job['setting']['rdt']:g}", "computed": record["computed"], "psnr": psnr, "ssim": ssim}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("traces", "frontier"))
    parser.add_argument("--torch", required=True, metavar="PYTHON", help="the other environment's interpreter")
    parser.add_argument("--rows", type=Path, default=Path("frontier.jsonl"))
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50])
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.0, 4.0, 10.0, 20.0])
    parser.add_argument("--pairs", type=int, default=16)
    args = parser.parse_args()
    if args.what == "traces":
        traces(args.torch)
    else:
        frontier(args.torch, args.rows, args.steps, args.guidances, args.pairs)


if __name__ == "__main__":
    main()
