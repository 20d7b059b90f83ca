"""The small input pictures, drawn on the spot and the same every time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Width and height of the pictures that the cases read and make.
SIDE = 64


@dataclass(frozen=True)
class Pictures:
    """Paths of the input pictures."""

    photo: Path  #: a colour gradient with a square in it
    other: Path  #: another one, for pipelines that take two
    mask: Path  #: white where a fill pipeline may paint
    depth: Path  #: a grey ramp


def write_pictures(folder: Path) -> Pictures:
    """Draw the pictures into `folder`."""
    from PIL import Image

    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    across, down = np.broadcast_to(ramp, (SIDE, SIDE)), np.broadcast_to(ramp[:, None], (SIDE, SIDE))
    square = np.zeros((SIDE, SIDE), dtype=np.uint8)
    square[SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 255
    photo = np.stack([across, down, square], axis=-1)
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, pixels: np.ndarray) -> Path:
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
        return folder / name

    return Pictures(
        photo=save("photo.png", photo),
        other=save("other.png", 255 - photo[::-1]),
        mask=save("mask.png", np.stack([square] * 3, axis=-1)),
        depth=save("depth.png", np.stack([across] * 3, axis=-1)),
    )
