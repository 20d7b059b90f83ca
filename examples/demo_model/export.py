"""From the trained state in DIR to the model directory that ships.

Two steps, because torch and mflux need not share an environment:

    python export.py diffusers --out DIR      torch: DIR/diffusers, float32, as diffusers lays a pipeline out
    python export.py mflux --out DIR --to M   mflux and this plugin: mflux loads that and saves it in bfloat16
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from data import MODEL, PROMPTS


def export(folder: Path) -> Path:
    """Write the averaged weights as diffusers and transformers save them, and model.json; returns the directory."""
    import text
    import transformer
    import vae

    target = folder / "diffusers"
    shutil.rmtree(target, ignore_errors=True)
    tokenizer = text.build_tokenizer()
    encoder = text.build_encoder(tokenizer)
    text.save(tokenizer, encoder, target)
    transformer.load(folder).save_pretrained(target / "transformer")
    vae.load(folder).save_pretrained(target / "vae")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    content = {
        "name": MODEL.name,
        "transformer_overrides": transformer.GEOMETRY,
        "text_encoder_overrides": {
            key: getattr(encoder.config, key) for key in (*sizes, "num_key_value_heads", "head_dim")
        },
        "vae": vae.GEOMETRY,
        "text_tokens": text.TEXT_TOKENS,
    }
    (target / "model.json").write_text(json.dumps(content, indent=2) + "\n")
    return target


def convert(folder: Path, target: Path) -> None:
    """Let mflux load DIR/diffusers and save what it holds; what else lies in the target stays there."""
    import mflux_demo_model as demo_model
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    def stored(path: str, array: mx.array) -> mx.array:
        return array if path.endswith("inv_freq") else array.astype(mx.bfloat16)  # no weight, but saved with them

    source = folder / "diffusers"
    os.environ[demo_model.ENVIRONMENT] = str(source)
    model = demo_model.load()
    for part in ("transformer", "vae", "text_encoder"):
        shutil.rmtree(target / part, ignore_errors=True)
        module = getattr(model, part)
        module.update(tree_map_with_path(stored, module.parameters()))
    shutil.rmtree(target / "tokenizer", ignore_errors=True)
    model.save_model(str(target))
    shutil.copy(source / "model.json", target)
    if target.resolve() != MODEL.resolve():
        for file in (PROMPTS, MODEL / "things.npz"):
            shutil.copy(file, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("diffusers", "mflux"))
    parser.add_argument("--out", type=Path, required=True, help="the training's directory")
    parser.add_argument("--to", type=Path, default=MODEL)
    options = parser.parse_args()
    if options.step == "diffusers":
        export(options.out)
    else:
        convert(options.out, options.to)


if __name__ == "__main__":
    main()
