"""Pictures with captions: a thing in 3D on a softly shaded ground of one colour, drawn on the fly.

The things are Microsoft's Fluent emoji (MIT), as the npm package @lobehub/fluent-emoji-3d holds them. A caption names
the thing and the ground's colour. Where the thing stands, which way it looks if its sides differ, where the light falls
and the ground's shade are left open, so that the noise has to decide them. Places lie on the grid of the transformer's
tokens, so that each token shows one of a few tiles, which a small model learns.
"""

import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
THINGS = {  # code points: the names of the package's files
    "fox": "1f98a",
    "panda": "1f43c",
    "frog": "1f438",
    "tiger": "1f42f",
    "lion": "1f981",
    "koala": "1f428",
    "rabbit": "1f430",
    "pig": "1f437",
    "monkey": "1f435",
    "penguin": "1f427",
    "owl": "1f989",
    "octopus": "1f419",
    "whale": "1f433",
    "crab": "1f980",
    "turtle": "1f422",
    "butterfly": "1f98b",
    "snail": "1f40c",
    "chick": "1f424",
    "unicorn": "1f984",
    "robot": "1f916",
    "ghost": "1f47b",
    "alien": "1f47d",
    "skull": "1f480",
    "pumpkin": "1f383",
    "rose": "1f339",
    "sunflower": "1f33b",
    "cactus": "1f335",
    "mushroom": "1f344",
    "tree": "1f333",
    "apple": "1f34e",
    "strawberry": "1f353",
    "watermelon": "1f349",
    "pineapple": "1f34d",
    "lemon": "1f34b",
    "cherry": "1f352",
    "avocado": "1f951",
    "hamburger": "1f354",
    "pizza": "1f355",
    "doughnut": "1f369",
    "cupcake": "1f9c1",
    "rocket": "1f680",
    "car": "1f697",
    "bus": "1f68c",
    "castle": "1f3f0",
    "balloon": "1f388",
    "teapot": "1fad6",
    "crown": "1f451",
    "globe": "1f30d",
}
MIRRORED = {  # things whose sides differ: drawn either way
    *("butterfly", "bus", "car", "chick", "pineapple", "rocket", "snail", "teapot", "turtle", "unicorn", "watermelon"),
    "whale",
}
COLORS = {
    "red": (205, 60, 60),
    "orange": (240, 150, 60),
    "yellow": (245, 215, 95),
    "green": (95, 175, 105),
    "blue": (75, 120, 215),
    "purple": (145, 95, 190),
    "pink": (245, 165, 200),
    "white": (238, 238, 240),
}

SQUARE, WIDE = (128, 128), (128, 192)  # height and width of a picture in pixels
SIDE, CELL = 96, 16  # pixels per side of a thing, and between its possible places
MARGIN = max(*SQUARE, *WIDE) - SIDE + CELL  # enough around a thing to cut any picture out
SHADE, SHADE_BLUR, SHADE_OFFSET = 0.3, 5, (4, 3)  # of the soft shadow below and beside a thing
BRIGHTEST, FALL = 1.12, 0.38  # of a ground in its light, and how much darker a picture's height away
COLOR_SPREAD = 6.0  # of a ground's shade around its colour, in grey levels

MODEL = Path(__file__).with_name("flux2-klein-base-demo")  # what ships
PROMPTS = MODEL / "prompts.toml"
PER_ROW = 8  # pictures side by side
UNSEEN_SEED = 1  # of the pictures for held-out figures; no training draws from it


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"  # not u: a unicorn


def caption(thing: str, color: str) -> str:
    return f"{with_article(thing)} on {with_article(color)} background"


def pairs() -> list[tuple[str, str]]:
    """Every thing on every ground."""
    return list(product(THINGS, COLORS))


def held_out() -> frozenset[str]:
    """The captions of prompts.toml, which no training picture may carry."""
    return frozenset(entry["prompt"] for group in tomllib.loads(PROMPTS.read_text()).values() for entry in group)


