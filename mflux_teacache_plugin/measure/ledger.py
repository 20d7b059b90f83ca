"""Keeps shots on disk as they are made, and finds them again when a run was interrupted."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.measure import files
from mflux_teacache_plugin.measure.series import Case, Maker, Shot
from mflux_teacache_plugin.methods import OFF

#: In a bench's folder: what was made, a JSON line for each shot, in the order of the suite.
MERGED = "runs.jsonl"

#: Folders of this package whose code makes no picture.
_ABOVE = ("calibration", "cli", "measure")


class Ledger:
    """The shots of one folder. While a bench runs, each rank appends to a file of its own; in the end they are merged.

    A shot is known by everything that made it: the command with model, prompt, seed and sizes, the setting, the steps, the
    repetition, this package's code, the versions of mflux and MLX, and the coefficient files. So a changed suite finds
    nothing but what it asks for again.
    """

    def __init__(self, folder: Path, pictures: Path, rank: int) -> None:
        self._folder, self._pictures = folder, pictures
        self._own = folder / f"runs.rank{rank}.jsonl"
        self._code = [*(version(name) for name in ("mflux", "mlx")), code_digest()]
        self._numbers = [f"{id} {entry.variant.digest}" for id, entry in sorted(choose.catalog().variants.items())]
        self._known: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("runs*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["shot"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line at which it was interrupted
        self.found = 0  #: shots that were there already

    def clear(self, everything: bool = False) -> None:
        """Remove what a bench that was killed left of unfinished runs, or everything. Before any rank makes something."""
        for left in self._pictures.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        if everything:
            self._known.clear()
            for file in self._folder.glob("runs*.jsonl"):
                file.unlink(missing_ok=True)

    def find(self, case: Case, setting: str, steps: int, repetition: int) -> Shot | None:
        """The shot, if it was made before and its picture is still there."""
        entry = self._known.get(self._key(case, setting, steps, repetition))
        return Shot.of(entry) if entry is not None and (self._pictures / entry["file"]).exists() else None

    def has(self, case: Case, repetition: int) -> bool:
        """Whether the case was made plain and with each of its settings."""
        return all(self.find(case, setting, case.steps, repetition) for setting in (OFF, *case.settings))

    def keeping(self, make: Maker) -> Maker:
        """`make`, but for what is there already."""

        def kept(case: Case, setting: str, steps: int, repetition: int) -> Shot:
            shot = self.find(case, setting, steps, repetition)
            if shot is not None:
                self.found += 1
                return shot
            shot = make(case, setting, steps, repetition)
            with self._own.open("a", encoding="utf-8") as file:  # the line feed comes first: the last line may be torn
                file.write(f"\n{self._line(case, shot)}")
            return shot

        return kept

    def merge(self, shots: Iterable[tuple[Case, Shot]]) -> None:
        """Write the whole series, as one rank's or as that of many."""
        files.write(self._folder / MERGED, "".join(f"{self._line(case, shot)}\n" for case, shot in shots))

    def close(self) -> None:
        """Remove this rank's own file, once all is merged."""
        self._own.unlink(missing_ok=True)

    def _line(self, case: Case, shot: Shot) -> str:
        key = self._key(case, shot.setting, shot.steps, shot.repetition)
        return json.dumps({"key": key, "shot": asdict(shot)})

    def _key(self, case: Case, setting: str, steps: int, repetition: int) -> str:
        made_by = self._code + ([] if setting == OFF else self._numbers)  # plain mflux reads no coefficients
        what = [case.name, case.command.name, case.command.options, setting, steps, repetition, made_by]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def code_digest(package: Path = Path(__file__).parent.parent) -> str:
    """Over the source files of this package that a run of mflux can import."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if place.parts[0] not in _ABOVE:
            digest.update(f"{place.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
