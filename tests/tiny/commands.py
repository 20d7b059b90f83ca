"""Run mflux's console scripts in this process."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from unittest import mock

import numpy as np


@dataclass(frozen=True)
class Saved:
    """What a command left behind."""

    path: Path  #: the picture that `--output` names; with several seeds the first one
    paths: tuple[Path, ...]  #: every file the command wrote to that folder, in alphabetical order

    @property
    def pixels(self) -> np.ndarray:
        """The picture as (height, width, 3) bytes."""
        return read_pixels(self.path)


def run_command(name: str, argv: Sequence[str], tmp_path: Path) -> Saved:
    """Run the real `main()` of mflux's console script `name` and return what it saved.

    Without `--output` the picture goes to a new folder under `tmp_path`. `sys.argv`, `os.environ` and what mflux's
    parser and memory saver leave behind are put back. A `SystemExit` comes through, as from a parser's error. A
    command that ends without a picture (stopped by an interrupt, say) raises `FileNotFoundError`.
    """
    argv = list(argv)
    if "--output" not in argv:
        argv += ["--output", str(Path(tempfile.mkdtemp(dir=tmp_path)) / "image.png")]
    output = Path(argv[argv.index("--output") + 1])
    before = set(output.parent.iterdir())
    with preserved_globals(), mock.patch.object(sys, "argv", [name, *argv]):
        entry_point(name)()
    paths = tuple(sorted(set(output.parent.iterdir()) - before))
    pictures = [path for path in paths if path.suffix == output.suffix]
    if not pictures:
        raise FileNotFoundError(f"{name} saved no picture; new files: {[path.name for path in paths]}")
    return Saved(output if output in pictures else pictures[0], paths)


def entry_point(name: str) -> Callable[[], None]:
    """The function behind one of mflux's console scripts."""
    scripts = distribution("mflux").entry_points.select(group="console_scripts", name=name)
    return next(iter(scripts)).load()


def has_command(name: str) -> bool:
    """Whether the installed mflux has this console script."""
    return bool(distribution("mflux").entry_points.select(group="console_scripts", name=name))


def read_pixels(path: Path) -> np.ndarray:
    """A picture file as (height, width, 3) bytes."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Put back everything process-wide that a command of mflux changes: environment, logging, options, MLX's limits.

    Only values are put back, never classes or methods: whoever patched `CommandLineParser` or `CallbackManager` before
    or meanwhile keeps the patch.
    """
    import mlx.core as mx
    from mflux.utils.generated_image import GeneratedImage
    from mflux.utils.image_util import ImageUtil

    flags = [(ImageUtil, "embed_metadata_enabled"), (GeneratedImage, "model_path")]
    values = [(owner, name, vars(owner)[name]) for owner, name in flags if name in vars(owner)]
    handlers, level = list(logging.root.handlers), logging.root.level
    limit = mx.set_cache_limit(0)  # the only way to read it
    mx.set_cache_limit(limit)
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            mx.set_cache_limit(limit)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            for owner, name, value in values:
                setattr(owner, name, value)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run everything that mflux compiles with `mx.compile` eagerly. The two modes do not give the same bits."""
    import mlx.core as mx

    mx.disable_compile()
    try:
        yield
    finally:
        if "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()
