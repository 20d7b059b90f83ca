"""Record what two public implementations of SeaCache's filter answer to the same seeded signals, as test data.

PYTHONPATH=MLX_ARSENAL python benchmarks/rivals/seacache.py mlx-arsenal     mlx
python benchmarks/rivals/seacache.py vllm-omni --source VLLM_OMNI           torch

MLX_ARSENAL and VLLM_OMNI are the unpacked wheels of mlx-arsenal 0.17.0 and vllm-omni 0.30.0 (both Apache-2.0). Writes
tests/data/seacache/NAME.json. The signals are `numpy.random.default_rng(seed).standard_normal((1, tokens, WIDTH))`.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np

WIDTH = 3
CASES = [
    {"seed": seed, "grid": grid, "sigma": sigma, "power": power}
    for seed, (grid, sigma, power) in enumerate(
        (grid, sigma, power)
        for grid in ((4, 6), (5, 3), (1, 8))
        for sigma in (0.02, 0.3, 0.8, 0.999)
        for power in (2.0, 3.0)
    )
]
TARGET = Path(__file__).parents[2] / "tests" / "data" / "seacache"


def signal(case: dict) -> np.ndarray:
    rows, columns = case["grid"]
    return np.random.default_rng(case["seed"]).standard_normal((1, rows * columns, WIDTH)).astype(np.float32)


def mlx_arsenal(case: dict) -> np.ndarray:
    import mlx.core as mx
    from mlx_arsenal.diffusion import sea_filter

    picture = mx.array(signal(case).reshape(1, *case["grid"], WIDTH))
    return np.array(sea_filter(picture, 1 - case["sigma"], case["sigma"], power_exp=case["power"]))


def vllm_omni(case: dict, source: Path) -> np.ndarray:
    import torch

    file = source / "vllm_omni" / "diffusion" / "cache" / "seacache" / "sea_filter.py"  # its package imports vLLM
    spec = importlib.util.spec_from_file_location("sea_filter", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    frame = torch.from_numpy(signal(case).reshape(1, *case["grid"], WIDTH))  # one frame: (time, rows, columns, width)
    return module.apply_sea_filter(frame, case["sigma"], power_exp=case["power"]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("mlx-arsenal", "vllm-omni"))
    parser.add_argument("--source", type=Path, help="the unpacked wheel, for vllm-omni")
    args = parser.parse_args()
    rows = []
    for case in CASES:
        answer = mlx_arsenal(case) if args.name == "mlx-arsenal" else vllm_omni(case, args.source)
        rows.append({**case, "filtered": [float(f"{value:.7g}") for value in answer.reshape(-1)]})
    TARGET.mkdir(parents=True, exist_ok=True)
    content = {"made_by": f"benchmarks/rivals/seacache.py {args.name}", "width": WIDTH, "cases": rows}
    (TARGET / f"{args.name}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
