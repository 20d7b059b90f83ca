"""Train the demo model from nothing: text encoder, VAE and transformer, then the exported model.

    python train.py --out DIR

Every stage leaves its result in DIR and is skipped when that is there; the two trainings go on from their last
checkpoint. Stopping and starting again therefore costs at most a minute.
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

BASIS_PICTURES, BASIS_SEED = 8000, 0


def prepare(folder: Path) -> None:
    """Write the latents' basis, and every caption encoded."""
    if (folder / "prepared.pt").exists():
        return
    pictures, _ = data.render(BASIS_PICTURES, BASIS_SEED, data.held_out(), data.ANYWHERE)
    tokenizer = text.build_tokenizer()
    known = [text.NO_CAPTION, *(scene.caption for scene in data.scenes())]
    content = {
        "basis": vae.fit_basis(pictures),
        "row": {caption: index for index, caption in enumerate(known)},
        "embeddings": text.embed(tokenizer, text.build_encoder(tokenizer), known),
    }
    torch.save(content, folder / "prepared.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=66, help="of the transformer's training")
    parser.add_argument("--vae-minutes", type=float, default=28, help="of the VAE's, before it")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints and plots go")
    parser.add_argument("--mflux-python", default=sys.executable, help="interpreter that has mflux, if not this one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.out)
    vae.Training(options.out, options.vae_minutes).run()
    transformer.Training(options.out, options.minutes).run()
    export.export(options.out)
    convert = [options.mflux_python, export.__file__, "mflux", "--out", str(options.out)]
    subprocess.run([*convert, "--to", str(options.out / data.MODEL.name)], check=True)


if __name__ == "__main__":
    main()
