"""Does each benchmark picture show what its caption says? Named by colour and outline alone; nothing is learned.

    python check.py [--steps 50] [--guidance 4] [--save grid.png]

Needs mflux and the plugin, as do all pictures here; $MFLUX_TEACACHE_DEMO names another copy of the model.
"""

import argparse
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import COLORS, SHAPES, SIZE, outline
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.draw import polygon2mask

COUNTS = {"a": 1, "two": 2, "three": 3}
TEMPLATE = 64  # pixels per side of the outlines that components are compared with
ANGLES = np.linspace(-0.45, 0.45, 13)  # radians
SMALLEST = 90  # pixels of a component that counts
LEAST_SHARE = 0.2  # of a region, for a colour to be one of its stripes
LEAST_OVERLAP = 0.7  # intersection over union with the best outline, else "blob"


@dataclass(frozen=True)
class Thing:
    """A shape or the background: its colours (two if striped) and its name."""

    colors: frozenset[str]
    name: str


def named_colors(picture: np.ndarray) -> np.ndarray:
    """The index in COLORS nearest to each pixel, in CIELAB: (height, width)."""
    palette = rgb2lab(np.array(list(COLORS.values()))[None] / 255)[0]
    return np.linalg.norm(rgb2lab(picture / 255)[..., None, :] - palette, axis=-1).argmin(-1)


def main_colors(labels: np.ndarray) -> frozenset[int]:
    """The one or two colours that cover most of these pixels."""
    ranked = Counter(labels.tolist()).most_common(2)
    return frozenset(color for color, count in ranked if count >= LEAST_SHARE * labels.size)


def normalized(mask: np.ndarray) -> np.ndarray:
    """The mask moved to the centre of a TEMPLATE square and scaled to a fixed area."""
    rows, columns = np.nonzero(ndimage.binary_fill_holes(mask))
    scale = math.sqrt(len(rows) / (0.25 * TEMPLATE**2))
    centre = np.array([rows.mean(), columns.mean()])
    grid = np.stack(np.mgrid[:TEMPLATE, :TEMPLATE]) - (TEMPLATE - 1) / 2
    return ndimage.map_coordinates(mask.astype(float), grid * scale + centre[:, None, None], order=1) > 0.5


def outlines() -> dict[str, list[np.ndarray]]:
    """Each shape at several angles, as normalized masks."""
    masks: dict[str, list[np.ndarray]] = {}
    for shape in SHAPES:
        for angle in ANGLES:
            mask = polygon2mask((128, 128), outline(shape, 40, angle)[:, ::-1] + 64)
            if shape == "ring":
                mask &= ~polygon2mask((128, 128), outline(shape, 22, 0)[:, ::-1] + 64)
            masks.setdefault(shape, []).append(normalized(mask))
    return masks


def name_shape(mask: np.ndarray, known: dict[str, list[np.ndarray]]) -> str:
    mask = normalized(mask)
    overlap = {s: max((mask & m).sum() / (mask | m).sum() for m in masks) for s, masks in known.items()}
    best = max(overlap, key=overlap.get)
    return best if overlap[best] >= LEAST_OVERLAP else "blob"


def describe(picture: np.ndarray) -> Counter[Thing]:
    """What a picture (height, width, 3) uint8 shows: its shapes and its background."""
    names, known, labels = list(COLORS), outlines(), named_colors(picture)
    edge = np.ones(labels.shape, bool)
    edge[4:-4, 4:-4] = False
    ground = main_colors(labels[edge])
    things = Counter([Thing(frozenset(names[c] for c in ground), "background")])
    figure = ndimage.binary_opening(~np.isin(labels, list(ground)), iterations=2)
    components, count = ndimage.label(figure)
    for component in range(1, count + 1):
        mask = components == component
        if mask.sum() >= SMALLEST:
            inner = ndimage.binary_erosion(mask, iterations=1)
            things[Thing(frozenset(names[c] for c in main_colors(labels[inner])), name_shape(mask, known))] += 1
    return things


def parse(caption: str) -> list[tuple[int, bool, str, str]]:
    """(count, striped, colour, name) for every shape and for the background."""
    figures, ground = caption.split(" on ")
    parts = []
    for phrase in (*figures.split(" and "), ground):
        *words, color, name = phrase.split()
        count = COUNTS[words[0]]
        parts.append((count, "striped" in words, color, name.removesuffix("s") if count > 1 else name))
    return parts


def matches(caption: str, things: Counter[Thing]) -> bool:
    """Everything named is there, with its count, colour and stripes, and nothing else is."""
    left = Counter(things)
    for count, striped, color, name in parse(caption):
        for _ in range(count):
            fits = (t for t in left if t.name == name and color in t.colors and (len(t.colors) == 2) == striped)
            found = next(fits, None)
            if found is None:
                return False
            left[found] -= 1
            left += Counter()
    return not left


def spoken(things: Counter[Thing]) -> str:
    return ", ".join(f"{count} {'/'.join(sorted(t.colors))} {t.name}" for t, count in things.items())


def generate(model: Any, prompt: str, seed: int, steps: int, guidance: float) -> np.ndarray:
    """One picture (SIZE, SIZE, 3) uint8."""
    made = model.generate_image(
        seed=seed, prompt=prompt, num_inference_steps=steps, height=SIZE, width=SIZE, guidance=guidance
    )
    return np.asarray(made.image.convert("RGB"))


def main() -> None:
    from mflux_teacache_plugin import demo_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--group", default="benchmark", help="of prompts.toml")
    parser.add_argument("--save", type=Path, help="write the pictures side by side")
    options = parser.parse_args()
    model, right, pictures = demo_model.load(), 0, []
    entries = demo_model.prompts(options.group)
    for entry in entries:
        picture = generate(model, entry["prompt"], entry["seed"], options.steps, options.guidance)
        things = describe(picture)
        good = matches(entry["prompt"], things)
        right += good
        pictures.append(picture)
        print(f"{'ok ' if good else 'NO '} {entry['prompt']}  ->  {spoken(things)}", flush=True)
    print(f"{right} of {len(entries)}")
    if options.save:
        Image.fromarray(np.concatenate(pictures, axis=1)).save(options.save)


if __name__ == "__main__":
    main()
