"""The torch side of `run_cache_dit.py`, which starts it: the demo model's transformer in diffusers with cache-dit on it.

Needs torch, diffusers and transformers as in examples/demo_model/requirements.txt, and cache-dit 1.5.3. Reads
FOLDER/jobs.json and FOLDER/inputs.npz. Writes FOLDER/N.npz for job N, the last tokens, and a line of JSON on stdout: what was decided.
"""

import json
import sys
from pathlib import Path

import cache_dit
import numpy as np
import torch
from cache_dit import DBCacheConfig, ParamsModifier, TaylorSeerCalibratorConfig
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file
from tqdm import tqdm

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo_model"
sys.path.insert(0, str(EXAMPLE))
from sampling import sample  # noqa: E402 - an example, not a package
from transformer import FIXED  # noqa: E402

LISTS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
#: cache-dit's names of what the runs set; blocks are set for each list.
NAMES = {
    "rdt": "residual_diff_threshold",
    "warmup": "max_warmup_steps",
    "interval": "warmup_interval",
    "cached": "max_cached_steps",
    "continuous": "max_continuous_cached_steps",
    "accumulated": "max_accumulated_residual_diff_threshold",
    "separate": "cfg_diff_compute_separate",
}


def load(model: Path) -> Flux2Transformer2DModel:
    """The shipped weights under diffusers' names, in float32."""
    weights = {}
    for name, weight in load_file(model / "transformer" / "0.safetensors").items():
        name = name.replace("time_guidance_embed.", "time_guidance_embed.timestep_embedder.")
        if name.startswith("transformer_blocks."):
            name = name.replace("attn.to_out.", "attn.to_out.0.")
        weights[name] = weight.float()
    sizes = json.loads((model / "model.json").read_text())["transformer_overrides"]
    transformer = Flux2Transformer2DModel(**sizes, **FIXED)
    transformer.load_state_dict(weights)
    return transformer.eval().requires_grad_(False)


def cached(transformer: Flux2Transformer2DModel, setting: dict, steps: int, guided: bool) -> dict[str, dict[str, int]]:
    """Put cache-dit on the transformer. Returns the first and last blocks that always run, for each list."""
    blocks = {}
    for key, name in LISTS.items():
        first = min(setting["F"], len(getattr(transformer, name)))  # cache-dit refuses more than there are
        blocks[key] = {"F": first, "B": min(setting["B"], len(getattr(transformer, name)) - first)}
    shared = {NAMES[key]: value for key, value in setting.items() if key in NAMES}
    configs = [
        DBCacheConfig(
            Fn_compute_blocks=each["F"],
            Bn_compute_blocks=each["B"],
            num_inference_steps=steps,
            enable_separate_cfg=guided,
            **shared,
        )
        for each in blocks.values()
    ]
    order = setting.get("taylor", 0)
    cache_dit.enable_cache(
        transformer,
        cache_config=configs[0],
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None,
        params_modifiers=[ParamsModifier(cache_config=config) for config in configs],
    )
    return blocks


def decisions(transformer: Flux2Transformer2DModel, blocks: dict, steps: int, guided: bool) -> dict:
    """What cache-dit recorded, for each list and branch: steps cached, differences by step, and blocks run of all."""
    contexts, lists, run, of = transformer._context_manager._cached_context_manager, {}, 0, 0
    for key, name in LISTS.items():
        (context,) = (value for label, value in contexts.items() if label.startswith(name))
        branches = {"cond": (context.cached_steps, context.residual_diffs)}
        if guided:
            branches["cfg"] = (context.cfg_cached_steps, context.cfg_residual_diffs)
        lists[key] = dict(blocks[key])
        count, kept = len(getattr(transformer, name)), blocks[key]["F"] + blocks[key]["B"]
        for branch, (skipped, differences) in branches.items():
            digits = {step: float(f"{difference:.7g}") for step, difference in differences.items()}
            lists[key][branch] = {"cached": list(skipped), "differences": digits}
            run += count * steps - (count - kept) * len(skipped)
            of += count * steps
    return {"lists": lists, "computed": steps * run / of}


def main() -> None:
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    jobs, inputs = json.loads((folder / "jobs.json").read_text()), np.load(folder / "inputs.npz")
    transformer = load(model)
    for index, job in enumerate(tqdm(jobs, unit="picture", desc="cache-dit")):
        guided = job["guidance"] > 1
        record: dict = {"job": index}
        if job["setting"] is not None:
            blocks = cached(transformer, job["setting"], job["steps"], guided)
        noise, positive, negative = (
            torch.from_numpy(inputs[f"{part}{job['pair']}"]) for part in ("noise", "positive", "negative")
        )
        tokens = sample(transformer, noise, positive, negative, job["steps"], job["guidance"])
        if job["setting"] is not None:
            record |= decisions(transformer, blocks, job["steps"], guided)
            cache_dit.disable_cache(transformer)
        np.savez(folder / f"{index}.npz", tokens=tokens.numpy())
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
