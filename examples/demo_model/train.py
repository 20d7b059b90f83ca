"""Train the demo model from nothing: text encoder, VAE and transformer, then the exported model.

    python train.py --out DIR

Every stage leaves its result in DIR and is skipped when that is there; the two trainings go on from their last
checkpoint. Stopping and starting again therefore costs a few minutes at most. The things' pictures are fetched with npm.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import data
import export
import text
import torch
import transformer
import vae

BASIS_PICTURES, BASIS_SEED = 4000, 0


def prepare(folder: Path) -> None:
    """Write the latents' basis, and every caption encoded."""
    if (folder / "prepared.pt").exists():
        return
    world = data.World(data.fetch(folder), data.held_out(), vae.STEP)
    pictures, _ = world.render(BASIS_PICTURES, BASIS_SEED)
    tokenizer = text.build_tokenizer()
    known = [text.NO_CAPTION, *(data.caption(*pair) for pair in data.pairs())]
    content = {
        "basis": vae.fit_basis(pictures),
        "row": {caption: index for index, caption in enumerate(known)},
        "embeddings": text.embed(tokenizer, text.build_encoder(tokenizer), known),
    }
    torch.save(content, folder / "prepared.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=150, help="of the transformer's training")
    parser.add_argument("--vae-minutes", type=float, default=60, help="of the VAE's, before it")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints and plots go")
    parser.add_argument("--mflux-python", default=sys.executable, help="interpreter that has mflux, if not this one")
    parser.add_argument("--float32", action="store_true", help="for a CPU without bfloat16 units")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.out)
    vae.Training(options.out, options.vae_minutes, not options.float32).run()
    transformer.Training(options.out, options.minutes, not options.float32).run()
    export.export(options.out)
    convert = [options.mflux_python, export.__file__, "mflux", "--out", str(options.out)]
    subprocess.run([*convert, "--to", str(options.out / data.MODEL.name)], check=True)


if __name__ == "__main__":
    main()
