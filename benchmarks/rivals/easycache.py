"""Record which steps EasyCache's authors skip of small seeded runs, as test data; the authors' own function decides.

python benchmarks/rivals/easycache.py EASYCACHE/EasyCache4HunyuanVideo/easycache_sample_video.py

EASYCACHE is H-EmbodVis/EasyCache at 5127804 (Apache-2.0). Its `easycache_forward` runs on numpy in place of torch, with a
transformer that has no blocks: its last layer answers with `velocity`. Writes tests/data/easycache/authors.json.
"""

import ast
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SHAPE = (1, 2, 1, 3, 4)
RUNS = [
    {"seed": seed, "steps": steps, "threshold": threshold, "ret_steps": ret_steps}
    for seed, steps in enumerate((12, 25, 50))
    for threshold in (0.005, 0.01, 0.02, 0.05)
    for ret_steps in (2, 5)
]
TARGET = Path(__file__).parents[2] / "tests" / "data" / "easycache" / "authors.json"


class Tensor(np.ndarray):
    """As much of torch's as is used."""

    def clone(self) -> "Tensor":
        return self.copy()

    def abs(self) -> "Tensor":
        return np.abs(self)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def velocity(latents: Any, sigma: float, goal: np.ndarray, tanh: Any = np.tanh) -> Any:
    """What the model would answer: away from a picture that depends on the latents a little."""
    return (latents - tanh(goal + 0.3 * latents)) / (0.1 + sigma)


def the_authors(file: Path) -> Any:
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "easycache_forward"]
    torch = SimpleNamespace(
        Tensor=Tensor,
        cuda=SimpleNamespace(synchronize=lambda: None),
        cat=lambda arrays, axis: np.concatenate(arrays, axis).view(Tensor),
    )
    typing = {name: __import__("typing").__dict__[name] for name in ("Optional", "Union", "Dict")}
    names: dict[str, Any] = {"torch": torch, "time": time, "get_cu_seqlens": lambda *_: None, **typing}
    exec(compile(tree, str(file), "exec"), names)
    return names["easycache_forward"]


def record(forward: Any, run: dict[str, Any]) -> dict[str, Any]:
    latents, goal = noise(run["seed"]).view(Tensor), noise(run["seed"] + 100)
    at, computed = SimpleNamespace(sigma=1.0, step=0, latents=latents), []

    def last_layer(*_: Any) -> Tensor:
        computed.append(at.step)
        return velocity(at.latents, at.sigma, goal).astype(np.float32).view(Tensor)

    flat = np.zeros((1, 1, 1), np.float32).view(Tensor)
    model = SimpleNamespace(
        patch_size=(1, 1, 1), time_in=lambda _: 0, vector_in=lambda _: 0, guidance_embed=False, cnt=0, cache=None, k=None,
        ret_steps=run["ret_steps"], num_steps=run["steps"], thresh=run["threshold"], total_time=0.0, img_in=lambda _: flat,
        text_projection="linear", txt_in=lambda _: flat, double_blocks=[], single_blocks=[], final_layer=last_layer,
        unpatchify=lambda made, *_: made,
    )  # fmt: skip
    for step in range(run["steps"]):
        at.sigma, at.step, at.latents = 1 - step / run["steps"], step, latents
        made = forward(model, latents, None, text_mask=flat, return_dict=False)
        latents = (latents - made / np.float32(run["steps"])).astype(np.float32)
    return {**run, "computed": computed, "latents": [float(f"{value:.6g}") for value in latents.reshape(-1)]}


def main() -> None:
    forward = the_authors(Path(sys.argv[1]))
    content = {"made_by": "benchmarks/rivals/easycache.py", "runs": [record(forward, run) for run in RUNS]}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
