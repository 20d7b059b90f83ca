"""Does each benchmark picture show what its caption says? Named by colour, outline, count and pattern; nothing is learned.

    python check.py [--steps 50] [--guidance 4] [--save grid.png]

Needs mflux and the plugin, as do all pictures here; $MFLUX_TEACACHE_DEMO names another copy of the model.
"""

import argparse
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from data import CELL, CELLS, COLORS, COUNTS, HALF, PATTERNS, SHAPES, SIZE, mask, repeated
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

PER_ROW = 8  # pictures that --save writes side by side
TEMPLATE = 64  # pixels per side of the outlines that components are compared with
SMALLEST = 90  # pixels of a component that counts
EDGE = 4  # pixels of the picture's border that tell the background's colours
LEAST_SHARE = 0.07  # of the border, for a colour to be one of the background's two
LEAST_OVERLAP = 0.75  # intersection over union with the best outline, else "blob"
LEAST_AGREEMENT = 0.85  # of the background's pixels with the best pattern, else "plain"


@dataclass(frozen=True)
class Thing:
    """A shape or the background: the colours that it may be called by, and its name."""

    colors: frozenset[str]
    name: str


def named_colors(picture: np.ndarray) -> np.ndarray:
    """The index in COLORS nearest to each pixel, in CIELAB: (height, width)."""
    palette = rgb2lab(np.array(list(COLORS.values()))[None] / 255)[0]
    return np.linalg.norm(rgb2lab(picture / 255)[..., None, :] - palette, axis=-1).argmin(-1)


def normalized(figure: np.ndarray) -> np.ndarray:
    """The mask moved to the centre of a TEMPLATE square and scaled to a fixed area."""
    rows, columns = np.nonzero(ndimage.binary_fill_holes(figure))
    scale = math.sqrt(len(rows) / (0.25 * TEMPLATE**2))
    centre = np.array([rows.mean(), columns.mean()])
    grid = np.stack(np.mgrid[:TEMPLATE, :TEMPLATE]) - (TEMPLATE - 1) / 2
    return ndimage.map_coordinates(figure.astype(float), grid * scale + centre[:, None, None], order=1) > 0.5


@cache
def outlines() -> dict[str, np.ndarray]:
    """Each shape as a normalized mask."""
    return {shape: normalized(np.pad(mask(shape, 5 * CELL), 1) > 0.5) for shape in SHAPES}


def name_shape(figure: np.ndarray) -> str:
    seen = normalized(figure)
    overlap = {shape: (seen & known).sum() / (seen | known).sum() for shape, known in outlines().items()}
    best = max(overlap, key=overlap.get)
    return best if overlap[best] >= LEAST_OVERLAP else "blob"


def name_pattern(second: np.ndarray, visible: np.ndarray) -> str:
    """Of a background, from where it shows its second colour and where no shape covers it, (SIZE, SIZE) each."""
    agreement = {
        pattern: max((second == (sheet > 0.5))[visible].mean() for sheet in repeated(pattern))
        for pattern in ("striped", "checked")
    }
    quarters = np.zeros((2, 2, CELL, CELL), bool)
    for row, column in np.ndindex(2, 2):
        quarters[row, column, row * HALF :, column * HALF :][:HALF, :HALF] = mask("circle", HALF) > 0.5
    cells, shown = (
        m.reshape(CELLS, CELL, CELLS, CELL).swapaxes(1, 2).reshape(-1, CELL, CELL) for m in (second, visible)
    )
    whole = shown.all((1, 2))
    same = (cells[whole, None] == quarters.reshape(4, CELL, CELL)).mean((2, 3))
    agreement["dotted"] = same.max(1).mean() if whole.any() else 0.0
    best = max(agreement, key=agreement.get)
    return best if agreement[best] >= LEAST_AGREEMENT else "plain"


def figures_on(labels: np.ndarray, ground: list[int]) -> np.ndarray:
    """Where something other than the background's colours is, without thin lines: (SIZE, SIZE)."""
    return ndimage.binary_opening(~np.isin(labels, ground), iterations=2)


def describe(picture: np.ndarray) -> Counter[Thing]:
    """What a picture (SIZE, SIZE, 3) uint8 shows: its shapes and its background."""
    names, labels = list(COLORS), named_colors(picture)
    border = np.ones(labels.shape, bool)
    border[EDGE:-EDGE, EDGE:-EDGE] = False
    ranked = Counter(labels[border].tolist()).most_common(2)
    ground = [color for color, count in ranked if count >= LEAST_SHARE * border.sum()]
    pattern = "plain"
    if len(ground) == 2:
        visible = ~ndimage.binary_dilation(figures_on(labels, ground), iterations=3)
        pattern = name_pattern(labels == ground[1], visible)
        if pattern == "plain":  # the border's second colour is a shape's
            ground = ground[:1]
    called = ground[:1] if pattern == "dotted" else ground
    things = Counter([Thing(frozenset(names[color] for color in called), f"{pattern} background")])
    components, count = ndimage.label(figures_on(labels, ground))
    for component in range(1, count + 1):
        figure = components == component
        if figure.sum() >= SMALLEST:
            (color, _), *_ = Counter(labels[ndimage.binary_erosion(figure)].tolist()).most_common(1)
            things[Thing(frozenset([names[color]]), name_shape(figure))] += 1
    return things


def parse(caption: str) -> list[tuple[int, str | None, str]]:
    """(count, colour, name) of the shapes and of the background; no colour where the caption leaves it open."""
    (count, color, shape), (_, *backdrop, _) = (part.split() for part in caption.split(" on "))
    pattern = next((word for word in backdrop if word in PATTERNS), "plain")
    number = COUNTS.index(count) + 1
    ground = next((word for word in backdrop if word in COLORS), None)
    return [(number, color, shape if number == 1 else shape.removesuffix("s")), (1, ground, f"{pattern} background")]


def matches(caption: str, things: Counter[Thing]) -> bool:
    """Everything named is there, with its count, colour and pattern, and nothing else is."""
    left = Counter(things)
    for count, color, name in parse(caption):
        found = next((t for t in left if t.name == name and (color is None or color in t.colors)), None)
        if found is None or left.pop(found) != count:
            return False
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
        pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % PER_ROW)
        rows = [np.concatenate(pictures[start : start + PER_ROW], axis=1) for start in range(0, len(pictures), PER_ROW)]
        Image.fromarray(np.concatenate(rows)).save(options.save)


if __name__ == "__main__":
    main()
