"""Train the demo model from nothing: pictures, text encoder, VAE and transformer, then the exported model.

    python train.py --minutes 95 --out DIR

Every stage leaves its result in DIR and is skipped when that is there; the two trainings go on from their last
checkpoint. Stopping and starting again therefore costs at most a minute.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two trainings share the cores
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import data
import export
import numpy as np
import text
import torch
import transformer
import vae

PICTURES, STARTERS, HELD_OUT = 64_000, 12_000, 256
STARTER_SEED, HELD_OUT_SEED = 5_000_000, 10_000_000  # the pictures' own seeds count from 0


def prepare(folder: Path) -> None:
    """Write pictures, latents and encoded captions; and the same of pictures that no training sees."""
    if not (folder / "latents.pt").exists():
        pictures, captions, kinds = data.render(PICTURES, first_seed=0)
        np.save(folder / "pictures.npy", pictures)
        torch.save({"captions": captions, "kinds": torch.from_numpy(kinds)}, folder / "captions.pt")
        basis = vae.fit_basis(pictures[:4000])
        torch.save({"basis": basis, "latents": vae.project(basis, pictures).half()}, folder / "latents.pt")
    if (folder / "embeddings.pt").exists():
        return
    basis = torch.load(folder / "latents.pt", mmap=True)["basis"]
    captions = {"rows": torch.load(folder / "captions.pt")["captions"]}
    pictures, captions["starter"], _ = data.render(STARTERS, STARTER_SEED, starter=True)
    torch.save({"latents": vae.project(basis, pictures).half()}, folder / "starter.pt")
    pictures, captions["held_out"], _ = data.render(HELD_OUT, HELD_OUT_SEED)
    content = {"pictures": torch.from_numpy(pictures), "latents": vae.project(basis, pictures).half()}
    torch.save(content, folder / "held_out.pt")
    distinct = dict.fromkeys([text.NO_CAPTION, *(caption for group in captions.values() for caption in group)])
    row = {caption: index for index, caption in enumerate(distinct)}
    tokenizer = text.build_tokenizer()
    embeddings = text.embed(tokenizer, text.build_encoder(tokenizer), list(row))
    rows = {name: torch.tensor([row[caption] for caption in group]) for name, group in captions.items()}
    torch.save({"embeddings": embeddings, **rows}, folder / "embeddings.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=95, help="of the transformer's training")
    parser.add_argument("--vae-minutes", type=float, default=28, help="of the VAE's, at the same time")
    parser.add_argument("--out", type=Path, required=True, help="where data, checkpoints and plots go")
    parser.add_argument("--mflux-python", default=sys.executable, help="interpreter that has mflux, if not this one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.out)
    script = Path(__file__).with_name("vae.py")
    command = [sys.executable, str(script), "--minutes", str(options.vae_minutes), "--out", str(options.out)]
    companion = subprocess.Popen(command, start_new_session=True)
    transformer.train(options.out, options.minutes, companion)
    if companion.wait():
        raise SystemExit("the VAE's training failed")
    export.export(options.out)
    convert = [options.mflux_python, export.__file__, "mflux", "--out", str(options.out)]
    subprocess.run([*convert, "--to", str(options.out / data.MODEL.name)], check=True)


if __name__ == "__main__":
    main()
