"""Pictures in several ways: plain, with each setting, and plain with as many steps as each setting computed."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mflux_teacache_plugin.measure import metrics, runs
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.runs import Command, Run
from mflux_teacache_plugin.settings import OFF


@dataclass(frozen=True)
class Case:
    """One picture, as it is in every way of making it.

    Attributes:
        name: begins the names of its files; no other case of the series has it.
        group: cases of one group are summed up in one row for each setting.
        command: with prompt and seed, without steps and setting.
    """

    name: str
    group: str
    prompt: str
    seed: int
    steps: int
    command: Command


@dataclass(frozen=True)
class Shot:
    """One run of one case; `setting` is off for plain mflux, and `file` the picture's name in the series' folder."""

    case: str
    setting: str
    steps: int
    repetition: int
    file: str
    run: Run


#: Makes a shot, or finds it where it was kept: (case, setting, steps, repetition) → Shot.
Maker = Callable[[Case, str, int, int], Shot]


def maker(folder: Path) -> Maker:
    """Makes shots whose pictures go to `folder`. Only the first repetition's stay."""

    def make(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        way = f"plain-{steps}-steps" if setting == OFF else setting
        slug = re.sub(r"[^\w.=+-]+", "-", f"{case.name}-{way}")
        file = folder / (f"{slug}.png" if repetition == 0 else f".{slug}-again.png")
        run = runs.picture(case.command.with_options(steps=steps), setting, file)
        if repetition:
            file.unlink()
        return Shot(case.name, setting, steps, repetition, f"{slug}.png", run)

    return make


def one_round(case: Case, settings: Sequence[str], repetition: int, make: Maker) -> list[Shot]:
    """Every way of one case, once, by turns: what drifts on the machine drifts under all of them."""
    shots = [make(case, OFF, case.steps, repetition)]
    shots += [make(case, setting, case.steps, repetition) for setting in settings if setting != OFF]
    fewer = {shot.run.fewer for shot in shots} - {case.steps}
    return shots + [make(case, OFF, steps, repetition) for steps in sorted(fewer, reverse=True)]


def shots_of_a_round(settings: Sequence[str]) -> int:
    """At most so many, for a progress bar."""
    return 1 + 2 * len([setting for setting in settings if setting != OFF])


def similarities(shots: Sequence[Shot], cases: Sequence[Case], folder: Path) -> dict[str, Similarity]:
    """Each picture, by its file's name, against the plain one of its case with all steps."""
    first = [shot for shot in shots if shot.repetition == 0]
    steps = {case.name: case.steps for case in cases}
    plain = {shot.case: shot.file for shot in first if shot.setting == OFF and shot.steps == steps[shot.case]}
    return {shot.file: metrics.similarity(folder / shot.file, folder / plain[shot.case]) for shot in first}


class Ledger:
    """Keeps shots on disk as they are made, a JSON line each, and finds them again when a run was interrupted.

    A shot is known by everything that made it (command with model, prompt, seed and sizes, setting, steps, repetition,
    versions), so that a changed suite finds nothing that it did not ask for.
    """

    def __init__(self, folder: Path, pictures: Path, rank: int) -> None:
        self._pictures = pictures
        self._file = folder / f"runs.rank{rank}.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("runs*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["shot"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line at which it was interrupted
        self.found = 0

    def keeping(self, make: Maker) -> Maker:
        """`make`, but for what is there already."""

        def kept(case: Case, setting: str, steps: int, repetition: int) -> Shot:
            key = self._key(case, setting, steps, repetition)
            shot = self.find(case, setting, steps, repetition)
            if shot is not None:
                self.found += 1
                return shot
            shot = make(case, setting, steps, repetition)
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": key, "shot": asdict(shot)}))  # before: the last line may be torn
            return shot

        return kept

    def find(self, case: Case, setting: str, steps: int, repetition: int) -> Shot | None:
        """The shot, if it was made before and its picture is still there."""
        entry = self._known.get(self._key(case, setting, steps, repetition))
        if entry is None or not (self._pictures / entry["file"]).exists():
            return None
        return Shot(**{**entry, "run": Run(**entry["run"])})

    @staticmethod
    def _key(case: Case, setting: str, steps: int, repetition: int) -> str:
        versions = [version(name) for name in ("mflux", "mlx", "mflux-teacache-plugin")]
        what = [case.name, case.command.name, case.command.options, setting, steps, repetition, versions]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@contextmanager
def progress(most: int, show: bool = True) -> Iterator[tqdm]:
    """A bar of at most so many pictures; settings that compute as many steps share a plain picture."""
    with tqdm(total=most, unit="picture", disable=not show) as bar:
        yield bar
        bar.total = bar.n
        bar.set_postfix_str("")


def counted(make: Maker, bar: tqdm) -> Maker:
    """`make`, with a tick of a tqdm bar for each shot, and what is being made written behind it."""

    def counting(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        bar.set_postfix_str(f"{case.name}: " + (f"plain, {steps} steps" if setting == OFF else setting))
        shot = make(case, setting, steps, repetition)
        bar.update()
        return shot

    return counting