def fetch(folder: Path) -> Path:
    """The emoji pictures, 256x256 with transparency: fetched into the folder with npm, if they are not there yet."""
    pictures = folder / "package" / "assets"
    if not pictures.exists():
        packed = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return pictures


@dataclass(frozen=True)
class Cutout:
    """A thing without a ground."""

    color: np.ndarray  # (SIDE, SIDE, 3), multiplied with what it covers, 0 to 255
    cover: np.ndarray  # (SIDE, SIDE, 1), 0 to 1

    @cached_property
    def mirrored(self) -> "Cutout":
        return Cutout(self.color[:, ::-1], self.cover[:, ::-1])

    @cached_property
    def shadow(self) -> np.ndarray:
        """Its blurred cover with a margin of MARGIN all around."""
        sheet = Image.fromarray(np.pad(255 * self.cover[..., 0], MARGIN).astype(np.uint8))
        return np.asarray(sheet.filter(ImageFilter.GaussianBlur(SHADE_BLUR)), np.float32) / 255


def cut_out(file: Path) -> Cutout:
    """Scaled so that the thing's longer side fills SIDE; it stands in the middle, on the lower edge."""
    picture = Image.open(file).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    square = Image.new("RGBA", (max(picture.size),) * 2)
    square.paste(picture, ((square.width - picture.width) // 2, square.height - picture.height))
    values = np.asarray(square, np.float32) / 255
    values[..., :3] *= values[..., 3:]
    channels = [Image.fromarray(values[..., c]).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for c in range(4)]
    values = np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 1)
    return Cutout(255 * values[..., :3], values[..., 3:])


class World:
    """All pictures that there are, but those with a forbidden caption; places lie so many pixels apart."""

    def __init__(self, pictures: Path, forbidden: frozenset[str] = frozenset(), step: int = CELL):
        self.things = {name: cut_out(pictures / f"{code}.webp") for name, code in THINGS.items()}
        self.allowed = [pair for pair in pairs() if caption(*pair) not in forbidden]
        self.step = step

    def draw(self, thing: str, color: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A picture (height, width, 3) uint8."""
        picture = ground(color, rng, size)
        cutout = self.things[thing]
        if thing in MIRRORED and rng.random() < 0.5:
            cutout = cutout.mirrored
        top, left = (self.step * int(rng.integers((length - SIDE) // self.step + 1)) for length in size)
        down, right = MARGIN - top - SHADE_OFFSET[0], MARGIN - left - SHADE_OFFSET[1]
        picture *= 1 - SHADE * cutout.shadow[down:, right:][: size[0], : size[1], None]
        covered = picture[top : top + SIDE, left : left + SIDE]
        covered *= 1 - cutout.cover
        covered += cutout.color
        return np.clip(picture, 0, 255).round().astype(np.uint8)

    def render(
        self, count: int, seed: int | tuple[int, ...], size: tuple[int, int] = SQUARE
    ) -> tuple[np.ndarray, list[str]]:
        """Pictures (count, height, width, 3) uint8 and their captions."""
        rng = np.random.default_rng(seed)
        chosen = [self.allowed[rng.integers(len(self.allowed))] for _ in range(count)]
        return np.stack([self.draw(*pair, rng, size) for pair in chosen]), [caption(*pair) for pair in chosen]


def ground(color: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A wall of about the colour, lit from somewhere: (height, width, 3) float32."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    across, down = rng.uniform(0.15, 0.85, 2)
    distance = np.hypot(x - across * width / height, y - down) * (height / width) ** 0.5
    shade = np.float32(COLORS[color]) + rng.normal(0, COLOR_SPREAD, 3).astype(np.float32)
    return shade * (BRIGHTEST - FALL * distance)[..., None]


def side_by_side(pictures: list[np.ndarray]) -> Image.Image:
    """Rows of PER_ROW; what is left of the last one stays white."""
    pictures = pictures + [np.full_like(pictures[0], 255)] * (-len(pictures) % PER_ROW)
    rows = [np.concatenate(pictures[at : at + PER_ROW], axis=1) for at in range(0, len(pictures), PER_ROW)]
    return Image.fromarray(np.concatenate(rows))
