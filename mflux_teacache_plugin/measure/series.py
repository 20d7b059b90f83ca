"""Pictures in several ways: plain, with each setting, and plain with as many steps as each setting computed."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mflux_teacache_plugin.measure import metrics, runs
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.runs import Command, Run
from mflux_teacache_plugin.methods import OFF

#: The longest beginning of a file's name; systems take 255 bytes.
LONGEST = 120


@dataclass(frozen=True)
class Case:
    """One picture, as it is in every way of making it.

    Attributes:
        name: begins the names of its files; no other case of the series has it.
        group: cases of one group are summed up in one row for each setting.
        settings: what it is made with beside plain mflux.
        command: with prompt and seed, without steps and setting.
        whole: the case of the same picture by the whole model, or the least quantized one; "" for that one itself.
        guidance: where it is not the command's own.
        texts: what `--teacache` takes, for those settings that are names.
    """

    name: str
    group: str
    prompt: str
    seed: int
    steps: int
    settings: tuple[str, ...]
    command: Command
    whole: str = ""
    guidance: float | None = None
    texts: Mapping[str, str] = field(default_factory=dict)

    def text(self, setting: str) -> str:
        """What `--teacache` takes for one of the settings."""
        return self.texts.get(setting, setting)

    @property
    def most_shots(self) -> int:
        """So many in a round, or fewer: settings that compute as many steps share a plain picture."""
        return 1 + 2 * len(self.settings)


@dataclass(frozen=True)
class Shot:
    """One run of one case; `setting` is off for plain mflux, and `file` the picture's name in the series' folder."""

    case: str
    setting: str
    steps: int
    repetition: int
    file: str
    run: Run

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Shot":
        """The shot that `dataclasses.asdict` made these of."""
        return cls(**{**values, "run": Run(**values["run"])})


@dataclass(frozen=True)
class Series:
    """The shots that were made of some cases, and the folder of their pictures."""

    cases: list[Case]
    shots: list[Shot]
    folder: Path

    def similarities(self, references: Mapping[str, str]) -> dict[str, Similarity]:
        """Each first picture of a case in `references`, by its file's name, against the plain one of the case named there."""
        first = [shot for shot in self.shots if shot.repetition == 0]
        steps = {case.name: case.steps for case in self.cases}
        plain = {shot.case: shot.file for shot in first if shot.setting == OFF and shot.steps == steps[shot.case]}
        against = [(shot.file, plain[references[shot.case]]) for shot in first if shot.case in references]
        return {file: metrics.similarity(self.folder / file, self.folder / other) for file, other in against}

    def against_plain(self) -> dict[str, Similarity]:
        """Each first picture, by its file's name, against the plain one of its case."""
        return self.similarities({case.name: case.name for case in self.cases})


#: Makes a shot, or finds it where it was kept: (case, setting, steps, repetition) → Shot.
Maker = Callable[[Case, str, int, int], Shot]


def slug(*parts: str) -> str:
    """The parts as a file's name, or its beginning; one that is too long ends in a hash."""
    name = re.sub(r", +|[^\w.,=+-]+", "-", "-".join(parts))
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def way(setting: str, steps: int) -> str:
    """How a shot is made, in words."""
    return f"plain, {steps} steps" if setting == OFF else setting


def maker(folder: Path) -> Maker:
    """Makes shots whose pictures go to `folder`. Only the first repetition's stay."""

    def make(case: Case, setting: str, steps: int, repetition: int) -> Shot:
        name = f"{slug(case.name, way(setting, steps))}.png"
        file = folder / (f".{name}" if repetition else name)
        run = runs.picture(case.command.with_options(steps=steps), setting, file)
        if repetition:
            file.unlink(missing_ok=True)  # another rank may have made one on the same disk
        return Shot(case.name, setting, steps, repetition, name, run)

    return make


def one_round(case: Case, repetition: int, make: Maker) -> list[Shot]:
    """Every way of one case, once, by turns: what drifts on the machine drifts under all of them."""
    shots = [make(case, setting, case.steps, repetition) for setting in (OFF, *case.settings)]
    fewer = {shot.run.fewer(shots[0].run) for shot in shots} - {case.steps}
    return shots + [make(case, OFF, steps, repetition) for steps in sorted(fewer, reverse=True)]


@contextmanager
def progress(most: int, show: bool = True) -> Iterator[Callable[[Maker], Maker]]:
    """A bar of at most so many pictures; gives what makes a maker tick it, with what is being made written behind it."""
    with tqdm(total=most, unit="picture", disable=not show) as bar:

        def counting(make: Maker, case: Case, setting: str, steps: int, repetition: int) -> Shot:
            bar.set_postfix_str(f"seed {case.seed}: {way(setting, steps)}")
            shot = make(case, setting, steps, repetition)
            bar.update()
            return shot

        yield partial(partial, counting)
        bar.total = bar.n
        bar.set_postfix_str("")
