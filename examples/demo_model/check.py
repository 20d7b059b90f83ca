"""How often does a picture show what its caption says? Each is compared with every thing at every place; nothing is learned.

    python check.py [--steps 50] [--guidance 4] [--seeds 2] [--wide] [--save grid.png]

Needs mflux and the plugin, as do all pictures here; $MFLUX_TEACACHE_DEMO names another copy of the model. The things lie
beside the model in things.npz, in rough outline: `python check.py things --out DIR` writes it from the fetched pictures.
"""

import argparse
import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from data import CELL, COLORS, MIRRORED, MODEL, SIDE, SQUARE, THINGS, WIDE, World, caption, fetch, side_by_side
from skimage.color import rgb2lab

TILE = 4  # pixels that are averaged before anything is compared
FILE = MODEL / "things.npz"
GROUPS = ("benchmark", "calibration")  # of prompts.toml: every held-out caption once
LEAST = 20.0  # dB between a picture and the nearest one that data.py could have drawn, for the thing to count as drawn


@dataclass(frozen=True)
class Seen:
    """The nearest thing and ground, and how near a picture of just these comes, in dB."""

    thing: str
    color: str
    psnr: float

    def __str__(self) -> str:
        return f"{caption(self.thing, self.color)}, {self.psnr:.1f} dB"


def averaged(picture: np.ndarray) -> np.ndarray:
    """One value for TILE x TILE pixels: (height / TILE, width / TILE, channels)."""
    height, width, channels = picture.shape
    return picture.reshape(height // TILE, TILE, width // TILE, TILE, channels).mean((1, 3))


def write_things(folder: Path) -> None:
    """Write FILE: red, green, blue, multiplied with the cover, and the cover itself, (things, tiles, tiles, 4) uint8."""
    things = World(fetch(folder)).things.values()
    layers = [averaged(np.concatenate([thing.color, 255 * thing.cover], axis=-1)) for thing in things]
    np.savez_compressed(FILE, things=np.stack(layers).round().astype(np.uint8))


@cache
def things() -> tuple[list[str], np.ndarray]:
    """Names and layers (n, tiles, tiles, 4), 0 to 1, of the things and of those that can be mirrored."""
    layers = np.load(FILE)["things"] / 255
    mirrored = [index for index, name in enumerate(THINGS) if name in MIRRORED]
    names = [*THINGS, *(list(THINGS)[index] for index in mirrored)]
    return names, np.concatenate([layers, layers[mirrored, :, ::-1]])


def describe(picture: np.ndarray) -> Seen:
    """What a picture (height, width, 3) uint8 shows.

    For every thing and place a smooth ground, quadratic in the place, is fitted to what the thing leaves free; what is
    left of the picture then decides.
    """
    shown = averaged(picture / 255)
    height, width, _ = shown.shape
    names, layers = things()
    y, x = (axis.ravel() / height - 0.5 for axis in np.mgrid[:height, :width])
    curves = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    side, step = SIDE // TILE, CELL // TILE
    best, found = math.inf, (0, np.zeros(3))
    for top, left in product(range(0, height - side + 1, step), range(0, width - side + 1, step)):
        placed = np.zeros((len(layers), height, width, 4))
        placed[:, top : top + side, left : left + side] = layers
        color, cover = placed.reshape(len(layers), -1, 4)[..., :3], placed.reshape(len(layers), -1, 4)[..., 3:]
        free = (1 - cover) * curves
        behind = shown.reshape(-1, 3) - color
        fitted = np.linalg.solve(free.mT @ free, free.mT @ behind)
        errors = np.square(behind - free @ fitted).mean((1, 2))
        if errors.min() < best:
            best, index = errors.min(), int(errors.argmin())
            found = index, (free[index] @ fitted[index]).sum(0) / (1 - cover[index]).sum()
    index, ground = found
    palette = rgb2lab(np.array(list(COLORS.values()))[None] / 255)[0]
    nearest = np.linalg.norm(rgb2lab(ground.clip(0, 1)[None, None])[0, 0] - palette, axis=-1).argmin()
    return Seen(names[index], list(COLORS)[nearest], -10 * math.log10(max(best, 1e-10)))


def matches(prompt: str, seen: Seen) -> bool:
    """The thing and the ground that the caption names, and drawn well enough."""
    return caption(seen.thing, seen.color) == prompt and seen.psnr >= LEAST


def generate(
    model: Any, prompt: str, seed: int, steps: int, guidance: float, size: tuple[int, int] = SQUARE
) -> np.ndarray:
    """One picture (height, width, 3) uint8."""
    made = model.generate_image(
        seed=seed, prompt=prompt, num_inference_steps=steps, height=size[0], width=size[1], guidance=guidance
    )
    return np.asarray(made.image.convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("pictures", "things"), default="pictures")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--groups", nargs="+", default=GROUPS, help="of prompts.toml")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each caption")
    parser.add_argument("--wide", action="store_true", help="128x192 instead of 128x128")
    parser.add_argument("--save", type=Path, help="write the pictures side by side")
    parser.add_argument("--out", type=Path, help="the training's directory, for `things`")
    options = parser.parse_args()
    if options.what == "things":
        write_things(options.out)
        return
    import mflux_demo_model as demo_model

    model, right, pictures = demo_model.load(), 0, []
    entries = [entry for group in options.groups for entry in demo_model.prompts(group)]
    for added, entry in product(range(0, 1000 * options.seeds, 1000), entries):
        size = WIDE if options.wide else SQUARE
        picture = generate(model, entry["prompt"], entry["seed"] + added, options.steps, options.guidance, size)
        seen = describe(picture)
        right += matches(entry["prompt"], seen)
        pictures.append(picture)
        print(f"{'ok ' if matches(entry['prompt'], seen) else 'NO '} {entry['prompt']}  ->  {seen}", flush=True)
    print(f"{right} of {len(pictures)}")
    if options.save:
        side_by_side(pictures).save(options.save)


if __name__ == "__main__":
    main()
