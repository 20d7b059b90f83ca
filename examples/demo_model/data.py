"""Procedural pictures with captions: flat coloured shapes on a flat, striped, checked or dotted background.

Everything lies on the grid of the transformer's tokens, so that each of them shows one of a few tiles, which a small
model learns. A caption names count, colour and shape, the background's pattern and mostly its colour. Everything else
(where the shapes lie, their size, the pattern's second colour, direction and phase, the place of each dot) is left
open, so that the noise has to decide it.
"""

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE, CELL = 128, 16  # pixels per side of a picture, and of a token
CELLS = SIZE // CELL
HALF = CELL // 2
OVERSAMPLING = 8  # masks are drawn this much larger and averaged down, for anti-aliased edges

COLORS = {
    "red": (215, 35, 35),
    "yellow": (250, 220, 40),
    "green": (35, 150, 60),
    "cyan": (70, 215, 225),
    "blue": (40, 65, 205),
    "pink": (250, 130, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
COUNTS = ("a", "two", "three")
PATTERNS = ("plain", "striped", "checked", "dotted")

COUNT_SHARES = (0.45, 0.30, 0.25)
PATTERN_SHARES = (0.40, 0.18, 0.14, 0.28)
OPEN_SHARE = 0.3  # of patterned backgrounds whose colour the caption leaves out

MODEL = Path(__file__).with_name("flux2-klein-base-demo")  # what ships
PROMPTS = MODEL / "prompts.toml"
UNSEEN, UNSEEN_SEED = 256, 1  # pictures held out


@dataclass(frozen=True)
class Places:
    """Where shapes can lie, in cells: their sides by the number of shapes, the grid of their corners, and the gap."""

    sides: dict[int, tuple[int, ...]]
    stride: int
    gap: int


QUARTERS = Places({1: (4,), 2: (4,), 3: (4,)}, stride=4, gap=0)  # what the transformer learns
ANYWHERE = Places({1: (3, 4, 5), 2: (3,), 3: (3,)}, stride=1, gap=1)  # what the VAE must be able to show


@dataclass(frozen=True)
class Scene:
    """What a caption says; without a ground, the background's colour is open."""

    count: str
    color: str
    shape: str
    pattern: str
    ground: str | None

    @property
    def caption(self) -> str:
        figure = f"{self.count} {self.color} {self.shape}{'' if self.count == 'a' else 's'}"
        backdrop = [word for word in (self.pattern, self.ground) if word and word != "plain"]
        return " ".join([figure, "on a", *backdrop, "background"])


def scenes() -> Iterator[Scene]:
    """Every scene that there is."""
    for count, color, shape, pattern, ground in product(COUNTS, COLORS, SHAPES, PATTERNS, (*COLORS, None)):
        if ground != color and (ground or pattern != "plain"):
            yield Scene(count, color, shape, pattern, ground)


def held_out() -> frozenset[str]:
    """The captions of prompts.toml, which no training picture may carry."""
    return frozenset(entry["prompt"] for group in tomllib.loads(PROMPTS.read_text()).values() for entry in group)


def choose(rng: np.random.Generator, forbidden: frozenset[str]) -> Scene:
    """A random scene whose caption is not forbidden."""
    while True:
        count, pattern = str(rng.choice(COUNTS, p=COUNT_SHARES)), str(rng.choice(PATTERNS, p=PATTERN_SHARES))
        color, ground = (str(c) for c in rng.permutation(list(COLORS))[:2])
        left_open = pattern != "plain" and rng.random() < OPEN_SHARE
        scene = Scene(count, color, str(rng.choice(SHAPES)), pattern, None if left_open else ground)
        if scene.caption not in forbidden:
            return scene


def outline(shape: str) -> np.ndarray:
    """The shape's polygon in the square from -1 to 1, (points, 2); y points down."""
    turns = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    if shape == "square":
        return 0.85 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    if shape == "triangle":
        return np.array([[0, -0.95], [0.95, 0.85], [-0.95, 0.85]])
    if shape == "star":
        turns = -math.pi / 2 + np.arange(10) * math.pi / 5
        lengths = np.tile([1.0, 0.42], 5)[:, None]
        return lengths * np.stack([np.cos(turns), np.sin(turns)], axis=1) + (0, 0.05)
    if shape == "heart":
        curve = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        return np.stack([16 * np.sin(turns) ** 3, -curve - 2.5], axis=1) / 17
    return 0.95 * np.stack([np.cos(turns), np.sin(turns)], axis=1)


@cache
def mask(shape: str, side: int) -> np.ndarray:
    """How much of each pixel the shape covers, in a square of so many pixels: (side, side)."""
    sheet = Image.new("L", (side * OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(sheet)
    for scale, fill in ((1.0, 255), (0.5, 0)) if shape == "ring" else ((1.0, 255),):
        pen.polygon([tuple(point) for point in (scale * outline(shape) + 1) / 2 * sheet.width], fill=fill)
    return np.asarray(sheet.reduce(OVERSAMPLING), np.float32) / 255


@cache
def repeated(pattern: str) -> list[np.ndarray]:
    """Where the second colour of a striped or checked background can be: masks (SIZE, SIZE)."""
    fine = (np.arange(SIZE * OVERSAMPLING) + 0.5) / OVERSAMPLING
    y, x = np.meshgrid(fine, fine, indexing="ij")
    if pattern == "striped":
        sheets = [(along + phase) % CELL < HALF for along in (x, y, x + y, x - y) for phase in (0, HALF)]
    else:
        sheets = [(x // side + y // side + phase) % 2 for side in (HALF, CELL) for phase in (0, 1)]
    blocks = (SIZE, OVERSAMPLING, SIZE, OVERSAMPLING)
    return [sheet.reshape(blocks).mean((1, 3), dtype=np.float32) for sheet in sheets]


def dots(rng: np.random.Generator) -> np.ndarray:
    """Where the second colour of a dotted background is: a dot in each cell, in one of its four quarters."""
    quarters = np.zeros((CELLS * CELLS, 4, HALF, HALF), np.float32)
    quarters[np.arange(CELLS * CELLS), rng.integers(4, size=CELLS * CELLS)] = mask("circle", HALF)
    return quarters.reshape(CELLS, CELLS, 2, 2, HALF, HALF).transpose(0, 2, 4, 1, 3, 5).reshape(SIZE, SIZE)


@cache
def layouts(count: int, side: int, stride: int, gap: int) -> list[tuple[tuple[int, int], ...]]:
    """Every way to place so many shapes: (row, column) of their first cells."""
    free = CELLS - side
    corners = product(range(0, free + 1, stride), repeat=2)
    return [
        chosen
        for chosen in combinations(corners, count)
        if all(max(abs(a - c), abs(b - d)) >= side + gap for (a, b), (c, d) in combinations(chosen, 2))
    ]


def draw(scene: Scene, rng: np.random.Generator, places: Places) -> np.ndarray:
    """A picture of the scene, (SIZE, SIZE, 3) uint8."""
    free = [color for color in rng.permutation(list(COLORS)) if color not in (scene.color, scene.ground)]
    ground, second, color = (np.float32(COLORS[name]) for name in (scene.ground or free.pop(), free.pop(), scene.color))
    picture = np.tile(ground, (SIZE, SIZE, 1))
    if scene.pattern != "plain":
        choices = repeated(scene.pattern) if scene.pattern != "dotted" else [dots(rng)]
        picture += choices[rng.integers(len(choices))][..., None] * (second - ground)
    count = COUNTS.index(scene.count) + 1
    side = int(rng.choice(places.sides[count]))
    choices = layouts(count, side, places.stride, places.gap)
    for row, column in choices[rng.integers(len(choices))]:
        part = picture[row * CELL : (row + side) * CELL, column * CELL : (column + side) * CELL]
        part += mask(scene.shape, side * CELL)[..., None] * (color - part)
    return picture.round().astype(np.uint8)


def render(
    count: int, seed: int | tuple[int, ...], forbidden: frozenset[str], places: Places
) -> tuple[np.ndarray, list[str]]:
    """Pictures (count, SIZE, SIZE, 3) uint8 and their captions."""
    rng = np.random.default_rng(seed)
    chosen = [choose(rng, forbidden) for _ in range(count)]
    return np.stack([draw(scene, rng, places) for scene in chosen]), [scene.caption for scene in chosen]


def unseen() -> tuple[np.ndarray, list[str]]:
    """Pictures and captions for held-out figures; no training draws from this seed."""
    return render(UNSEEN, UNSEEN_SEED, frozenset(), QUARTERS)
