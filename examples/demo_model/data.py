"""Procedural pictures with captions: flat coloured shapes on a flat or striped background.

A caption names colours, shapes, counts and whether something is striped. Everything else (position, size, rotation,
the stripes' second colour, angle, period and phase) is left open, so that the noise has to decide it.
"""

import math
import tomllib
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

SIZE = 128  # pixels per side
OVERSAMPLING = 3  # pictures are drawn this much larger and averaged down, for anti-aliased edges

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

STARTER_RADII, STARTER_OFFSET = (34, 48), 10  # of the first lessons: one large shape near the centre, pixels
KINDS = ("one", "one striped", "one on stripes", "two", "three", "pair")  # of scene; the curriculum weighs them
SHARES = (0.44, 0.11, 0.11, 0.12, 0.10, 0.12)  # of each kind in the data set
RADII = {1: (24, 44), 2: (19, 29), 3: (15, 22)}  # pixels, by the number of shapes in the picture

MODEL = Path(__file__).with_name("flux2-klein-base-demo")  # what ships
PROMPTS = MODEL / "prompts.toml"


def held_out() -> frozenset[str]:
    """The captions of prompts.toml, which no training picture may carry."""
    return frozenset(entry["prompt"] for group in tomllib.loads(PROMPTS.read_text()).values() for entry in group)


def outline(shape: str, radius: float, angle: float) -> np.ndarray:
    """The shape's polygon around the origin, (points, 2) in pixels; y points down."""
    if shape in ("circle", "ring"):
        turns, lengths = np.linspace(0, 2 * math.pi, 72, endpoint=False), 1.0
    elif shape == "square":
        turns, lengths = math.pi / 4 + np.arange(4) * math.pi / 2, 1.1
    elif shape == "triangle":
        turns, lengths = -math.pi / 2 + np.arange(3) * 2 * math.pi / 3, 1.15
    elif shape == "star":
        turns, lengths = -math.pi / 2 + np.arange(10) * math.pi / 5, np.tile([1.2, 0.5], 5)
    else:
        t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
        x, y = 16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        turns, lengths = np.arctan2(y, x), np.hypot(x, y) / 15.5
    turns = turns + angle
    return radius * np.stack([lengths * np.cos(turns), lengths * np.sin(turns)], axis=1)


class Painter:
    """One picture being drawn, OVERSAMPLING times as large as it will be."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.side = SIZE * OVERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side))

    def tone(self, color: str) -> tuple[int, ...]:
        """The named colour, a little off."""
        return tuple(int(v) for v in np.clip(np.asarray(COLORS[color]) + self.rng.normal(0, 5, 3), 0, 255))

    def paper(self, color: str, second: str | None) -> Image.Image:
        """A full-size sheet in one colour, or with stripes of a second one."""
        sheet = Image.new("RGB", (self.side, self.side), self.tone(color))
        if second:
            period, angle = self.rng.uniform(11, 18) * OVERSAMPLING, self.rng.uniform(0, math.pi)
            along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
            pen, tone, half = ImageDraw.Draw(sheet), self.tone(second), 0.21 * period
            for offset in np.arange(-self.side, self.side, period) + self.rng.uniform(0, period):
                middle = self.side / 2 + across * offset
                ends = [middle - along * self.side, middle + along * self.side]
                corners = [
                    ends[0] - across * half,
                    ends[1] - across * half,
                    ends[1] + across * half,
                    ends[0] + across * half,
                ]
                pen.polygon([tuple(c) for c in corners], fill=tone)
        return sheet

    def paste(self, sheet: Image.Image, shape: str, x: float, y: float, radius: float) -> None:
        """Cut the shape out of the sheet and put it at (x, y), in pixels of the final picture."""
        angle = self.rng.uniform(-0.3, 0.3)
        mask = Image.new("L", self.image.size, 0)
        pen = ImageDraw.Draw(mask)
        centre = np.array([x, y])
        pen.polygon([tuple(p) for p in (outline(shape, radius, angle) + centre) * OVERSAMPLING], fill=255)
        if shape == "ring":
            pen.polygon([tuple(p) for p in (outline(shape, 0.55 * radius, 0) + centre) * OVERSAMPLING], fill=0)
        self.image.paste(sheet, (0, 0), mask)

    def finish(self) -> np.ndarray:
        return np.asarray(self.image.reduce(OVERSAMPLING))


def places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Centres and radii (x, y, r) of shapes that do not touch, in pixels."""
    while True:
        chosen: list[tuple[float, float, float]] = []
        for _ in range(100):
            r = rng.uniform(*RADII[count])
            x, y = rng.uniform(1.1 * r, SIZE - 1.1 * r, 2)
            if all(math.hypot(x - u, y - v) > 1.15 * (r + q) for u, v, q in chosen):
                chosen.append((x, y, r))
            if len(chosen) == count:
                return chosen


def draw(seed: int, forbidden: frozenset[str], starter: bool = False) -> tuple[np.ndarray, str, int]:
    """Picture (SIZE, SIZE, 3) uint8, caption, and index of its kind; a starter is a plain one, large and centred."""
    rng = np.random.default_rng(seed)
    kind = 0 if starter else int(rng.choice(len(KINDS), p=SHARES))
    name = KINDS[kind]
    while True:
        ground, first, other, spare = (str(c) for c in rng.permutation(list(COLORS))[:4])
        shape, second_shape = (str(s) for s in rng.choice(SHAPES, 2, replace=False))
        backdrop = f"on a {'striped ' if name == 'one on stripes' else ''}{ground} background"
        if name == "pair":
            caption = f"a {first} {shape} and a {other} {second_shape} {backdrop}"
        elif name in ("two", "three"):
            caption = f"{name} {first} {shape}s {backdrop}"
        else:
            caption = f"a {'striped ' if name == 'one striped' else ''}{first} {shape} {backdrop}"
        if caption not in forbidden:
            break
    painter = Painter(rng)
    painter.image = painter.paper(ground, spare if name == "one on stripes" else None)
    count = {"two": 2, "pair": 2, "three": 3}.get(name, 1)
    spots = places(rng, count)
    if starter:
        spots = [(*(SIZE / 2 + rng.uniform(-STARTER_OFFSET, STARTER_OFFSET, 2)), rng.uniform(*STARTER_RADII))]
    for index, place in enumerate(spots):
        paired = name == "pair" and index == 1
        sheet = painter.paper(other if paired else first, spare if name == "one striped" else None)
        painter.paste(sheet, second_shape if paired else shape, *place)
    return painter.finish(), caption, kind


def render(
    count: int, first_seed: int, starter: bool = False, processes: int = 2
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Pictures (count, SIZE, SIZE, 3) uint8, their captions, and kinds (count,)."""
    pictures, captions, kinds = np.empty((count, SIZE, SIZE, 3), np.uint8), [], np.empty(count, np.int64)
    painted = partial(draw, forbidden=held_out(), starter=starter)
    with Pool(processes) as pool:
        results = pool.imap(painted, range(first_seed, first_seed + count), chunksize=64)
        for index, (picture, caption, kind) in enumerate(tqdm(results, "pictures", count, mininterval=5)):
            pictures[index], kinds[index] = picture, kind
            captions.append(caption)
    return pictures, captions, kinds
