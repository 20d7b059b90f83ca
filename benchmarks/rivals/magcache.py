"""Record which steps diffusers' MagCache computes with published ratios, as test data; its own hooks decide.

python benchmarks/rivals/magcache.py        torch, diffusers 0.42.1 (Apache-2.0)

Writes tests/data/magcache/diffusers.json.
"""

import json
from itertools import product
from pathlib import Path

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheConfig, apply_mag_cache

TARGET = Path(__file__).parents[2] / "tests" / "data" / "magcache" / "diffusers.json"
SETTINGS = [
    {"threshold": threshold, "K": k, "retention": retention}
    for (threshold, k), retention in product(((0.06, 3), (0.24, 5), (0.02, 1), (1.0, 9)), (0.2, 0.1, 0.0))
]


class Block(torch.nn.Module):
    def __init__(self, computed: list[int]) -> None:
        super().__init__()
        self.computed = computed

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.computed.append(int(hidden_states[0, 0, 0]))
        return hidden_states + 1


def computed(setting: dict[str, float], steps: int) -> list[int]:
    model, found = torch.nn.Module(), []
    model.transformer_blocks = torch.nn.ModuleList([Block(found), Block([])])
    ratios = FLUX_MAG_RATIOS.tolist()
    config = MagCacheConfig(setting["threshold"], int(setting["K"]), setting["retention"], steps, ratios)
    apply_mag_cache(model, config)
    for step in range(steps):
        first, last = model.transformer_blocks
        last(first(torch.full((1, 1, 1), float(step))))
    return found


def main() -> None:
    TransformerBlockRegistry.register(
        Block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    )
    runs = [
        {**setting, "steps": steps, "computed": computed(setting, steps)}
        for setting in SETTINGS
        for steps in (8, 20, 25, 28, 33, 50)
    ]
    ratios = [round(each, 5) for each in FLUX_MAG_RATIOS.tolist()]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps({"made_by": "benchmarks/rivals/magcache.py", "ratios": ratios, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
