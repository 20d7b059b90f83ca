"""Write a module's random parameters in the layout that `mflux-save` leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_component(path: Path, build: Callable[[], Any]) -> None:
    """Save `build()`'s parameters as `path`/0.safetensors, in bfloat16 as mflux stores them.

    The metadata names mflux, so its loader takes the keys as they are. The seed is fixed: the same shapes always get
    the same numbers. What MLX starts at zero gets small random numbers, or half of a tiny model would do nothing; what
    it starts at one (norms) stays.
    """
    import mlx.core as mx
    from mflux.utils.version_util import VersionUtil
    from mlx.utils import tree_flatten

    mx.random.seed(0)
    arrays = {}
    for key, value in tree_flatten(build().parameters()):
        if key.startswith("bn."):  # the VAE's running statistics are used in full precision
            arrays[key] = value
            continue
        if not mx.any(value).item():
            value = mx.random.normal(value.shape) * 0.05
        arrays[key] = value.astype(mx.bfloat16)
    path.mkdir(parents=True, exist_ok=True)
    metadata = {"quantization_level": "None", "mflux_version": VersionUtil.get_mflux_version()}
    mx.save_safetensors(str(path / "0.safetensors"), arrays, metadata)


def write_lora(path: Path, width: int, rank: int = 2) -> Path:
    """Save a random LoRA for the query projection of the first double block of a `width` wide transformer."""
    import mlx.core as mx

    layer = "transformer.transformer_blocks.0.attn.to_q"
    down, up = (mx.random.normal(shape, key=mx.random.key(1)) for shape in ((rank, width), (width, rank)))
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})
    return path
