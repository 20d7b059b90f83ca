"""Keeps shots on disk as they are made, and finds them again when a run was interrupted."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.measure import files, series
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF

#: Folders of this package whose code makes no picture.
_ABOVE = ("calibration", "cli", "measure")


class Ledger:
    """The shots of one folder: pictures, and for each run a file with its figures and what made it.

    That is the command with model, prompt, seed and sizes, the setting, the steps, this package's code, the versions of
    mflux and MLX, and the coefficient files, also those that the command names or that lie beside its model, or `numbers` in
    their place. So a changed suite finds nothing but what it asks for again.

    Attributes:
        maker: makes the shots that are not there, in `pictures`; each in a process of its own, unless this is replaced.
        files: of the shots that `make` was asked for.
        found: how many of them were there already.
    """

    def __init__(self, folder: Path, fresh: bool = False, numbers: Sequence[str] | None = None) -> None:
        self.pictures, self._runs = folder / "pictures", folder / "runs"
        self.maker = series.maker(self.pictures)
        self.files: set[Path] = set()
        self.found = 0
        if fresh:
            shutil.rmtree(self._runs, ignore_errors=True)
        for each in (self.pictures, self._runs):
            each.mkdir(parents=True, exist_ok=True)
        for left in self.pictures.glob(".*"):  # of a bench that was killed
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        self._code = [*(version(name) for name in ("mflux", "mlx")), code_digest()]
        found = choose.catalog().variants if numbers is None else {}
        self._numbers, self._variants = numbers, [str(as_table(entry.variant)) for _, entry in sorted(found.items())]

    def find(self, case: Case, setting: str, steps: int, repetition: int) -> Shot | None:
        """The shot, if it was made before and its picture is still there."""
        try:
            kept = json.loads(self._file(case, setting, steps, repetition).read_text(encoding="utf-8"))
            shot = Shot.of(kept["shot"])
            same = kept["made_by"] == self._key(case, setting, steps)
            return shot if same and (self.pictures / shot.file).exists() else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or torn
            return None

    def make(self, case: Case, setting: str, steps: int, repetition: int) -> Shot:
        """The shot, made only if it is not there already."""
        shot, file = self.find(case, setting, steps, repetition), self._file(case, setting, steps, repetition)
        if shot is None:
            file.unlink(missing_ok=True)  # it would be of another picture
            shot = self.maker(case, setting, steps, repetition)
            files.write(file, files.as_json({"made_by": self._key(case, setting, steps), "shot": asdict(shot)}))
        else:
            self.found += 1
        self.files |= {file, self.pictures / shot.file}
        return shot

    def _file(self, case: Case, setting: str, steps: int, repetition: int) -> Path:
        return self._runs / f"{series.slug(case.name, series.way(setting, steps))}-{repetition}.json"

    def _key(self, case: Case, setting: str, steps: int) -> str:
        made_by = self._code
        if setting != OFF:  # plain mflux reads no coefficients
            read = [*self._variants, *_named(case.command.options)] if self._numbers is None else self._numbers
            made_by = [*made_by, *read]
        what = [case.command.name, case.command.options, case.text(setting), steps, made_by]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _named(options: Sequence[str]) -> list[str]:
    """What the coefficient files say that the options name, or that lie beside the model."""
    words = [word for option in options for word in option.split("=", 1)]
    given = [value for name, value in itertools.pairwise(words) if name in ("-m", "--model", "--teacache-coefficients")]
    paths = [Path(each).expanduser() for each in given]
    files = [file for path in paths for file in (sorted(path.glob("*.toml")) if path.is_dir() else [path])]
    return [file.read_text(errors="replace") for file in files if file.suffix == ".toml" and file.is_file()]


def has_shots(folder: Path, case: str) -> bool:
    """Whether there are shots of the case of this name in a ledger's folder, whatever made them."""
    return any((folder / "runs").glob(f"{series.slug(case)}-*"))


def code_digest(package: Path = Path(__file__).parent.parent) -> str:
    """Over the source files of this package that a run of mflux can import."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if place.parts[0] not in _ABOVE:
            digest.update(f"{place.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
