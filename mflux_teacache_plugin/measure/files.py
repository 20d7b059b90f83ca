"""Files that are whole or not there, and JSON as they hold it."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write(file: Path, data: bytes | str) -> None:
    """Have `file` hold the data: all of it, or what it held before. Raises OSError."""
    aside = file.with_name(f".{file.name}.part")
    try:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder for files that come to `folder` together, when all went well; otherwise `folder` is as it was.

    Raises:
        OSError: `folder` cannot be made or written to; before anything else happens.
    """
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as stage:
            yield Path(stage)
            for file in Path(stage).iterdir():
                file.replace(folder / file.name)
    except BaseException:
        for made in new:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        raise


def as_json(value: Any) -> str:
    """As text; JSON has no infinity, so that of a PSNR (the same picture) becomes null."""
    return json.dumps(_finite(value), indent=2, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
