"""A folder in which mflux is tiny."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.tiny import flux1, flux2
from tests.tiny.pictures import Pictures, write_pictures

#: Nothing may be downloaded. Set before mflux is imported: the libraries read these once.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class Tiny:
    """The set-up's folder, input pictures and checkpoints. Made by `tiny_mflux`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures: Pictures = write_pictures(folder / "pictures")

    def checkpoint(self, kind: str) -> Path:
        """The checkpoint of this kind (a key of `flux1.KINDS`, or "flux2"), written on first use."""
        root = self.folder / "checkpoints" / f"tiny-{kind}"
        if not root.exists():
            flux2.write_flux2(root) if kind == "flux2" else flux1.write_flux1(root, kind)
        return root


@contextlib.contextmanager
def tiny_mflux(folder: Path) -> Iterator[Tiny]:
    """Make mflux tiny and offline in this process, and undo it at the end. `folder` must exist."""
    with mock.patch.dict(os.environ, OFFLINE), flux1.installed(folder), flux2.installed():
        yield Tiny(folder)
