"""Files that are whole or not there, and JSON as they hold it."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.errors import SettingsError


def write(file: Path, data: bytes | str) -> None:
    """Have `file` hold the data: all of it, or what it held before. Raises OSError."""
    aside = file.with_name(f".{file.name}.part")
    try:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def check_writable(folder: Path) -> Path:
    """The folder, or the nearest above it that is there; SettingsError if no file can be written into it."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        cause = f"you may not write to {nearest}" if nearest.is_dir() else f"{nearest} is no folder"
        raise SettingsError(f"{folder} cannot be written", cause=cause, hint="name another folder")
    return nearest


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder for files that come to `folder` together, when all went well; otherwise `folder` is as it was.

    Raises SettingsError or OSError if nothing can be written there, before anything else happens.
    """
    with tempfile.TemporaryDirectory(dir=check_writable(folder), prefix=".making-") as stage:
        yield Path(stage)
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(stage).iterdir():
            file.replace(folder / file.name)


def as_json(value: Any) -> str:
    """As text; JSON has no infinity, so that of a PSNR (the same picture) becomes null."""
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2)
